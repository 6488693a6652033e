"""Simulated search: an optimizer asks, an objective answers with noise and failures.

The optimizer is the one that a search would use, told as a search would tell it, with the defaults
that come with it: a failure comes behind the worst loss of its generation, a repeat is answered and
takes a place in its generation, an invalid point is drawn again.  No rule stops a search early.
"""

import math
import random
import time
from bisect import bisect_right
from collections.abc import Sequence
from dataclasses import dataclass
from statistics import median

import numpy as np

from elmanctl.codec import json_field
from elmanctl.config import merge
from elmanctl.constants import AGAIN, STUDY
from elmanctl.errors import InvalidConfiguration
from elmanctl.replay.objective import Objective, values_at
from elmanctl.search.fitness import last_ranks
from elmanctl.search.optimizers.port import Optimizer, Point, Problem, SelfEnding
from elmanctl.search.optimizers.registry import start_optimizer
from elmanctl.search.rebuild import problem_of
from elmanctl.settings import SearchSettings
from elmanctl.sources import Source, optimizer_sources
from elmanctl.space.axis import Value
from elmanctl.space.candidates import MAX_REFUSED
from elmanctl.space.space import SearchSpace

# A search in which so many generations in a row are nothing but repeats has come to its end.
_IDLE_GENERATIONS = 25


@dataclass(frozen=True, slots=True, kw_only=True)
class Trace:
    """What one simulated search did.

    `handed` are the noise-free values of the point with the lowest loss so far, each with the
    number of trained evaluations from which it is the one.  `trained` are the evaluations that
    were paid for, failures among them; of those `retrained` are repeats.  `answered` are the
    repeats that cost nothing, `refused` the invalid points, which were not trained.  `cpu_ms` is
    the processor time that the optimizer took for a generation, the median.
    """

    handed: tuple[tuple[int, float], ...]
    trained: int
    failed: int
    retrained: int = 0
    answered: int = 0
    refused: int = 0
    generations: int
    cpu_ms: float
    error: str | None = json_field(default=None, omit=True)

    def value(self, evaluations: int) -> float:
        """Return the noise-free value of the point handed over; infinity without any loss."""
        number = bisect_right(self.handed, evaluations, key=lambda pair: pair[0])
        return self.handed[number - 1][1] if number else math.inf


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
        self._known: dict[tuple[Value, ...], float | None] = {}
        self.handed: list[tuple[int, float]] = []
        self.trained = 0
        self.failed = 0
        self.retrained = 0
        self.answered = 0

    @property
    def is_over(self) -> bool:
        """Whether the budget is spent."""
        return self.trained >= self._budget

    def losses(self, points: Sequence[Point], *, again: bool = False) -> list[float | None]:
        """Return the losses of a generation, None for a failure.

        A repeat is answered, or with `again` trained once more.  A generation is trained as a
        whole; what is beyond the budget counts for nothing.
        """
        if not points:
            return []
        values = self._objective.surface.values(np.array(points, dtype=np.float64)).tolist()
        losses = []
        for point, value in zip(points, values, strict=True):
            key = values_at(self._objective.axes, point)
            is_repeat = key in self._known
            if is_repeat and not again:
                self.answered += not self.is_over
            else:
                self.retrained += is_repeat and not self.is_over
                self._known[key] = self._train(value)
            losses.append(self._known[key])
        return losses

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


def simulate(objective: Objective, search: SearchSettings) -> Trace:
    """Return the trace of one search by these settings, from the middle of the space.

    `search.evaluations` is the budget; there are as many generations as it takes.
    """
    training = Training(objective, seed=search.seed, budget=search.evaluations or 0)
    asking = start_optimizer(search.optimizer, _problem(objective, search))
    refusals = _Refusals(objective)
    generations = idle = 0
    spent_ms: list[float] = []
    while not training.is_over and idle < _IDLE_GENERATIONS and not _has_ended(asking):
        refusals.begin()
        began_s = time.process_time()
        points = asking.ask(search.population, refusals.is_valid)
        asked_s = time.process_time()
        before = training.trained
        losses = training.losses(points, again=search.repeats == AGAIN)
        results = list(zip(points, fitness_of(losses, search.failed_loss), strict=True))
        told_s = time.process_time()
        asking.report(results)
        spent_ms.append(1e3 * (time.process_time() - told_s + asked_s - began_s))
        generations += 1
        idle = idle + 1 if training.trained == before else 0
    return Trace(
        handed=tuple(training.handed),
        trained=training.trained,
        failed=training.failed,
        retrained=training.retrained,
        answered=training.answered,
        refused=refusals.refused,
        generations=generations,
        cpu_ms=median(spent_ms) if spent_ms else 0.0,
    )


def settings_of(
    optimizer: str, *, population: int, sigma: float | None, seed: int, budget: int
) -> SearchSettings:
    """Return the settings of a search by an optimizer, with the defaults that come with it."""
    values = {
        "search.optimizer": optimizer,
        "search.population": population,
        "search.sigma": sigma,
        "search.seed": seed,
        "search.evaluations": budget,
        "search.generations": math.ceil(budget / population),
    }
    given = {key: value for key, value in values.items() if value is not None}
    defaults = optimizer_sources(SearchSettings(optimizer=optimizer))
    return merge([*defaults, Source(name="the replay", values=given)]).settings.search


def fitness_of(losses: Sequence[float | None], failed_loss: float | None = None) -> list[float]:
    """Return the fitness values of a generation: failures come last, in order.

    With `failed_loss` they are that loss, and so is a larger one.
    """
    if failed_loss is not None:
        return [failed_loss if loss is None else min(loss, failed_loss) for loss in losses]
    known = [loss for loss in losses if loss is not None]
    behind = iter(last_ranks(max(known, default=0.0), len(losses) - len(known)))
    return [next(behind) if loss is None else loss for loss in losses]


def _problem(objective: Objective, search: SearchSettings) -> Problem:
    space = SearchSpace(model="", name=objective.name, axes=objective.axes)
    start = space.centre if search.optimizer == STUDY else space.middle
    return problem_of(space, search, start)


def _has_ended(asking: Optimizer) -> bool:
    return isinstance(asking, SelfEnding) and asking.ending is not None
