"""What a run takes on disk, and what is left."""

import errno
import os
import stat
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from elmanctl.errors import LedgerError

_VANISHED = (errno.ENOENT, errno.ENOTDIR, errno.ESTALE)
_BLOCK_BYTES = 512


def measure(folder: Path) -> int:
    """Return the bytes allocated on disk by `folder` and all below it; 0 when it does not exist.

    Counts blocks, not lengths, so that sparse files cost what they cost.  Links inside are not
    followed, a file with several names is counted once, and what vanishes meanwhile is not
    counted.  Raises LedgerError when a folder cannot be read.
    """
    total = 0
    seen: set[tuple[int, int]] = set()
    for status in _walk(folder):
        if status.st_nlink > 1:
            identity = (status.st_dev, status.st_ino)
            if identity in seen:
                continue
            seen.add(identity)
        total += status.st_blocks * _BLOCK_BYTES
    return total


def free_bytes(path: Path) -> int:
    """Return the bytes that this user can still write to the file system of `path`."""
    try:
        status = os.statvfs(path)
    except OSError as exc:
        raise LedgerError(f"cannot ask how much space is free at {path}: {exc.strerror}") from exc
    return status.f_bavail * status.f_frsize


def _walk(folder: Path) -> Iterator[os.stat_result]:
    """Yield the status of `folder`, which may itself be named by a link, and of all below it."""
    with _mapped(folder):
        yield folder.stat()
    waiting = [folder]
    while waiting:
        current = waiting.pop()
        for entry in _entries(current):
            with _mapped(current):
                status = entry.stat(follow_symlinks=False)
                if stat.S_ISDIR(status.st_mode):
                    waiting.append(Path(entry.path))
                yield status


def _entries(folder: Path) -> list[os.DirEntry[str]]:
    with _mapped(folder), os.scandir(folder) as entries:
        return list(entries)
    return []


@contextmanager
def _mapped(folder: Path) -> Iterator[None]:
    """Let pass what vanished; anything else that goes wrong becomes a LedgerError."""
    try:
        yield
    except OSError as exc:
        if exc.errno not in _VANISHED:
            raise LedgerError(f"cannot measure {folder}: {exc.strerror}") from exc
