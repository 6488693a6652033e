"""Sizing: smaller requests for jobs, advised from what their attempts have used; pure.

A request is advised only where it would have been enough for each evaluation so far, with a margin
for those to come, and where it is much smaller than the one that was made.
"""

import math
from dataclasses import dataclass

from elmanctl.ledger.records import Attempt, Evaluation, VerdictKind
from elmanctl.ledger.run_state import RunState
from elmanctl.search.effective_settings import effective_settings
from elmanctl.search.workload import attempt_resources, time_limit_min

# Fewer say little about the largest of those to come.
LEAST_EVALUATIONS = 8

# The longest and the largest so far are not the most that there can be.
_TIME_MARGIN, _MEMORY_MARGIN = 1.25, 1.5

# Start-up on a slow file system; what a worker's own peak does not show, such as file buffers.
_MORE_MIN, _MORE_GB = 3, 1.0

# What is advised is at most this share of what was asked for.
_WORTH = 0.75

_TRAINED = (VerdictKind.COMPLETED, VerdictKind.STOPPED, VerdictKind.DIVERGED)


@dataclass(frozen=True, slots=True, kw_only=True)
class Sizing:
    """What evaluations took at most, and what their jobs asked for; `advised` are settings.

    `largest_gb` is the peak of a worker's own memory, None where it is not known of each.
    """

    evaluations: int
    longest_min: float
    asked_min: float
    largest_gb: float | None
    asked_gb: float | None
    advised: dict[str, int]


def sizing_of(state: RunState) -> Sizing | None:
    """Return the sizing of a run on Slurm, None where too few evaluations have trained."""
    if state.run["executor"] != "slurm":
        return None
    settings = effective_settings(state)
    asked = attempt_resources(settings, "slurm", {})
    trained = [one for one in state.evaluations.values() if _has_trained(one)]
    if len(trained) < LEAST_EVALUATIONS:
        return None
    longest_min = max(map(_elapsed_min, trained))
    peaks = [_peak_gb(one.attempts[-1]) for one in trained]
    known = [peak for peak in peaks if peak is not None]
    # A peak is that of one process, and of a training on several GPUs there are several.
    is_known = len(known) == len(peaks) and settings.train.gpus * settings.train.nodes == 1
    largest_gb = max(known) if is_known else None
    advised = {}
    if VerdictKind.TIMEOUT.value not in state.spent:
        # A budget of time has a least limit of its own.
        is_timed = settings.train.minutes_at_most is not None
        least = time_limit_min(settings.train, None) if is_timed else 0
        minutes = max(math.ceil(longest_min * _TIME_MARGIN) + _MORE_MIN, least)
        if minutes <= _WORTH * asked.timeout_min:
            advised["slurm.timeout_min"] = minutes
    if largest_gb is not None and asked.mem_gb and VerdictKind.OOM.value not in state.spent:
        memory_gb = math.ceil(largest_gb * _MEMORY_MARGIN + _MORE_GB)
        if memory_gb <= _WORTH * asked.mem_gb:
            advised["slurm.mem_gb"] = memory_gb
    return Sizing(
        evaluations=len(trained),
        longest_min=longest_min,
        asked_min=asked.timeout_min,
        largest_gb=largest_gb,
        asked_gb=asked.mem_gb,
        advised=advised,
    )


def _has_trained(evaluation: Evaluation) -> bool:
    """Whether an evaluation has trained to an end of its own."""
    last = evaluation.last_attempt
    return last is not None and last.verdict is not None and last.verdict.kind in _TRAINED


def _elapsed_min(evaluation: Evaluation) -> float:
    """Return how long all attempts took: of one that went on from another it needs both."""
    return sum(attempt.elapsed_s or 0.0 for attempt in evaluation.attempts) / 60


def _peak_gb(attempt: Attempt) -> float | None:
    peak = (attempt.result or {}).get("host_memory_bytes")
    return peak / 2**30 if isinstance(peak, int) and peak > 0 else None
