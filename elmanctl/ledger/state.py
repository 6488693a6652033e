"""Replay: the state of a run is its events applied in order."""

from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from elmanctl import clock
from elmanctl.codec import describe, encode
from elmanctl.errors import LedgerCorrupt, LedgerError, LedgerTooNew
from elmanctl.ledger.contents import RESTORE_HINT, read_events
from elmanctl.ledger.events import Event
from elmanctl.ledger.handlers import handle
from elmanctl.ledger.idle import held_idle_s, idle_slots
from elmanctl.ledger.overlay import Overlay
from elmanctl.ledger.payloads import PAYLOADS, Payload, RunCreated, decode_payload
from elmanctl.ledger.records import RunStatus
from elmanctl.ledger.run_state import RunState
from elmanctl.ledger.store import LEDGER_FILE, Draft, LedgerWriter


@dataclass(frozen=True, slots=True, kw_only=True)
class LoadedRun:
    """A run's state as a reader finds it, and a warning where the ledger is not quite whole."""

    state: RunState
    warning: str | None = None


def load_run(folder: Path) -> LoadedRun:
    """Read the ledger in a run's folder; writes nothing and takes no lock.

    Raises NotFound, LedgerCorrupt, LedgerTooNew.
    """
    path = folder / LEDGER_FILE
    contents = read_events(path)
    warning = contents.warning
    if not contents.events and warning is None:
        warning = f"{path}: there is no event in it"
    return LoadedRun(state=replay(contents.events), warning=warning)


@dataclass(frozen=True, slots=True, kw_only=True)
class Prepared:
    """An event that can follow, a state it was tried on, and the evaluations that it is about."""

    draft: Draft
    trial: RunState
    evaluations: frozenset[str]


def prepare(writer: LedgerWriter, state: RunState, payload: Payload) -> Prepared:
    """Return the next event, after trying it; nothing is changed.

    Raises LedgerError for an event that cannot follow, ValueError for data that a ledger cannot
    hold.
    """
    draft = writer.draft(payload.event_kind(), **encode(payload))
    trial = state.trial()
    try:
        apply(trial, draft.event)
    except LedgerCorrupt as exc:
        raise LedgerError(
            f"refused to write {exc.message}",
            hint="nothing was written; this is a fault of elmanctl",
        ) from exc
    looked_up: Overlay[str, Any] = trial.evaluations  # type: ignore[assignment]
    return Prepared(draft=draft, trial=trial, evaluations=frozenset(looked_up.looked_up))


def commit(writer: LedgerWriter, state: RunState, prepared: Prepared) -> None:
    """Write an event that `prepare` returned, and change `state` as the trial has shown.

    Raises what `LedgerWriter.append` raises; then `state` is unchanged.
    """
    writer.write(prepared.draft)
    state.adopt(prepared.trial)


def replay(events: Iterable[Event]) -> RunState:
    """Return the state that these events lead to."""
    state = RunState()
    for event in events:
        apply(state, event)
    return state


def apply(state: RunState, event: Event) -> None:
    """Change `state` by one event; after an error it must not be used any more.

    Raises LedgerTooNew for an unknown kind, LedgerCorrupt for an event that cannot follow.
    """
    if event.kind not in PAYLOADS:
        raise LedgerTooNew(
            f"event {event.seq} is of the unknown kind {describe(event.kind)}",
            hint="use the version of elmanctl that wrote this run, or a newer one",
        )
    worked_s = _worked_s(state, event)
    try:
        if event.seq != state.seq + 1:
            raise LedgerCorrupt(f"it does not follow event {state.seq}")
        payload = decode_payload(event.kind, event.data)
        if bool(state.run) is isinstance(payload, RunCreated):
            raise LedgerCorrupt("`run_created` must be the first event and the only one")
        slots, idle = idle_slots(state)
        held_idle = held_idle_s(state, idle, worked_s)
        handle(payload, state, event.at)
        state.wall_s += worked_s
        state.slot_s += slots * worked_s
        state.idle_s += idle * worked_s
        state.held_idle_s += held_idle
    except LedgerCorrupt as exc:
        raise LedgerCorrupt(
            f"event {event.seq} ({event.kind}): {exc.message}", hint=RESTORE_HINT
        ) from exc
    state.seq, state.fence, state.last_event_at = event.seq, event.fence, event.at


def _worked_s(state: RunState, event: Event) -> float:
    """Return the seconds up to an event for which a controller was at work since the one before.

    A controller that died is replaced under another lease: the time between them does not count.
    """
    if state.status is not RunStatus.RUNNING or state.controller is None:
        return 0.0
    if event.fence != state.fence or state.last_event_at is None:
        return 0.0
    passed = clock.from_text(event.at) - clock.from_text(state.last_event_at)
    return max(0.0, passed.total_seconds())
