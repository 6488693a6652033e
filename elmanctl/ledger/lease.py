"""The lease `lease.json`, held by the one process that may write to a run.

No `fcntl` lock, because on NFS those are granted to two holders at once.  The lease is a file
made by `link`, which the server does or refuses as one operation.  It names its holder, so that a
dead one is recognised at once on its own machine, and by a missing sign of life on another one.
The number `fence` is higher than that of the lease taken over and of every event on record;
readers skip events written under an older lease than the newest, so that even a holder that wakes
up late does no harm.
"""

import os
import socket
import time
from dataclasses import dataclass
from pathlib import Path

from elmanctl.errors import LeaseLost, LedgerCorrupt, LedgerError, LedgerLocked, os_errors_as
from elmanctl.ledger import files
from elmanctl.ledger.holder import Holder, decode_holder, encode_holder, is_gone, this_process

LEASE_FILE = "lease.json"
STALE_S = 300.0
RENEW_EVERY_S = 30.0

_ASIDE = "lease.aside-*.json"
_ROUNDS = 20
_LOOK_AGAIN_AFTER_S = (0.01, 0.05, 0.2)


@dataclass(frozen=True, slots=True, kw_only=True)
class _Found:
    """A lease file as it was read."""

    raw: bytes
    modified_at_s: float

    @property
    def holder(self) -> Holder | None:
        """Who made it; None where its contents are damaged."""
        return decode_holder(self.raw)


class Lease:
    """The right to write to the run in one folder, from `acquire` to `release`."""

    def __init__(self, path: Path, holder: Holder, raw: bytes) -> None:
        self.holder = holder
        self.has_writer = False
        self._path = path
        self._raw = raw
        self._is_released = False
        self._renewed_at_s = time.monotonic()

    @classmethod
    def acquire(
        cls,
        folder: Path,
        *,
        minimum_fence: int = 0,
        stale_s: float = STALE_S,
        host: str | None = None,
    ) -> "Lease":
        """Take the lease of the run in `folder`.

        `minimum_fence` is the highest fence in the run's ledger; the lease gets a higher one.
        `stale_s` is for how long a holder on another machine may give no sign of life, by the
        clock of the file system; it must exceed the time for which an NFS client believes its
        cache (60 s by default).

        Raises LedgerLocked when another process has it, LedgerError when the folder cannot be
        written.
        """
        path = folder / LEASE_FILE
        host = host or socket.gethostname()
        try:
            for _ in range(_ROUNDS):
                found = _look(path)
                if found is not None:
                    if not _is_stale(found, host, folder, stale_s):
                        raise _locked(found, stale_s)
                    _move_aside(path, found.raw)
                lease = _place(
                    path, this_process(host, 1 + max(minimum_fence, _highest_fence(folder)))
                )
                if lease is not None:
                    return lease
        except OSError as exc:
            raise LedgerError(
                f"cannot take the lease in {folder}: {exc.strerror}",
                hint="move the run to a file system with hard links, and its `paths.runs` with it"
                if isinstance(exc, files.NoHardLinks)
                else None,
            ) from exc
        raise LedgerLocked(
            f"several processes are taking over the run in {folder}", hint="try again"
        )

    @property
    def fence(self) -> int:
        """The number of this lease, higher than that of every lease that wrote before it."""
        return self.holder.fence

    def check(self) -> None:
        """Raise LeaseLost unless this process still holds the lease."""
        if self._is_released:
            raise LeaseLost("this process has released its lease of the run")
        if os.getpid() != self.holder.pid:
            raise LeaseLost(f"the lease of the run belongs to the parent, {self.holder}")
        found = _look_or_fail(self._path)
        for delay_s in _LOOK_AGAIN_AFTER_S:
            if found is not None:
                break
            # A process that moved the wrong lease aside puts it back at once.
            time.sleep(delay_s)
            found = _look_or_fail(self._path)
        if found is None or found.raw != self._raw:
            raise LeaseLost(
                f"the lease of the run was taken over by {_name(found)}",
                hint="this process must stop; the other one goes on with the run",
            )

    def renew(self, *, every_s: float = RENEW_EVERY_S) -> None:
        """Give a sign of life, unless one was given less than `every_s` seconds ago.

        Raises LeaseLost.
        """
        if time.monotonic() - self._renewed_at_s < every_s:
            return
        self.check()
        with os_errors_as(LedgerError, f"cannot renew {self._path}"):
            os.utime(self._path)
        self._renewed_at_s = time.monotonic()

    def release(self) -> None:
        """Give the lease back if this process still has it; a forked child never has."""
        if self._is_released or os.getpid() != self.holder.pid:
            return
        self._is_released = True
        with os_errors_as(LedgerError, f"cannot release {self._path}"):
            aside = _move_aside(self._path, self._raw)
            if aside is not None:
                aside.unlink(missing_ok=True)

    def __enter__(self) -> "Lease":
        return self

    def __exit__(self, *error: object) -> None:
        self.release()


