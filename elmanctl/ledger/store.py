"""The single writer of `ledger.jsonl`, which holds the lease of the run."""

import errno
import logging
import os
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path

from elmanctl import clock
from elmanctl.errors import LedgerError, LedgerLocked, os_errors_as
from elmanctl.ledger.contents import LedgerContents, read_events
from elmanctl.ledger.events import Event, decode_line, encode_event
from elmanctl.ledger.files import create_atomically
from elmanctl.ledger.lease import Lease

LEDGER_FILE = "ledger.jsonl"

logger = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True, kw_only=True)
class Draft:
    """An event that may be written next, and its line."""

    event: Event
    line: bytes


class LedgerWriter:
    """The one writer of a ledger, under a lease that it checks at every event.

    Replay `contents.events`, as read when the writer was opened, and not a reading of one's own:
    only then the writer's sequence numbers and the caller's state agree whatever a deposed
    writer still does.  `size_bytes` is the size of the file after the last event, whose line begins
    at `last_line_at`.

    Raises LedgerLocked when a newer lease than this one has written, NotFound, LedgerCorrupt.
    """

    def __init__(self, path: Path, lease: Lease) -> None:
        lease.check()
        self.path = path
        self.lease = lease
        self.contents = read_events(path)
        self._next_seq = len(self.contents.events) + 1
        self.last_line_at = self.contents.last_line_at
        highest = self.contents.highest_fence
        if highest > lease.fence or (highest == lease.fence and not lease.has_writer):
            raise LedgerLocked(
                f"{path} was written under lease {highest}, "
                f"and this process holds lease {lease.fence}",
                hint="another process wrote to the run meanwhile; try again",
            )
        lease.has_writer = True
        self._broken: str | None = None
        with os_errors_as(LedgerError, f"cannot write {path}"):
            self._fd = os.open(path, os.O_WRONLY | os.O_APPEND)
        try:
            self.size_bytes = self._repair(self.contents)
        except BaseException:
            self.close()
            raise

    @classmethod
    def create(cls, path: Path, lease: Lease, kind: str, /, **data: object) -> "LedgerWriter":
        """Make a new ledger that holds its first event from the moment it exists.

        Raises LedgerError when there is one already, or no room for it.
        """
        lease.check()
        line = _draft(1, lease.fence, kind, data).line
        try:
            create_atomically(path, line)
        except FileExistsError as exc:
            raise LedgerError(f"there is already a ledger at {path}") from exc
        except OSError as exc:
            raise _not_written(path, exc) from exc
        lease.has_writer = True
        return cls(path, lease)

    def __enter__(self) -> "LedgerWriter":
        return self

    def __exit__(self, *error: object) -> None:
        self.close()

    def append(self, kind: str, /, **data: object) -> Event:
        """Write one event durably and return it as every reader will see it.

        When this returns, the event is on disk and every later writer has taken it into account.
        Raises ValueError for data that a ledger cannot hold; LedgerError when the event could not
        be written, and the file is as before; LeaseLost when another process took over, which
        has then decided whether the event counts.  Where the file could not be put back, or the
        lease not be read, every further event is refused.
        """
        return self.write(self.draft(kind, **data))

    def draft(self, kind: str, /, **data: object) -> Draft:
        """Return the event that `append` would write next, without writing it."""
        return _draft(self._next_seq, self.lease.fence, kind, data)

    def write(self, draft: Draft) -> Event:
        """Write an event that `draft` returned; see `append`."""
        event, line = draft.event, draft.line
        if self._broken is not None:
            raise LedgerError(f"{self.path}: {self._broken}", hint="open the ledger again")
        if event.seq != self._next_seq:
            raise LedgerError(f"event {event.seq} is not the next one of {self.path}")
        self.lease.check()
        start = self._start_of_next()
        self._broken = "whether the last event counts is unknown"
        try:
            _write_whole(self._fd, line)
        except BaseException as exc:
            self._roll_back(start, len(line))
            if isinstance(exc, OSError):
                raise _not_written(self.path, exc) from exc
            raise
        # Only if the lease still holds after the event is on disk has every later holder seen it.
        self.lease.check()
        self._broken = None
        self.size_bytes = start + len(line)
        self.last_line_at = start
        self._next_seq += 1
        return event

    def forget(self) -> None:
        """Give up the events that were read at the opening, once they are replayed."""
        self.contents = replace(self.contents, events=())

    def close(self) -> None:
        """Close the file; the lease stays as it is."""
        if self._fd >= 0:
            os.close(self._fd)
        self._fd = -1
        self._broken = "the writer is closed"

    def _start_of_next(self) -> int:
        """Return the size of the file, repaired if another writer appended to it meanwhile.

        Only a writer that was deposed and does not know it yet can have done that.  Whole lines of
        it are skipped by readers; half a line would make ours unreadable.
        """
        size_bytes = os.fstat(self._fd).st_size
        if size_bytes == self.size_bytes:
            return size_bytes
        return self._repair(read_events(self.path))

    def _repair(self, contents: LedgerContents) -> int:
        """Make the file end after a whole line, keep what was torn beside it, return the size."""
        try:
            if contents.torn:
                _keep_torn(self.path, contents.torn)
                os.ftruncate(self._fd, contents.good_size_bytes)
                os.fsync(self._fd)
            if contents.lacks_newline:
                _write_whole(self._fd, b"\n")
        except OSError as exc:
            raise _not_written(self.path, exc) from exc
        return os.fstat(self._fd).st_size

    def _roll_back(self, start: int, length: int) -> None:
        """Take back a line that could not be written; else the writer stays broken."""
        try:
            self.lease.check()
            # Bytes past the end of our own are a newer writer's.
            if os.fstat(self._fd).st_size <= start + length:
                os.ftruncate(self._fd, start)
                os.fsync(self._fd)
                self._broken = None
        except (OSError, LedgerError) as exc:
            logger.warning("%s: a half-written event stays at its end: %s", self.path, exc)


def _draft(seq: int, fence: int, kind: str, data: Mapping[str, object]) -> Draft:
    """Return an event as it will be read back, tuples as lists and all."""
    at = clock.to_text(clock.now())
    line = encode_event(Event(seq=seq, at=at, fence=fence, kind=kind, data=data))
    return Draft(event=decode_line(line.removesuffix(b"\n")), line=line)


def _write_whole(fd: int, data: bytes) -> None:
    """Write in one call, so that no other writer's bytes can come between, and make it durable."""
    written = os.write(fd, data)
    if written < len(data):
        raise OSError(errno.ENOSPC, f"only {written} of {len(data)} bytes could be written")
    os.fsync(fd)


def _keep_torn(path: Path, torn: bytes) -> None:
    """Save the bytes that a repair is about to cut off."""
    moment = clock.to_text(clock.now()).replace(":", "").replace("-", "")
    kept = path.with_name(f"{path.stem}.torn-{moment}-{os.urandom(2).hex()}")
    create_atomically(kept, torn)


def _not_written(path: Path, exc: OSError) -> LedgerError:
    return LedgerError(
        f"cannot write {path}: {exc.strerror or exc}",
        hint="free some disk space or quota, then `elmanctl resume`; nothing recorded is lost",
    )
