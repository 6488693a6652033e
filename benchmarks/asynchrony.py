"""Compare the wall-clock time of asynchronous and generational searches on simulated GPUs.

    python benchmarks/asynchrony.py HISTORIES.jsonl.gz [--optimizer NAME] [--seeds 30] ...

Objectives, noise and pairs are those of `optimizers.py`.  Eight GPUs train one evaluation each; run
times are lognormal with a standard deviation of 0.3, and one evaluation in twenty fails at its end
and is ranked last.  The n-th evaluation of both searches of a pair has the same run time, noise and
failure.  Repeats are answered, as by the ledger, and take no time.

A pair's times are given by the time after which its generational search has ended so many
evaluations.  The ratio is the time after which the mean regret over all pairs of the asynchronous
searches is that of the generational ones then; its interval is that of resampled objectives.
"""

import argparse
import heapq
import math
import random
import statistics
from bisect import bisect_right
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass, field
from itertools import product
from multiprocessing import get_context
from pathlib import Path

import numpy as np
from optimizers import recorded_sources

from elmanctl.constants import CMA_GP
from elmanctl.replay.functions import FUNCTIONS, FunctionSource
from elmanctl.replay.objective import Objective, Source, values_at
from elmanctl.replay.simulation import fitness_of, settings_of
from elmanctl.search.fitness import last_ranks
from elmanctl.search.optimizers.port import Optimizer, Point
from elmanctl.search.optimizers.registry import start_optimizer
from elmanctl.search.rebuild import problem_of
from elmanctl.space.axis import Value
from elmanctl.space.space import SearchSpace

GPUS = 8
SPREAD = 0.3
FAILURE_SHARE = 0.05
MARKS = (30, 60, 120)

# An asynchronous search may need more evaluations for the same value.
_MORE = 1.5
_SHARES = [share / 100 for share in range(10, 201)]
_RESAMPLES = 400


@dataclass(slots=True)
class Course:
    """A simulated search in time, in mean run times.

    `handed` are times with the noise-free value handed over from then on, infinity as long as there
    is none, `ended` the times at which trained evaluations ended, in order.
    """

    handed: list[tuple[float, float]] = field(default_factory=list)
    ended: list[float] = field(default_factory=list)

    def value(self, time: float) -> float:
        """Return the noise-free value of the point handed over at a time."""
        number = bisect_right(self.handed, time, key=lambda pair: pair[0])
        return self.handed[number - 1][1] if number else math.inf


class Trainings:
    """The trainings of one search; what the n-th costs and brings depends on the seed alone."""

    def __init__(self, objective: Objective, seed: int) -> None:
        self._objective = objective
        self._draw = random.Random(seed)
        self._lowest = math.inf
        self.begun = 0
        self.course = Course()

    def begin(self, point: Point) -> tuple[float, float | None, float]:
        """Return the run time of the next training, its loss, and the noise-free value."""
        self.begun += 1
        run_time = self._draw.lognormvariate(-(SPREAD**2) / 2, SPREAD)
        noise = self._draw.gauss(0.0, 1.0) * self._objective.noise
        has_failed = self._draw.random() < FAILURE_SHARE
        value = float(self._objective.surface.values(np.array([point], dtype=np.float64))[0])
        loss = None if has_failed or not math.isfinite(value) else value + noise
        return run_time, loss, value

    def end(self, time: float, loss: float | None, value: float) -> None:
        """Note the end of a training."""
        self.course.ended.append(time)
        if loss is not None and loss < self._lowest:
            self._lowest = loss
            self.course.handed.append((time, value))

    def key(self, point: Point) -> tuple[Value, ...]:
        """Return what is the same for points that train the same configuration."""
        return values_at(self._objective.axes, point)


