"""Lock-free reader of a ledger file: accepted events, a torn last line, damage."""

from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

from elmanctl.errors import LedgerCorrupt, LedgerError, LedgerTooNew, NotFound
from elmanctl.ledger.events import DamagedLine, Event, decode_line, holds_whole_event
from elmanctl.ledger.files import open_regular

RESTORE_HINT = (
    "nothing was changed; copy the ledger from a backup, or keep the lines before the damaged one,"
    " which are intact: `elmanctl ledger repair` (docs/concepts/ledger.md)"
)

_READS = 3

# Far beyond any event: a search of 10,000 points a generation asks for them in 4 MiB.
LONGEST_LINE_BYTES = 64 << 20
_BLOCK_BYTES = 1 << 20


@dataclass(frozen=True, slots=True, kw_only=True)
class LedgerContents:
    """The contents of a ledger: the accepted events, and the bytes of a torn last line.

    The first `good_size_bytes` bytes of the file are whole lines, except that the last of them
    has no newline where `lacks_newline` says so.  The line of the last accepted event begins at
    `last_line_at`.
    """

    events: tuple[Event, ...]
    last_line_at: int = 0
    torn: bytes = b""
    warning: str | None = None
    good_size_bytes: int = 0
    lacks_newline: bool = False

    @property
    def highest_fence(self) -> int:
        """The number of the newest lease that wrote; 0 for an empty ledger."""
        return self.events[-1].fence if self.events else 0


def read_events(path: Path) -> LedgerContents:
    """Read a ledger without writing anything and without waiting for a lock.

    Raises NotFound when there is none, LedgerCorrupt for damage elsewhere than in a torn last
    line, LedgerTooNew for a newer format, LedgerError when the file cannot be read.
    """
    for _ in range(_READS - 1):
        # What looks damaged may be a line that is being written or repaired at this very moment.
        with suppress(LedgerCorrupt):
            contents = parse(_read(path), path)
            if not contents.torn:
                return contents
    return parse(_read(path), path)


def _read(path: Path) -> bytes:
    with opened(path) as file:
        return read_lines(file, path)


@contextmanager
def opened(path: Path) -> Iterator[BinaryIO]:
    """Open a ledger for reading; raises NotFound when there is none, else LedgerError."""
    try:
        with open_regular(path) as file:
            yield file
    except FileNotFoundError as exc:
        raise NotFound(f"there is no ledger at {path}") from exc
    except OSError as exc:
        raise LedgerError(f"cannot read {path}: {exc.strerror}") from exc


def read_lines(file: BinaryIO, path: Path) -> bytes:
    """Return all that follows in a ledger that is open.

    Raises LedgerCorrupt for what cannot be lines of a ledger, before it fills the memory.
    """
    blocks: list[bytes] = []
    since_newline = 0
    while block := file.read(_BLOCK_BYTES):
        blocks.append(block)
        since_newline = 0 if b"\n" in block else since_newline + len(block)
        if since_newline > LONGEST_LINE_BYTES:
            raise LedgerCorrupt(
                f"{path} holds a line of more than {LONGEST_LINE_BYTES >> 20} MiB",
                hint=RESTORE_HINT,
            )
    return b"".join(blocks)


def parse(raw: bytes, path: Path, *, first: int = 1) -> LedgerContents:
    """Decide which lines count, of a ledger or of the part that begins with event `first`.

    Raises LedgerCorrupt, LedgerTooNew.
    """
    *lines, tail = raw.split(b"\n")
    events: list[Event] = []
    stale = 0
    torn = b""
    lacks_newline = False
    if tail:
        lines.append(tail)
    at = last_line_at = 0
    for number, line in enumerate(lines, start=1):
        try:
            event = decode_line(line)
            stale += accept(events, event, first)
        except (DamagedLine, LedgerCorrupt) as exc:
            # A torn write is a part of one line, so it never holds a right checksum.
            if number < len(lines) or holds_whole_event(line):
                raise LedgerCorrupt(f"{path} line {number}: {exc}", hint=RESTORE_HINT) from exc
            torn = line if tail else line + b"\n"
        except LedgerTooNew as exc:
            raise LedgerTooNew(f"{path} line {number}: {exc}", hint=exc.hint) from exc
        else:
            lacks_newline = bool(tail) and number == len(lines)
            if events[-1] is event:
                last_line_at = at
        at += len(line) + 1
    return LedgerContents(
        last_line_at=last_line_at,
        events=tuple(events),
        torn=torn,
        warning=_warning(path, torn, stale),
        good_size_bytes=len(raw) - len(torn),
        lacks_newline=lacks_newline,
    )


def accept(events: list[Event], event: Event, first: int = 1) -> int:
    """Add `event` to the accepted ones; return how many events of deposed writers it reveals.

    A writer of a newer fence numbers its events from what it saw.  Events of an older fence that
    reached the file after that, before its first one or later, were never seen by it: they do
    not count, and `LedgerWriter.write` raised LeaseLost in their writer.
    """
    fence = events[-1].fence if events else 0
    if event.fence < fence:
        return 1
    expected = events[-1].seq + 1 if events else first
    overtaken = expected - event.seq
    if event.fence > fence and 0 < overtaken < len(events):
        del events[-overtaken:]
    elif overtaken != 0:
        raise LedgerCorrupt(f"event {event.seq} stands where event {expected} belongs")
    events.append(event)
    return overtaken


def _warning(path: Path, torn: bytes, stale: int) -> str | None:
    parts = []
    if torn:
        parts.append(f"a torn last line of {len(torn)} bytes is ignored")
    if stale:
        parts.append(f"{stale} late events of a controller that had lost its lease are skipped")
    return f"{path}: {', and '.join(parts)}" if parts else None
