"""Idle slots: places for an attempt that stand empty though points are still to come; pure.

The slots of a search on this machine are its GPUs or workers, those of one on Slurm as many as
`search.max_jobs`; a generational search never fills more than its population.  They count while a
controller is at work, from the first submission until the last point is asked.
"""

from typing import Any

from elmanctl.ledger.run_state import RunState

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


def _setting(state: RunState, section: str, name: str) -> Any:
    recorded = state.run["settings"].get(section, {})
    default = _DEFAULTS.get((section, name))
    return state.changes.get(f"{section}.{name}", recorded.get(name, default))