def read_holder(folder: Path) -> Holder | None:
    """Return the holder of the lease of the run in `folder`, dead or alive, or None.

    Raises LedgerCorrupt when the lease cannot be understood.
    """
    path = folder / LEASE_FILE
    found = _look_or_fail(path)
    if found is None:
        return None
    if found.holder is None:
        raise LedgerCorrupt(
            f"{path} is damaged", hint="remove it when no controller of this run is alive"
        )
    return found.holder


def lease_age_s(folder: Path, now_s: float) -> float | None:
    """Return the seconds since the lease was last renewed, None without one.

    For readers, who write no probe: `now_s` is this machine's clock.
    """
    found = _look(folder / LEASE_FILE)
    return None if found is None else now_s - found.modified_at_s


def _is_stale(found: _Found, host: str, folder: Path, stale_s: float) -> bool:
    gone = is_gone(found.holder, host) if found.holder is not None else None
    if gone is not None:
        return gone
    return _file_system_now_s(folder) - found.modified_at_s > stale_s


def _place(path: Path, holder: Holder) -> Lease | None:
    """Make the lease file; None when another process was first, or got the same number."""
    raw = encode_holder(holder)
    try:
        files.create_atomically(path, raw)
    except FileExistsError:
        return None
    lease = Lease(path, holder, raw)
    asides = {aside: _look(aside) for aside in path.parent.glob(_ASIDE)}
    for aside, found in asides.items():
        if found is None or found.raw == raw:
            # Gone, or our own, which the process that moved it is about to put back.
            continue
        if found.holder is not None and found.holder.fence >= holder.fence:
            # Another process took this number between our look and our link.
            lease.release()
            return None
        aside.unlink(missing_ok=True)
    return lease


def _move_aside(path: Path, judged: bytes) -> Path | None:
    """Take away one particular lease; return where it is now, or None if it is not there.

    Renaming is a step of which exactly one process is capable.  Another lease than the judged one
    is put back; where that place is taken again, it stays aside as the record of its number.
    """
    aside = path.with_name(_ASIDE.replace("*", os.urandom(8).hex()))
    try:
        if files.read_small(path) != judged:
            return None
        path.rename(aside)
        if files.read_small(aside) == judged:
            return aside
        files.link(path, aside)
    except (FileNotFoundError, FileExistsError):
        return None
    aside.unlink(missing_ok=True)
    return None


def _highest_fence(folder: Path) -> int:
    """Return the highest number of any lease file in the folder, 0 for none."""
    leases = map(_look, (folder / LEASE_FILE, *folder.glob(_ASIDE)))
    return max((found.holder.fence for found in leases if found and found.holder), default=0)


def _look_or_fail(path: Path) -> _Found | None:
    with os_errors_as(LedgerError, f"cannot read {path}"):
        return _look(path)


def _look(path: Path) -> _Found | None:
    try:
        # Opening is what makes an NFS client ask the server again.
        with files.open_regular(path) as file:
            # What is longer is no lease; its beginning is damaged, and never equal to a whole one.
            raw = file.read(files.SMALL_BYTES)
            modified_at_s = os.fstat(file.fileno()).st_mtime
    except FileNotFoundError:
        return None
    return _Found(raw=raw, modified_at_s=modified_at_s)


def _file_system_now_s(folder: Path) -> float:
    """Return the time by the clock that gives files in `folder` their times."""
    probe = folder / f".lease-probe-{os.urandom(8).hex()}.tmp"
    try:
        probe.touch(exist_ok=False)
        os.utime(probe)
        return probe.stat().st_mtime
    finally:
        probe.unlink(missing_ok=True)


def _locked(found: _Found, stale_s: float) -> LedgerLocked:
    return LedgerLocked(
        f"the run is held by {_name(found)}",
        hint="wait for it, or end that process; on another machine its lease is free"
        f" {stale_s:.0f} s after its last sign of life",
    )


def _name(found: _Found | None) -> str:
    if found is None:
        return "an unknown holder"
    return str(found.holder) if found.holder is not None else "a holder whose lease is damaged"