def generational(objective: Objective, asking: Optimizer, seed: int, budget: int) -> Course:
    """Simulate a search that asks a generation when all of the one before has ended."""
    trainings, known, time = (
        Trainings(objective, seed),
        dict[tuple[Value, ...], float | None](),
        0.0,
    )
    while trainings.begun < budget:
        points = asking.ask(GPUS, objective.surface.is_valid)
        ends = []
        for point in points:
            if trainings.key(point) not in known:
                run_time, loss, value = trainings.begin(point)
                known[trainings.key(point)] = loss
                ends.append((time + run_time, loss, value))
        for end, loss, value in sorted(ends, key=lambda each: each[0]):
            trainings.end(end, loss, value)
            time = max(time, end)
        losses = [known[trainings.key(point)] for point in points]
        asking.report(list(zip(points, fitness_of(losses), strict=True)))
    return trainings.course


def asynchronous(objective: Objective, asking: Optimizer, seed: int, budget: int) -> Course:
    """Simulate a search that reports each evaluation when it ends, and asks one in its place."""
    trainings, known, time = (
        Trainings(objective, seed),
        dict[tuple[Value, ...], float | None](),
        0.0,
    )
    running: list[tuple[float, int, Point, float | None, float]] = []
    repeats: dict[tuple[Value, ...], list[Point]] = {}
    losses: list[float] = []

    def report(point: Point, loss: float | None) -> None:
        if loss is not None:
            losses.append(loss)
        worst = max(losses[-GPUS:], default=0.0)
        asking.report([(point, last_ranks(worst, 1)[0] if loss is None else loss)])

    while trainings.begun < budget or running:
        # A repeat takes no slot; one of what still runs waits for it.
        waiting = sum(map(len, repeats.values()))
        room = min(GPUS - len(running), GPUS - waiting)
        if trainings.begun < budget and room > 0:
            for point in asking.ask(room, objective.surface.is_valid):
                key = trainings.key(point)
                if key in known:
                    report(point, known[key])
                elif key in repeats:
                    repeats[key].append(point)
                else:
                    run_time, loss, value = trainings.begin(point)
                    repeats[key] = []
                    end = time + run_time
                    heapq.heappush(running, (end, trainings.begun, point, loss, value))
            if len(running) < GPUS:
                continue
        time, _, point, loss, value = heapq.heappop(running)
        trainings.end(time, loss, value)
        key = trainings.key(point)
        known[key] = loss
        for each in (point, *repeats.pop(key)):
            report(each, loss)
    return trainings.course


MODES: Mapping[str, Callable[[Objective, Optimizer, int, int], Course]] = {
    "generational": generational,
    "asynchronous": asynchronous,
}


def simulate(task: tuple[Source, str, str, int]) -> Course:
    """Simulate one search."""
    source, optimizer, mode, seed = task
    objective = source.at(seed)
    most = MARKS[-1] if mode == "generational" else int(MARKS[-1] * _MORE)
    search = settings_of(optimizer, population=GPUS, sigma=None, seed=seed, budget=MARKS[-1])
    space = SearchSpace(model="", name=objective.name, axes=objective.axes)
    asking = start_optimizer(optimizer, problem_of(space, search, space.middle))
    return MODES[mode](objective, asking, seed, most)


@dataclass(frozen=True, slots=True)
class Pair:
    """The regrets of a pair by the share of the generational search's time at a mark."""

    source: str
    goal: float
    regrets: Sequence[float]
    same_value: float


def pairs_at(
    courses: Mapping[tuple[str, int, str], Course], sources: Mapping[str, Source], mark: int
) -> Iterator[Pair]:
    """Yield every pair of searches at a number of evaluations."""
    for (name, seed, mode), course in courses.items():
        if mode == "generational":
            objective = sources[name].at(seed)
            whole = sorted(course.ended)[mark - 1]
            other = courses[name, seed, "asynchronous"]
            value = course.value(whole)
            yield Pair(
                name,
                _regret(objective, value),
                [_regret(objective, other.value(whole * share)) for share in _SHARES],
                _first(other, value) / _first(course, value) if value < math.inf else 1.0,
            )


