"""The procedure of the study's searches of January 2026, on an objective of a replay.

CMA-ES by pycma with its defaults on the unit cube, from the middle with a first step of 0.3; a
coordinate is rounded when it is decoded.  Nothing is checked or remembered: an invalid point is
told as 10.0, a failure too, and a repeat is trained again.
"""

import math
import warnings
from collections.abc import Sequence
from typing import Any

from elmanctl.replay.objective import Objective, values_at
from elmanctl.replay.runner import Task
from elmanctl.replay.simulation import Trace, Training
from elmanctl.space.axis import Axis

STUDY = "study"
PENALTY = 10.0


def study_search(task: Task, objective: Objective) -> Trace:
    """Return the trace of one search."""
    training = Training(objective, seed=task.seed, budget=task.budget)
    strategy = _strategy(len(objective.axes), task)
    seen: set[tuple[object, ...]] = set()
    retrained = invalid = generations = 0
    while not training.is_over and not strategy.stop():
        drawn = strategy.ask()
        points = [decoded(objective.axes, x) for x in drawn]
        valid = [p for p in points if objective.surface.is_valid(p)]
        left = task.budget - training.trained
        losses = iter(training.train(valid))
        for point in valid[:left]:
            key = values_at(objective.axes, point)
            retrained += key in seen
            seen.add(key)
        strategy.tell(drawn, [_told(next(losses) if p in valid else None) for p in points])
        invalid += len(points) - len(valid)
        generations += 1
    return Trace(
        handed=tuple(training.handed),
        trained=training.trained,
        failed=training.failed,
        retrained=retrained,
        invalid=invalid,
        generations=generations,
        cpu_ms=0.0,
    )


def decoded(axes: Sequence[Axis], x: Sequence[float]) -> tuple[float, ...]:
    """Return the point that the study trained at x, from 0 to 1 on every axis.

    The level nearest to the linear value, also between powers of two.
    """
    pairs = zip(axes, x, strict=True)
    return tuple(_decoded(axis, min(max(share, 0.0), 1.0)) for axis, share in pairs)


def _decoded(axis: Axis, share: float) -> float:
    levels = axis.levels
    if levels is None:
        return float(share)
    if axis.kind == "bool":
        return float(share >= 0.5)
    if any(isinstance(level, str) for level in levels):
        return float(round(share * (len(levels) - 1)))
    numbers = [float(level) for level in levels]
    low, high = (axis.low, axis.high) if axis.kind in ("int", "pow2") else (numbers[0], numbers[-1])
    target = low + share * (high - low)
    return float(min(range(len(numbers)), key=lambda index: abs(numbers[index] - target)))


def _told(loss: float | None) -> float:
    return PENALTY if loss is None or not math.isfinite(loss) or loss > PENALTY else loss


def _strategy(dimension: int, task: Task) -> Any:
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="Could not import matplotlib")
        import cma
    options = {
        "bounds": [0, 1],
        "popsize": task.population,
        "seed": task.seed,
        "signals_filename": "",
        "verbose": -10,
        "verb_log": 0,
        "verb_disp": 0,
    }
    return cma.CMAEvolutionStrategy(dimension * [0.5], 0.3, options)
