"""What `status` says of the scheduler: from a small file that the controller leaves."""

import time
from contextlib import suppress
from dataclasses import asdict
from typing import Any

from elmanctl import clock
from elmanctl.errors import LedgerCorrupt
from elmanctl.ledger.lease import STALE_S, is_gone, lease_age_s, read_holder
from elmanctl.ledger.records import RunStatus, State
from elmanctl.ledger.run_state import RunState
from elmanctl.ledger.summary import RunSummary
from elmanctl.run.paths import RunPaths
from elmanctl.schedulers.scheduler_note import SchedulerNote, read_note


def is_driven(paths: RunPaths) -> bool:
    """Whether a controller is at work on a run, as far as this machine can know.

    One on another machine, or whose lease is damaged, counts as alive while that is renewed.
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
    """Return what the controller at work wrote at its last poll; no earlier one's counts."""
    if found.status is not RunStatus.RUNNING or not is_driven(paths):
        return None
    note = read_note(paths.scheduler)
    began = (found.controller or {}).get("at")
    if note is None or began is None:
        return None
    return note if clock.from_text(note.at) >= clock.from_text(str(began)) else None


def note_data(note: SchedulerNote | None) -> dict[str, Any] | None:
    """Return a note as plain data; one that is stale tells its age, and nothing else."""
    if note is None:
        return None
    told = asdict(note) if not note.is_stale else {"at": note.at}
    for of_jobs in ("pending", "unlisted"):
        told.pop(of_jobs, None)
    return {**told, "age_s": round(note.age_s, 3), "is_stale": note.is_stale}


def note_line(note: SchedulerNote) -> str:
    """Return one line on the last poll: its age, a silence, missing accounting."""
    age = clock.format_rough(note.age_s)
    if note.is_stale:
        return f"Slurm was last asked {age} ago: the controller hangs, or cannot write its folder"
    text = f"Slurm was asked {age} ago"
    if note.silent_reason:
        text += f" and did not answer everything: {note.silent_reason}"
    if note.accounting is False:
        text += "; no accounting here, so that only squeue and files tell how a job ended"
    if note.refusal:
        text += f"; {note.refusal.text}"
    return text


def with_pending_reason(row: dict[str, Any], note: SchedulerNote | None) -> dict[str, Any]:
    """Return an evaluation's row with why its job waits, or why it may be gone."""
    job, told = str(row["job"]), []
    if note is not None and not note.is_stale:
        if row["state"] == State.SUBMITTED:
            told.append(note.pending.get(job))
        if row["state"] in (State.SUBMITTED, State.RUNNING):
            told.append(note.unlisted.get(job))
    reasons = [text for text in (row["reason"], *told) if text]
    return {**row, "reason": "; ".join(reasons) or None}
