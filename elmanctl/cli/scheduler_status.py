"""Scheduler status for `status` and the live view, from the note that the controller leaves."""

import time
from contextlib import suppress
from dataclasses import asdict
from typing import Any

from elmanctl import clock
from elmanctl.cli.rows import evaluation_row, with_progress
from elmanctl.errors import LedgerCorrupt
from elmanctl.ledger.holder import is_gone
from elmanctl.ledger.lease import STALE_S, lease_age_s, read_holder
from elmanctl.ledger.records import Evaluation, RunStatus, State
from elmanctl.ledger.run_state import RunState
from elmanctl.ledger.summary import RunSummary
from elmanctl.run.paths import RunPaths
from elmanctl.schedulers.scheduler_note import SchedulerNote, read_note


def has_controller(paths: RunPaths) -> bool:
    """Whether a controller is running, as far as this machine can know.

    On another machine, or with a damaged lease, it counts as alive while the lease is renewed.
    """
    gone: bool | None = None
    with suppress(LedgerCorrupt):
        holder = read_holder(paths.folder)
        gone = holder is None or is_gone(holder)
    if gone is None:
        age_s = lease_age_s(paths.folder, time.time())
        gone = age_s is None or age_s > STALE_S
    return not gone


def current_note(paths: RunPaths, found: RunState | RunSummary) -> SchedulerNote | None:
    """Return the note of the last poll of the running controller, ignoring earlier controllers."""
    if found.status is not RunStatus.RUNNING or not has_controller(paths):
        return None
    note = read_note(paths.scheduler)
    began = (found.controller or {}).get("at")
    if note is None or began is None:
        return None
    return note if clock.from_text(note.at) >= clock.from_text(str(began)) else None


def note_data(note: SchedulerNote | None) -> dict[str, Any] | None:
    """Return a note as plain data; a stale one has its age only."""
    if note is None:
        return None
    data = asdict(note) if not note.is_stale else {"at": note.at}
    for of_file in ("version", "pending", "unlisted"):
        data.pop(of_file, None)
    return {**data, "age_s": round(note.age_s, 3), "is_stale": note.is_stale}


def note_line(note: SchedulerNote) -> str:
    """Return one line on the last poll: its age, missing answers, missing accounting."""
    age = clock.format_rough(note.age_s)
    if note.is_stale:
        return f"last poll {age} ago: the controller hangs, or cannot write to the run's folder"
    text = f"last poll {age} ago"
    if note.silent_reason:
        text += f", incomplete: {note.silent_reason}"
    if note.accounting is False:
        text += "; no accounting, so only squeue and files tell how a job ended"
    if note.refusal:
        text += f"; {note.refusal.text}"
    return text


def live_row(paths: RunPaths, evaluation: Evaluation, note: SchedulerNote | None) -> dict[str, Any]:
    """Return an evaluation's row with what its worker and the scheduler report of it."""
    row = _with_pending_reason(evaluation_row(evaluation), note)
    return with_progress(row, paths, evaluation)


def _with_pending_reason(row: dict[str, Any], note: SchedulerNote | None) -> dict[str, Any]:
    """Add to an evaluation's row why its job is pending, or why it may be lost."""
    job, notes = str(row["job"]), []
    if note is not None and not note.is_stale:
        if row["state"] == State.SUBMITTED:
            notes.append(note.pending.get(job))
        if row["state"] in (State.SUBMITTED, State.RUNNING):
            notes.append(note.unlisted.get(job))
    reasons = [text for text in (row["reason"], *notes) if text]
    return {**row, "reason": "; ".join(reasons) or None}
