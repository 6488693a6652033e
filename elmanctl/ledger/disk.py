"""Disk use of a folder, and the free space and inodes of its file system."""

import errno
import logging
import os
import re
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from elmanctl.errors import LedgerError, os_errors_as
from elmanctl.ledger.mounts import mounts
from elmanctl.ledger.quota import Quota, ask_quota

logger = logging.getLogger(__name__)

_VANISHED = (errno.ENOENT, errno.ENOTDIR, errno.ESTALE)

# A descriptor is held for each folder above the one that is read.
_DEEPEST = 64

# The categories of an attempt's files by name; `other` is the rest, folders included.
_NAMES = (
    ("metrics", re.compile(r"metrics.*\.jsonl|events\.out\.tfevents\..*|wandb")),
    ("log", re.compile(r".*_log\.(out|err)")),
    ("pickle", re.compile(r".*\.pkl")),
    ("result", re.compile(r"result\.json")),
    ("model", re.compile(r"model\.safetensors.*")),
    ("checkpoint", re.compile(r"checkpoint.*|.*\.(pt|pth|ckpt|safetensors)")),
)


@dataclass(frozen=True, slots=True, kw_only=True)
class Found:
    """A file or folder below another one: its path from there, and its status."""

    parts: tuple[str, ...]
    status: os.stat_result

    @property
    def size_bytes(self) -> int:
        """The bytes allocated on disk."""
        return allocated_bytes(self.status)


@dataclass(frozen=True, slots=True, kw_only=True)
class Space:
    """The space that this user can still write to; None for inodes where they are not counted."""

    free_bytes: int
    free_inodes: int | None
    quota: Quota

    @property
    def usable_bytes(self) -> int:
        """The bytes that the file system and the quota both allow."""
        left = self.quota.left_bytes
        return self.free_bytes if left is None else min(self.free_bytes, left)

    @property
    def usable_inodes(self) -> int | None:
        """How many more files both allow, None where neither counts them."""
        known = [left for left in (self.free_inodes, self.quota.left_inodes) if left is not None]
        return min(known, default=None)


def allocated_bytes(status: os.stat_result) -> int:
    """Return the bytes that a file or folder takes on disk, so that a sparse one costs no more."""
    return status.st_blocks * 512


def category_of(name: str) -> str:
    """Return the category of a file that an attempt left, by its name."""
    return next((category for category, names in _NAMES if names.fullmatch(name)), "other")


def walk(folder: Path, *, passes_locked: bool = False) -> Iterator[Found]:
    """Yield everything below `folder`, which may itself be named by a link; no link is followed.

    Entries that vanish meanwhile are skipped, and so are mount points below, even of the same
    file system, and everything below 64 nested folders: each of them holds a descriptor open.
    Raises LedgerError when a folder cannot be read, unless `passes_locked` lets those pass that
    this user may not read.
    """
    onerror = _pass_locked if passes_locked else _refuse
    with _mapped(folder):
        top = os.path.realpath(folder)
        elsewhere: set[str] | None = None
        for root, folders, files, descriptor in os.fwalk(top, onerror=onerror):
            above = Path(root).relative_to(top).parts
            for name in (*folders, *files):
                with _mapped(folder):
                    status = os.stat(name, dir_fd=descriptor, follow_symlinks=False)
                    yield Found(parts=(*above, name), status=status)
            if folders and elsewhere is None:
                elsewhere = {mount.point for mount in mounts()}
            # Nested ones have their names from the outer one, and are never reached.
            folders[:] = [name for name in folders if f"{root}/{name}" not in (elsewhere or ())]
            if len(above) >= _DEEPEST:
                logger.warning("what lies below %s is not counted: it is too deep", root)
                folders.clear()


def measure(folder: Path) -> int:
    """Return the bytes allocated on disk by `folder` and all below it; 0 when it does not exist.

    Links inside are not followed, a file with several names is counted once, and what vanishes
    meanwhile is not counted.  Raises LedgerError when a folder cannot be read.
    """
    total = 0
    with _mapped(folder):
        total += allocated_bytes(folder.stat())
    return total + sum(found.size_bytes for found in each_once(walk(folder)))


def each_once(found: Iterator[Found]) -> Iterator[Found]:
    """Leave out the further names of a file that has several."""
    seen: set[tuple[int, int]] = set()
    for item in found:
        if item.status.st_nlink > 1:
            identity = (item.status.st_dev, item.status.st_ino)
            if identity in seen:
                continue
            seen.add(identity)
        yield item


def space_of(path: Path, *, with_quota: bool = True) -> Space:
    """Return what is left on the file system of `path`, and of this user's quota on it.

    Asking for a quota runs a command, at most once a minute.  Raises LedgerError.
    """
    with os_errors_as(LedgerError, f"cannot ask how much space is free at {path}"):
        status = os.statvfs(path)
    return Space(
        free_bytes=status.f_bavail * status.f_frsize,
        # A file system that makes inodes as it needs them says that it has none.
        free_inodes=status.f_favail if status.f_files else None,
        quota=ask_quota(path) if with_quota else Quota(note="not asked"),
    )


def _refuse(error: OSError) -> None:
    if error.errno not in _VANISHED:
        raise error


def _pass_locked(error: OSError) -> None:
    if error.errno != errno.EACCES:
        _refuse(error)
        return
    logger.warning("what lies in %s is not counted: %s", error.filename, error.strerror)


@contextmanager
def _mapped(folder: Path) -> Iterator[None]:
    """Let pass what vanished; anything else that goes wrong becomes a LedgerError."""
    try:
        yield
    except OSError as exc:
        if exc.errno not in _VANISHED:
            raise LedgerError(f"cannot measure {folder}: {exc.strerror}") from exc
