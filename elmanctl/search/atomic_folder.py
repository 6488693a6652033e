"""A folder that is made whole or not at all."""

import shutil
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path


@contextmanager
def new_folder(folder: Path) -> Iterator[None]:
    """Make a folder and those above it; when the body fails they are as if never made."""
    made = [path for path in (folder, *folder.parents) if not path.exists()]
    try:
        folder.mkdir(parents=True)
    except OSError:
        _remove_empty(made)
        raise
    try:
        yield
    except BaseException:
        shutil.rmtree(folder, ignore_errors=True)
        _remove_empty(made)
        raise


def _remove_empty(folders: list[Path]) -> None:
    """Remove folders that this process made, from the inside, as far as nobody uses them."""
    for path in folders:
        with suppress(OSError):
            path.rmdir()
