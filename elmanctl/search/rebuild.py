"""Rebuild of the optimizer's state from the ledger, by replaying every ask and tell."""

import hashlib
from collections.abc import Iterable
from dataclasses import replace
from typing import Any

from elmanctl.errors import ElmanError, LedgerError
from elmanctl.ledger import payloads
from elmanctl.ledger.events import Event
from elmanctl.ledger.files import write_atomically
from elmanctl.search.effective_settings import effective_settings
from elmanctl.search.loop import start_optimizer
from elmanctl.search.session import Session
from elmanctl.space.candidates import CandidateBuilder, ask_candidates
from elmanctl.space.space import SearchSpace


def rebuild_optimizer(session: Session, events: Iterable[Event]) -> bytes:
    """Return the optimizer's state after the newest points were asked.

    Raises LedgerError for a point that differs from the recorded one: other versions of pycma or
    numpy draw other points.
    """
    optimizer = start_optimizer(session)
    changes: dict[str, Any] = {}
    builder = _builder(session, changes)
    state = optimizer.dump()
    for event in events:
        payload = payloads.decode_payload(event.kind, event.data)
        if isinstance(payload, payloads.SettingsChanged):
            # The memory of a GPU decides which points are refused.
            changes |= payload.changes
            builder = _builder(session, changes)
        elif isinstance(payload, payloads.PointsAsked):
            asked = payload.evaluations
            try:
                candidates, refused = ask_candidates(optimizer.ask, builder, len(asked))
            except ElmanError as exc:
                raise _differs(event, exc.message) from exc
            points = [candidate.point for candidate in candidates]
            if points != [plan.point for plan in asked] or refused != payload.refused:
                raise _differs(event, "its points are not those that the seed gives here")
            state = optimizer.dump()
        elif isinstance(payload, payloads.GenerationTold):
            points = [session.state.evaluations[name].point for name, _ in payload.told]
            optimizer.tell(points, [value for _, value in payload.told])
    return state


def _builder(session: Session, changes: dict[str, Any]) -> CandidateBuilder:
    """Return the builder of candidates under these changes of settings."""
    space = SearchSpace.decode(session.run["space"])
    settings = effective_settings(replace(session.state, changes=changes))
    return CandidateBuilder(space, settings, session.run["executor"])


def restore_optimizer(session: Session, state: bytes) -> str:
    """Write and record a rebuilt state; return the name of its file."""
    saved = session.state.optimizer_file
    assert saved is not None, "nothing was ever asked"
    digest = hashlib.sha256(state).hexdigest()
    name = str(saved["file"])
    if digest != saved["sha256"]:
        # Equal states may pickle to other bytes; the old file is kept.
        name = f"{name.removesuffix('.pickle')}-rebuilt-{session.state.seq}.pickle"
    session.paths.optimizer.mkdir(exist_ok=True)
    write_atomically(session.paths.optimizer / name, state)
    if digest != saved["sha256"]:
        session.record(
            payloads.OptimizerRebuilt(optimizer=payloads.OptimizerFile(file=name, sha256=digest))
        )
    return name


def _differs(event: Event, why: str) -> LedgerError:
    generation = event.data["generation"]
    return LedgerError(
        f"the optimizer cannot be rebuilt: at generation {generation} (event {event.seq}), {why}",
        # numpy's wheels choose their kernels by the CPU, and the last digits of points with them.
        hint="copy the folder `optimizer` from a backup, or use the versions that"
        " `elmanctl ledger export` shows under `run.versions`, on a CPU of the type it began on",
    )
