"""Acting as a user without rights, in this process, as only root can."""

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

NOBODY = 65534

as_root = pytest.mark.skipif(os.geteuid() != 0, reason="only root can act as somebody else")


@contextmanager
def nobody(*groups: int) -> Iterator[None]:
    """Be the user `nobody`, in these groups, for a while."""
    earlier = os.getgroups()
    os.setgroups(list(groups))
    os.setegid(groups[0] if groups else NOBODY)
    os.seteuid(NOBODY)
    try:
        yield
    finally:
        os.seteuid(0)
        os.setegid(0)
        os.setgroups(earlier)


@contextmanager
def umask(mask: int) -> Iterator[None]:
    """Make files under this umask for a while."""
    earlier = os.umask(mask)
    try:
        yield
    finally:
        os.umask(earlier)


def give_away(folder: Path, user: int = NOBODY) -> None:
    """Make a folder and all in it somebody else's."""
    for path in (folder, *folder.rglob("*")):
        os.chown(path, user, user, follow_symlinks=False)
