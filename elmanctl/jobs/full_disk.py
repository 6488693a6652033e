"""Full disks: the run's, which stops the search, or one that only this node has.

Python's exception for a full disk names a file only if opening it failed.  Otherwise the disks that
are full now decide, and then the code that wrote.
"""

import errno
import logging
import os
import re
import shutil
import subprocess
import traceback
from collections.abc import Iterator
from pathlib import Path

from elmanctl.jobs.failure import chain, message_of
from elmanctl.ledger.mounts import find_mount
from elmanctl.ledger.records import VerdictKind
from elmanctl.verdicts.errnos import MESSAGES, NUMBERS

logger = logging.getLogger(__name__)

_FULL = NUMBERS[VerdictKind.DISK_FULL]
_FULL_TEXT = re.compile(MESSAGES[VerdictKind.DISK_FULL], re.IGNORECASE)
_NO_TEMPORARY = "No usable temporary directory"
_PATH = re.compile(r"(?<![\w./])/[^\s:'\"`,;()<>|]+")

# Less than any useful file needs.
_NO_ROOM_BYTES = 64 * 1024

# None of our writes fails if so much is free; many of a compiler's fail if so little is.
_AMPLE_BYTES = 1 << 30
_SCARCE_BYTES = 256 << 20

# Caches of compilers: a part of the path of the module that writes, the variables that name the
# folder, and its default below the home folder, or None for the temporary folder.
_CACHES = (
    ("/triton/", ("TRITON_CACHE_DIR", "TRITON_HOME"), "~/.triton"),
    ("/torch/_inductor/", ("TORCHINDUCTOR_CACHE_DIR",), None),
    ("/torch/utils/cpp_extension", ("TORCH_EXTENSIONS_DIR",), "~/.cache"),
    ("/tempfile.py", (), None),
)


def full_disk_of_node(exc: BaseException, run_folder: Path) -> str | None:
    """Return the node-local full disk that ended a worker, None if none did.

    None also if the run's own disk is full, or one that nodes share, since another node would be no
    better; and if the disks cannot be queried.
    """
    try:
        return _find_full_disk(exc, run_folder)
    except OSError as unknown:
        logger.warning("it is unknown which disk was full: %s", unknown)
        return None


def _find_full_disk(exc: BaseException, run_folder: Path) -> str | None:
    links = [link for link, _ in chain(exc)]
    full = [link for link in links if _says_full(link)]
    if not full and not any(map(_may_hide_full_disk, links)):
        return None
    if _has_no_room(run_folder):
        return None
    named = next((path for link in full for path in _paths_of(link)), None)
    if named is not None:
        # The failed call names the file: nothing else counts.
        return _local(named, run_folder)
    folders = [*_temporary_folders(), *(folder for _, folder in _caches())]
    for folder in folders:
        if _has_no_room(folder) and (found := _local(folder, run_folder)):
            return found
    if not full:
        return None
    writers = [
        frame.filename for link in full for frame in traceback.extract_tb(link.__traceback__)
    ]
    for part, folder in _caches():
        if any(part in name for name in writers) and (found := _local(folder, run_folder)):
            return found
    # The file that did not fit may be gone again.  A quota has an errno of its own.
    by_quota = any(isinstance(link, OSError) and link.errno == errno.EDQUOT for link in full)
    if by_quota or _free_bytes(run_folder) < _AMPLE_BYTES:
        return None
    for folder in folders:
        if _free_bytes(folder) < _SCARCE_BYTES and (found := _local(folder, run_folder)):
            return found
    return None


def _says_full(exc: BaseException) -> bool:
    if isinstance(exc, OSError) and exc.errno in _FULL:
        return True
    return _FULL_TEXT.search(message_of(exc)) is not None


def _may_hide_full_disk(exc: BaseException) -> bool:
    """Whether a program failed whose message is lost, such as a compiler, or `tempfile`."""
    return isinstance(exc, subprocess.CalledProcessError) or _NO_TEMPORARY in message_of(exc)


def _paths_of(exc: BaseException) -> Iterator[Path]:
    if isinstance(exc, OSError):
        for name in (exc.filename, exc.filename2):
            if isinstance(name, str | bytes):
                yield Path(os.fsdecode(name)).absolute()
    yield from map(Path, _PATH.findall(message_of(exc)))


def _local(path: Path, run_folder: Path) -> str | None:
    """Return the mount point of a node-local disk other than the run's, None for another disk."""
    found = _nearest(path)
    if found.stat().st_dev == _nearest(run_folder).stat().st_dev:
        return None
    mount = find_mount(found)
    return None if mount.is_shared else mount.point


def _has_no_room(path: Path) -> bool:
    status = os.statvfs(_nearest(path))
    out_of_files = status.f_files > 0 and status.f_favail == 0
    return out_of_files or _free_bytes(path) < _NO_ROOM_BYTES


def _free_bytes(path: Path) -> int:
    return shutil.disk_usage(_nearest(path)).free


def _nearest(path: Path) -> Path:
    # `Path.exists` raises for a folder without permission.
    return next(above for above in (path, *path.parents) if os.path.exists(above))  # noqa: PTH110


def _caches() -> Iterator[tuple[str, Path]]:
    """Yield the part of a path that identifies the code of each cache, and its folder."""
    for part, variables, below in _CACHES:
        named = next((os.environ[name] for name in variables if os.environ.get(name)), None)
        default = Path(below).expanduser() if below else _temporary_folders()[0]
        yield part, Path(named).absolute() if named else default


def _temporary_folders() -> list[Path]:
    # `tempfile` skips folders that are full.
    named = [os.environ[name] for name in ("TMPDIR", "TEMP", "TMP") if os.environ.get(name)]
    return [Path(name).absolute() for name in (*named, "/tmp", "/var/tmp")]
