"""Disk space held in reserve for a full disk.

A full disk takes away what is needed to get out of it: a lease is a file, and so is a result.  A
run therefore keeps a few small files whose blocks are really allocated.  Giving them up makes
room for a lease and some events; a worker writes its result over its own, which needs no room.
"""

import errno
import logging
import os
import shutil
from pathlib import Path

from elmanctl.ledger.files import sync_folder

logger = logging.getLogger(__name__)

RESERVE_FOLDER = "reserve"
PART_BYTES = 16 * 1024

# Several, since a file system may be out of inodes before it is out of blocks.
_PARTS = 4

# A reserve is not taken from what is nearly gone.
_FREE_FACTOR = 2

_FULL = (errno.ENOSPC, errno.EDQUOT)


def full_disk(error: BaseException | None) -> OSError | None:
    """Return the OSError in an error's chain of causes that says the disk is full, or None."""
    seen: set[int] = set()
    while error is not None and id(error) not in seen:
        seen.add(id(error))
        if isinstance(error, OSError) and error.errno in _FULL:
            return error
        error = error.__cause__
    return None


def hold(path: Path, size_bytes: int = PART_BYTES) -> None:
    """Make a new file of so many bytes that really take them; raises OSError, leaving nothing."""
    try:
        with path.open("xb") as file:
            # Zeros would be kept as a hole, or as nothing by a file system that compresses.
            file.write(os.urandom(size_bytes))
            file.flush()
            os.fsync(file.fileno())
    except FileExistsError:
        raise
    except OSError:
        path.unlink(missing_ok=True)
        raise


def refill(folder: Path) -> None:
    """Make the reserve of the run in `folder` whole, where the disk has room to spare."""
    missing = [path for path in _parts(folder) if not path.exists()]
    if not missing:
        return
    try:
        if shutil.disk_usage(folder).free < _FREE_FACTOR * _PARTS * PART_BYTES:
            return
        (folder / RESERVE_FOLDER).mkdir(exist_ok=True)
        for path in missing:
            hold(path)
    except FileExistsError:
        # Another process that ends at the same moment makes it too.
        return
    except OSError as exc:
        logger.info("the run's reserve is not whole: %s", exc)


def give_up(folder: Path, *, keep: int = 0) -> bool:
    """Free the reserve of the run in `folder` but for `keep` parts; return whether any was there.

    Raises OSError, on a read-only file system for one.
    """
    held = [path for path in _parts(folder) if path.is_file()]
    for path in held[keep:]:
        path.unlink(missing_ok=True)
    return len(held) > keep


def parts_held(folder: Path) -> int:
    """Return how many parts of the reserve are in place."""
    return sum(path.is_file() for path in _parts(folder))


def write_over(reserve: Path, path: Path, data: bytes) -> None:
    """Put `data` durably into `path` by way of the reserve, in blocks that it holds already.

    A reader never sees half of it: the name changes when all is written.  Raises OSError.
    """
    with reserve.open("r+b") as file:
        file.write(data)
        file.truncate()
        file.flush()
        os.fsync(file.fileno())
    reserve.replace(path)
    sync_folder(path.parent)


def _parts(folder: Path) -> list[Path]:
    return [folder / RESERVE_FOLDER / f"part-{number}" for number in range(_PARTS)]
