"""Ledgers and states of runs, made from stories."""

from pathlib import Path
from typing import Any

from elmanctl import clock
from elmanctl.ledger.events import Event, encode_event
from elmanctl.ledger.lease import Lease
from elmanctl.ledger.run_state import RunState
from elmanctl.ledger.state import replay
from elmanctl.ledger.store import LEDGER_FILE, LedgerWriter

Story = list[tuple[str, dict[str, Any]]]


def write_story(folder: Path, story: Story) -> Path:
    path = folder / LEDGER_FILE
    with Lease.acquire(folder) as lease:
        (kind, data), *rest = story
        with LedgerWriter.create(path, lease, kind, **data) as writer:
            for kind, data in rest:
                writer.append(kind, **data)
    return path


def note(seq: int, fence: int, text: str = "x") -> bytes:
    at = clock.to_text(clock.now())
    return encode_event(Event(seq=seq, at=at, fence=fence, kind="note", data={"text": text}))


def lines_of(path: Path) -> list[bytes]:
    return path.read_bytes().splitlines(keepends=True)


def told_by(story: Story) -> RunState:
    """Replay a story as events of one lease."""
    return replay(
        Event(seq=seq, at=f"2026-05-01T10:00:{seq:02}.000Z", fence=1, kind=kind, data=data)
        for seq, (kind, data) in enumerate(story, start=1)
    )


def close(name: str, state: str) -> tuple[str, dict[str, Any]]:
    return ("evaluation_closed", {"evaluation": name, "state": state})


def reopen(name: str, **changes: object) -> tuple[str, dict[str, Any]]:
    return ("evaluation_reopened", {"evaluation": name, "changes": changes, "by": "me"})
