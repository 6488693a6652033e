"""Idle slots: places for an attempt that stand empty though points are still to come; pure.

The slots of a search on this machine are its GPUs or workers, those of one on Slurm as many as
`search.max_jobs`; a generational search never fills more than its population.  They count while a
controller is at work, from the first submission until the last point is asked.

A job of several attempts holds the GPUs of those that have ended until the last one has, and an
allocation holds its slots: what stands empty there is paid for.
"""

from dataclasses import replace
from typing import Any

from elmanctl import clock
from elmanctl.ledger.run_state import HeldJob, RunState
from elmanctl.ledger.submissions import Submission

# Of a ledger without the setting.
_DEFAULTS = {
    ("search", "mode"): "generational",
    ("search", "max_jobs"): 64,
    ("local", "workers"): 2,
    ("train", "gpus"): 1,
}


def slots_of(state: RunState) -> int:
    """Return how many attempts of a run may be at work at one time."""
    population = int(_setting(state, "search", "population") or 1)
    slots = int(_setting(state, "search", "max_jobs"))
    if state.run["executor"] == "local":
        gpus = _setting(state, "local", "gpus") or ()
        each = int(_setting(state, "train", "gpus"))
        slots = len(gpus) // each if gpus else int(_setting(state, "local", "workers"))
    # Those of the allocation in which the newest controller works, or worked.
    inside = (state.controller or {}).get("slots")
    slots = slots if inside is None else min(slots, inside)
    is_generational = _setting(state, "search", "mode") == "generational"
    return min(slots, population) if is_generational else slots


def is_asking(state: RunState) -> bool:
    """Whether points are still to come, and the first ones were submitted."""
    is_last = state.generation + 1 >= state.generations
    return state.trained > 0 and not is_last and state.ended_by is None


def idle_slots(state: RunState) -> tuple[int, int]:
    """Return the slots of a run and how many of them stand empty; both 0 where none counts."""
    if not state.run or not is_asking(state):
        return 0, 0
    slots = slots_of(state)
    return slots, max(0, slots - state.totals.get("live", 0))


def held_idle_s(state: RunState, idle: int, passed_s: float) -> float:
    """Return the GPU-seconds of so many idle slots that an allocation holds; 0 without one."""
    is_inside = (state.controller or {}).get("slots") is not None
    return idle * passed_s * int(_setting(state, "train", "gpus")) if is_inside else 0.0


def hold_jobs(state: RunState, submission: Submission) -> None:
    """Note the jobs of a submission that have several attempts each."""
    per_job, count = submission.resources.per_job, len(submission.tasks)
    for first in range(0, count if per_job > 1 else 0, per_job):
        lanes = min(per_job, count - first)
        state.held_jobs[_job(submission.id, first, per_job)] = HeldJob(lanes=lanes)


def release_jobs(state: RunState, submission: Submission) -> None:
    """Forget the jobs of a submission that was not accepted."""
    for name in [one for one in state.held_jobs if one.startswith(f"{submission.id}/")]:
        del state.held_jobs[name]


def end_lane(
    state: RunState, submission: Submission, index: int, devices: int, at: str | None
) -> None:
    """Note the end of an attempt, and with the last of its job what the others held until then."""
    name = _job(submission.id, index, submission.resources.per_job)
    job = state.held_jobs.get(name)
    if job is None or at is None:
        return
    end_s = clock.from_text(at).timestamp()
    ended, sum_s = job.ended + 1, job.ends_s + end_s
    if ended < job.lanes:
        state.held_jobs[name] = replace(job, ended=ended, ends_s=sum_s)
        return
    del state.held_jobs[name]
    state.held_idle_s += max(0.0, job.lanes * end_s - sum_s) * devices


def _job(submission: str, index: int, per_job: int) -> str:
    return f"{submission}/{index // per_job}"


def _setting(state: RunState, section: str, name: str) -> Any:
    recorded = state.run["settings"].get(section, {})
    default = _DEFAULTS.get((section, name))
    return state.changes.get(f"{section}.{name}", recorded.get(name, default))
