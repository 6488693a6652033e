"""Frozen code of a run, copied at its start: edits in a checkout never change a live search."""

import hashlib
import re
import shutil
from contextlib import suppress
from pathlib import Path

import elmanctl


def package_files(package: Path) -> list[Path]:
    """Return the code and data files of the package, in a fixed order."""
    return sorted(
        path
        for path in package.rglob("*")
        if path.is_file() and "__pycache__" not in path.parts and not path.name.endswith(".pyc")
    )


def hash_code(package: Path) -> str:
    """Return the sha256 of the names and bytes of all files."""
    digest = hashlib.sha256()
    for path in package_files(package):
        digest.update(f"{path.relative_to(package)}\0{path.stat().st_size}\0".encode())
        digest.update(path.read_bytes())
    return digest.hexdigest()


def knows_spec_key(code: Path, key: str) -> bool:
    """Whether the worker in a run's frozen code reads a spec with this key.

    A worker refuses a key that it does not know, so that a run of an earlier version must not be
    sent one.
    """
    with suppress(OSError):
        text = (code / "elmanctl" / "run" / "spec.py").read_text(encoding="utf-8")
        return re.search(rf"^    {re.escape(key)}: ", text, re.MULTILINE) is not None
    return False


def freeze_code(target: Path) -> str:
    """Copy the running elmanctl package to `target`/elmanctl and return its hash."""
    package = Path(elmanctl.__file__).parent
    for path in package_files(package):
        copy = target / package.name / path.relative_to(package)
        copy.parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(path, copy)
    return hash_code(target / package.name)
