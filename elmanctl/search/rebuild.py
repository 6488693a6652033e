"""The optimizer's state made again from the ledger, by asking and telling all from the start."""

import hashlib
from collections.abc import Iterable
from dataclasses import replace
from typing import Any

from elmanctl.errors import ElmanError, LedgerError
from elmanctl.ledger.events import Event
from elmanctl.ledger.files import write_atomically
from elmanctl.ledger.payloads import (
    GenerationTold,
    OptimizerFile,
    OptimizerRebuilt,
    PointsAsked,
    SettingsChanged,
    decode_payload,
)
from elmanctl.search.effective_settings import effective_settings
from elmanctl.search.loop import start_optimizer
from elmanctl.search.session import Session
from elmanctl.space.candidates import CandidateBuilder, ask_candidates
from elmanctl.space.space import SearchSpace


def rebuild_optimizer(session: Session, events: Iterable[Event]) -> bytes:
    """Return the optimizer's state after the newest points were asked.

    Every point that is asked on the way is compared with the one on record.  Raises LedgerError
    for one that differs: other versions of pycma or numpy draw other points.
    """
    optimizer = start_optimizer(session)
    changes: dict[str, Any] = {}
    builder = _builder(session, changes)
    state = optimizer.dump()
    for event in events:
        payload = decode_payload(event.kind, event.data)
        if isinstance(payload, SettingsChanged):
            # What is known of a GPU's memory decides which points are refused.
            changes |= payload.changes
            builder = _builder(session, changes)
        elif isinstance(payload, PointsAsked):
            asked = payload.evaluations
            try:
                candidates, refused = ask_candidates(optimizer.ask, builder, len(asked))
            except ElmanError as exc:
                raise _differs(event, exc.message) from exc
            points = [candidate.point for candidate in candidates]
            if points != [plan.point for plan in asked] or refused != payload.refused:
                raise _differs(event, "its points are not those that the seed gives here")
            state = optimizer.dump()
        elif isinstance(payload, GenerationTold):
            points = [session.state.evaluations[name].point for name, _ in payload.told]
            optimizer.tell(points, [value for _, value in payload.told])
    return state


def _builder(session: Session, changes: dict[str, Any]) -> CandidateBuilder:
    """Return what judged the points of a run when these were its changes of settings."""
    space = SearchSpace.decode(session.run["space"])
    settings = effective_settings(replace(session.state, changes=changes))
    return CandidateBuilder(space, settings, session.run["executor"])


def restore_optimizer(session: Session, state: bytes) -> str:
    """Write a state that was made again and put it on record; return the file's name."""
    saved = session.state.optimizer_file
    assert saved is not None, "nothing was ever asked"
    digest = hashlib.sha256(state).hexdigest()
    name = str(saved["file"])
    if digest != saved["sha256"]:
        # Equal states may be pickled to other bytes; the old file stays for whoever wants it.
        name = f"{name.removesuffix('.pickle')}-rebuilt-{session.state.seq}.pickle"
    session.paths.optimizer.mkdir(exist_ok=True)
    write_atomically(session.paths.optimizer / name, state)
    if digest != saved["sha256"]:
        session.record(OptimizerRebuilt(optimizer=OptimizerFile(file=name, sha256=digest)))
    return name


def _differs(event: Event, why: str) -> LedgerError:
    generation = event.data["generation"]
    return LedgerError(
        "the optimizer cannot be made again:"
        f" at generation {generation} (event {event.seq}), {why}",
        hint="copy the folder `optimizer` from a backup, or use the versions that"
        " `elmanctl ledger export` shows under `run.versions`",
    )
