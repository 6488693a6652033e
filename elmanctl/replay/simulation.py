"""Simulated search: an optimizer asks, an objective answers with noise and failures.

The optimizer is the one that a search would use, told as a search would tell it: a failure comes
behind the worst loss of its generation, a repeat is answered and takes a place in its generation,
an invalid point is drawn again.
"""

import math
import random
import time
from collections.abc import Sequence
from dataclasses import dataclass
from statistics import median

import numpy as np

from elmanctl.codec import json_field
from elmanctl.errors import InvalidConfiguration
from elmanctl.replay.objective import Objective, values_at
from elmanctl.search.fitness import last_ranks
from elmanctl.search.optimizers.port import Point, Problem
from elmanctl.search.optimizers.registry import start_optimizer
from elmanctl.space.axis import Value
from elmanctl.space.candidates import MAX_REFUSED

# A search in which so many generations in a row are nothing but repeats has come to its end.
_IDLE_GENERATIONS = 25


@dataclass(frozen=True, slots=True, kw_only=True)
class Trace:
    """What one simulated search did.

    `handed` are the noise-free values of the point with the lowest loss so far, each with the
    number of trained evaluations from which it is the one.  `trained` are the evaluations that
    were paid for, failures among them; of those `retrained` are repeats and `invalid` could not
    be trained.  `answered` are the repeats that cost nothing, `refused` the points that were drawn
    again.  `cpu_ms` is the processor time that the optimizer took for a generation, the median.
    """

    handed: tuple[tuple[int, float], ...]
    trained: int
    failed: int
    retrained: int = 0
    invalid: int = 0
    answered: int = 0
    refused: int = 0
    generations: int
    cpu_ms: float
    error: str | None = json_field(default=None, omit=True)

    def value(self, evaluations: int) -> float:
        """Return the noise-free value of the point handed over; infinity without any loss."""
        known = [value for number, value in self.handed if number <= evaluations]
        return known[-1] if known else math.inf


class Training:
    """Simulated training on an objective, up to a budget of evaluations.

    The noise and the failure of the n-th evaluation depend on the seed alone: searches of several
    optimizers with one seed have them in common.
    """

    def __init__(self, objective: Objective, *, seed: int, budget: int) -> None:
        self._objective = objective
        self._draw = random.Random(seed)
        self._budget = budget
        self._lowest = math.inf
        self.handed: list[tuple[int, float]] = []
        self.trained = 0
        self.failed = 0

    @property
    def is_over(self) -> bool:
        """Whether the budget is spent."""
        return self.trained >= self._budget

    def train(self, points: Sequence[Point]) -> list[float | None]:
        """Return the losses at points, None for a failure.

        A generation is trained as a whole; what is beyond the budget counts for nothing.
        """
        if not points:
            return []
        values = self._objective.surface.values(np.array(points, dtype=np.float64)).tolist()
        return [self._train(value) for value in values]

    def _train(self, value: float) -> float | None:
        noise = self._draw.gauss(0.0, 1.0) * self._objective.noise
        has_failed = self._draw.random() < self._objective.failure_share
        loss = None if has_failed or not math.isfinite(value) else value + noise
        if not self.is_over:
            self.trained += 1
            self.failed += loss is None
            if loss is not None and loss < self._lowest:
                self._lowest = loss
                self.handed.append((self.trained, value))
        return loss


class _Refusals:
    """The check of points that an optimizer asks for, which counts those that it refuses."""

    def __init__(self, objective: Objective) -> None:
        self._objective = objective
        self._since = 0
        self.refused = 0

    def begin(self) -> None:
        """Begin a generation."""
        self._since = self.refused

    def is_valid(self, point: Point) -> bool:
        """Whether a point is valid; raise InvalidConfiguration when nearly none is."""
        if self._objective.surface.is_valid(point):
            return True
        self.refused += 1
        if self.refused - self._since >= MAX_REFUSED:
            raise InvalidConfiguration(
                f"{MAX_REFUSED:,} points in one generation on `{self._objective.name}` are invalid"
            )
        return False


def simulate(
    objective: Objective, optimizer: str, *, population: int, sigma: float, seed: int, budget: int
) -> Trace:
    """Return the trace of one search by a named optimizer, from the middle of the space."""
    axes = objective.axes
    training = Training(objective, seed=seed, budget=budget)
    refusals = _Refusals(objective)
    known: dict[tuple[Value, ...], float | None] = {}
    answered = generations = idle = 0
    spent_ms: list[float] = []
    asking = start_optimizer(
        optimizer,
        Problem(
            coordinates=tuple(axis.coordinate for axis in axes),
            start=tuple(axis.middle for axis in axes),
            population=population,
            sigma=sigma,
            seed=seed,
            budget=budget,
        ),
    )
    while not training.is_over and idle < _IDLE_GENERATIONS:
        refusals.begin()
        began_s = time.process_time()
        points = asking.ask(population, refusals.is_valid)
        asked_s = time.process_time()
        keys = [values_at(axes, point) for point in points]
        fresh = {key: p for key, p in zip(keys, points, strict=True) if key not in known}
        known.update(zip(fresh, training.train(list(fresh.values())), strict=True))
        values = fitness_of([known[key] for key in keys])
        told_s = time.process_time()
        asking.report(list(zip(points, values, strict=True)))
        spent_ms.append(1e3 * (time.process_time() - told_s + asked_s - began_s))
        answered += len(points) - len(fresh)
        generations += 1
        idle = 0 if fresh else idle + 1
    return Trace(
        handed=tuple(training.handed),
        trained=training.trained,
        failed=training.failed,
        answered=answered,
        refused=refusals.refused,
        generations=generations,
        cpu_ms=median(spent_ms),
    )


def fitness_of(losses: Sequence[float | None]) -> list[float]:
    """Return the fitness values of a generation: failures come last, in order."""
    known = [loss for loss in losses if loss is not None]
    behind = iter(last_ranks(max(known, default=0.0), len(losses) - len(known)))
    return [next(behind) if loss is None else loss for loss in losses]
