"""Atomic, durable writing of files, and bounded reading of files that others may have written."""

import errno
import json
import os
import stat
from collections.abc import Mapping
from pathlib import Path
from sys import intern
from typing import Any, BinaryIO

from elmanctl.ledger.mounts import find_mount

# Leases, requests, results and heartbeats have a few kilobytes, a run's settings less.
SMALL_BYTES = 1 << 20


# How systems say that a file system has no hard links; we own both the file and its folder.
_NO_LINKS = (errno.EPERM, errno.ENOTSUP, errno.ENOSYS)


class NoHardLinks(OSError):
    """The file system has no hard links, which nothing replaces safely on all of them."""


class DamagedFile(ValueError):
    """A file that does not hold the one JSON object that it ought to hold."""


def write_atomically(path: Path, data: bytes) -> None:
    """Replace the contents of `path` on disk: afterwards it holds all of `data`, or what it held.

    Raises OSError when that fails, a full disk included; no temporary file is left behind.
    """
    temporary = _write_temporary(path, data)
    try:
        temporary.replace(path)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise
    sync_folder(path.parent)


def create_atomically(path: Path, data: bytes) -> None:
    """Make a new file that is complete from the moment it exists.

    Raises FileExistsError when there is one already; of several processes exactly one succeeds,
    on NFS too, because `link` is one operation of the server.  Nothing else is, everywhere: an
    exclusive creation shows the file before it is complete, and a rename that replaces nothing is
    checked by each machine for itself where the server does not know of it.

    Raises NoHardLinks where the file system has none.
    """
    temporary = _write_temporary(path, data)
    try:
        link(path, temporary)
    except FileExistsError:
        # On NFS the reply to a link that succeeded can be lost, and the repeated call then fails.
        if not _is_same_file(temporary, path):
            raise
    finally:
        temporary.unlink(missing_ok=True)
    sync_folder(path.parent)


def link(path: Path, existing: Path) -> None:
    """Give a file another name; raises FileExistsError, NoHardLinks, OSError."""
    try:
        path.hardlink_to(existing)
    except OSError as exc:
        if exc.errno not in _NO_LINKS:
            raise
        kind = find_mount(path.parent).kind or "unknown"
        raise NoHardLinks(
            exc.errno,
            f"its file system ({kind}) makes no hard links, by which the first of several"
            " processes is told",
            str(path),
        ) from exc


def write_json(path: Path, obj: Mapping[str, object]) -> None:
    """Replace `path` atomically by one JSON object; NaN and infinities raise ValueError."""
    write_atomically(path, encode_json(obj))


def encode_json(obj: Mapping[str, object]) -> bytes:
    """Return one JSON object as one line; NaN and infinities raise ValueError."""
    text = json.dumps(obj, separators=(",", ":"), allow_nan=False)
    return text.encode("ascii") + b"\n"


def read_json(path: Path) -> dict[str, object] | None:
    """Return the JSON object in `path`, or None when there is no such file.

    Raises DamagedFile (a ValueError) when the file holds anything but one JSON object.
    """
    try:
        data = read_small(path)
    except FileNotFoundError:
        return None
    try:
        return parse_object(data)
    except ValueError as exc:
        raise DamagedFile(f"{path}: {exc}") from exc


def open_regular(path: Path) -> BinaryIO:
    """Open a file for reading that another user may have put there.

    Raises OSError, for anything but a regular file too: opening a pipe blocks until it has a
    writer, and a device has no end.
    """
    descriptor = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_NOCTTY | os.O_CLOEXEC)
    try:
        if not stat.S_ISREG(os.fstat(descriptor).st_mode):
            raise OSError(errno.EINVAL, "not a regular file", str(path))
        return os.fdopen(descriptor, "rb")
    except BaseException:
        os.close(descriptor)
        raise


def read_small(path: Path, limit_bytes: int = SMALL_BYTES) -> bytes:
    """Return the contents of a file that has no reason to be large.

    Raises OSError, for a file above `limit_bytes` and for what is no regular file too.
    """
    with open_regular(path) as file:
        data = file.read(limit_bytes + 1)
    if len(data) > limit_bytes:
        raise OSError(errno.EFBIG, f"larger than {limit_bytes} bytes", str(path))
    return data


def parse_object(data: bytes) -> dict[str, object]:
    """Read one JSON object strictly: UTF-8, no key twice, no number that is not finite."""
    try:
        value = json.loads(
            data.decode("utf-8"),
            object_pairs_hook=_object_of_pairs,
            parse_constant=_refuse_constant,
            parse_float=_finite_float,
        )
    except RecursionError as exc:
        raise ValueError("nested too deeply") from exc
    if not isinstance(value, dict):
        raise ValueError("not a JSON object")
    return value


def sync_folder(folder: Path) -> None:
    """Make the names in `folder` survive a power failure."""
    descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(descriptor)
    except OSError as exc:
        # Some network file systems cannot sync a folder and say so; they have nothing to wait for.
        if exc.errno not in (errno.EINVAL, errno.ENOTSUP):
            raise
    finally:
        os.close(descriptor)


def _write_temporary(path: Path, data: bytes) -> Path:
    """Write `data` durably to a new file beside `path`, under a unique name."""
    temporary = path.with_name(f".{path.name}.{os.urandom(8).hex()}.tmp")
    try:
        with temporary.open("xb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise
    return temporary


def _is_same_file(one: Path, other: Path) -> bool:
    try:
        return one.samefile(other)
    except FileNotFoundError:
        return False


def _object_of_pairs(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    # One string for all objects with this key: those of a ledger are few, and stand in every line.
    obj = {intern(key): value for key, value in pairs}
    if len(obj) != len(pairs):
        raise ValueError("a key occurs twice in one object")
    return obj


def _refuse_constant(name: str) -> None:
    raise ValueError(f"{name} is not a JSON number")


def _finite_float(text: str) -> float:
    value = float(text)
    if value in (float("inf"), float("-inf")):
        raise ValueError(f"{text} is too large for a number")
    return value