def _first(course: Course, value: float) -> float:
    """Return when a search first handed over so good a value."""
    return next((time for time, found in course.handed if found <= value), math.inf)


def _regret(objective: Objective, value: float) -> float:
    return objective.regret(value) if value < math.inf else 1.0


def first_share(pairs: Sequence[Pair]) -> float | None:
    """Return the least share of the time at which the mean regret is the goal, None for never."""
    goal = statistics.fmean(pair.goal for pair in pairs)
    columns = zip(*(pair.regrets for pair in pairs), strict=True)
    means = (statistics.fmean(column) for column in columns)
    return next((share for share, mean in zip(_SHARES, means, strict=True) if mean <= goal), None)


def median_share(pairs: Sequence[Pair]) -> float:
    """Return the median over pairs of the least share at which a pair's regret is its goal."""
    found = (
        next((s for s, r in zip(_SHARES, pair.regrets, strict=True) if r <= pair.goal), math.inf)
        for pair in pairs
    )
    return statistics.median(found)


def median_first(pairs: Sequence[Pair]) -> float:
    """Return the median over pairs of the time to the value, by that of the generational search."""
    return statistics.median(pair.same_value for pair in pairs)


def interval(pairs: Sequence[Pair]) -> tuple[float, float]:
    """Return the 90 % interval of the share over resampled objectives."""
    groups: dict[str, list[Pair]] = {}
    for pair in pairs:
        groups.setdefault(pair.source, []).append(pair)
    draw = random.Random(0)
    again = sorted(
        first_share([p for group in draw.choices([*groups.values()], k=len(groups)) for p in group])
        or math.inf
        for _ in range(_RESAMPLES)
    )
    return again[_RESAMPLES // 20], again[-_RESAMPLES // 20]


def throughput(courses: Mapping[tuple[str, int, str], Course], mark: int) -> float:
    """Return the median share of the time after which as many evaluations have ended."""
    return statistics.median(
        sorted(courses[name, seed, "asynchronous"].ended)[mark - 1] / sorted(c.ended)[mark - 1]
        for (name, seed, mode), c in courses.items()
        if mode == "generational"
    )


def main() -> None:
    """Do what the usage says."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("histories", type=Path)
    parser.add_argument("--optimizer", action="append", help=f"default: {CMA_GP}")
    parser.add_argument("--kind", choices=("recorded", "synthetic"), help="default: both")
    parser.add_argument("--seeds", type=int, default=30)
    parser.add_argument("--processes", type=int, default=1)
    options = parser.parse_args()
    kinds = {
        "recorded": lambda: {s.name: s for s, _ in recorded_sources(options.histories)},
        "synthetic": lambda: {name: FunctionSource(name=name) for name in FUNCTIONS},
    }
    print("| optimizer | objectives | pairs | evaluations | same evaluations | same mean regret |")
    print("| --- | --- | --- | --- | --- | --- |")
    with ProcessPoolExecutor(options.processes, get_context("spawn")) as pool:
        for kind in [options.kind] if options.kind else kinds:
            sources = kinds[kind]()
            seeds = range(1, options.seeds + 1)
            for optimizer in options.optimizer or [CMA_GP]:
                keys = list(product(sources, seeds, MODES))
                tasks = [(sources[name], optimizer, mode, seed) for name, seed, mode in keys]
                courses = dict(zip(keys, pool.map(simulate, tasks, chunksize=4), strict=True))
                for mark in MARKS:
                    pairs = list(pairs_at(courses, sources, mark))
                    share, (low, high) = first_share(pairs), interval(pairs)
                    print(
                        f"| {optimizer} | {kind} | {len(pairs)} | {mark} |"
                        f" {throughput(courses, mark):.2f} |"
                        f" {'more' if share is None else f'{share:.2f}'} [{low:.2f}, {high:.2f}],"
                        f" median {median_share(pairs):.2f}, first {median_first(pairs):.2f} |",
                        flush=True,
                    )


if __name__ == "__main__":
    main()
