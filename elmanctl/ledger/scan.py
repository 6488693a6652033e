"""Fault-tolerant scan of a ledger to its end: intact events and faults."""

import os
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

from elmanctl.errors import LedgerCorrupt, LedgerTooNew
from elmanctl.ledger.contents import LONGEST_LINE_BYTES, RESTORE_HINT, accept, opened
from elmanctl.ledger.events import DamagedLine, Event, decode_line, holds_whole_event
from elmanctl.ledger.run_state import RunState
from elmanctl.ledger.state import apply
from elmanctl.ledger.store import LEDGER_FILE


@dataclass(frozen=True, slots=True, kw_only=True)
class Fault:
    """One thing that is wrong in a run folder: the file, and its line counted from 1 if known."""

    text: str
    line: int | None = None
    file: str = LEDGER_FILE


@dataclass(slots=True, kw_only=True)
class Scan:
    """What a ledger holds.

    `state` and `events` are what stands before the first fault, in the first `good_size_bytes`
    bytes; `later` are the events after it whose checksum is right.  `torn_bytes` is the length of
    an incomplete last line, which is no fault.  `stale` counts the late events of writers that had
    lost their lease.
    """

    state: RunState = field(default_factory=RunState)
    events: list[Event] = field(default_factory=list)
    good_size_bytes: int = 0
    faults: list[Fault] = field(default_factory=list)
    later: list[Event] = field(default_factory=list)
    torn_bytes: int = 0
    stale: int = 0
    highest_fence: int = 0


@dataclass(frozen=True, slots=True)
class _Line:
    number: int
    begins_at: int
    raw: bytes
    is_last: bool


def scan(path: Path) -> Scan:
    """Read every line of a ledger.

    Raises NotFound, LedgerError when it cannot be read, LedgerTooNew for a newer format,
    LedgerCorrupt for a line that no memory should hold.
    """
    found = Scan()
    # Of each accepted event, the number of its line.
    lines: list[int] = []
    for line in _lines(path):
        found.good_size_bytes = line.begins_at + len(line.raw)
        try:
            event = decode_line(line.raw.removesuffix(b"\n"))
        except DamagedLine as exc:
            if line.is_last and not holds_whole_event(line.raw):
                found.torn_bytes = len(line.raw)
                found.good_size_bytes = line.begins_at
            else:
                found.faults.append(Fault(line=line.number, text=str(exc)))
            continue
        except LedgerTooNew as exc:
            raise LedgerTooNew(f"{path} line {line.number}: {exc}", hint=exc.hint) from exc
        found.highest_fence = max(found.highest_fence, event.fence)
        if found.faults:
            found.later.append(event)
            continue
        try:
            found.stale += accept(found.events, event)
        except LedgerCorrupt as exc:
            found.faults.append(Fault(line=line.number, text=exc.message))
            found.later.append(event)
            continue
        if found.events[-1] is event:
            del lines[len(found.events) - 1 :]
            lines.append(line.number)
    _replay(found, lines)
    if found.faults:
        first = found.faults[0].line
        found.good_size_bytes = next(x.begins_at for x in _lines(path) if x.number == first)
    return found


def _replay(found: Scan, lines: list[int]) -> None:
    """Apply the accepted events, as far as each can follow those before it."""
    for index, event in enumerate(found.events):
        trial = found.state.trial()
        try:
            apply(trial, event)
        except LedgerCorrupt as exc:
            found.faults.insert(0, Fault(line=lines[index], text=exc.message))
            found.later[:0] = found.events[index:]
            del found.events[index:]
            return
        apply(found.state, event)


def _lines(path: Path) -> Iterator[_Line]:
    """Yield the lines of a file, each with its newline."""
    with opened(path) as file:
        size_bytes = os.fstat(file.fileno()).st_size
        begins_at = 0
        lines = iter(lambda: file.readline(LONGEST_LINE_BYTES), b"")
        for number, raw in enumerate(lines, start=1):
            ends_at = begins_at + len(raw)
            if len(raw) == LONGEST_LINE_BYTES:
                raise LedgerCorrupt(
                    f"{path} line {number} is longer than {LONGEST_LINE_BYTES >> 20} MiB",
                    hint=RESTORE_HINT,
                )
            yield _Line(number, begins_at, raw, ends_at >= size_bytes)
            begins_at = ends_at
