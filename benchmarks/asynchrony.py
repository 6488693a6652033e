"""Compare the wall-clock time of asynchronous and generational searches on simulated GPUs.

    python benchmarks/asynchrony.py HISTORIES.jsonl.gz [--cache FILE] [--optimizer NAME] ...

Objectives and noise are those of `optimizers.py`.  Eight GPUs train one evaluation each; run times
are lognormal with a standard deviation of 0.3, and one evaluation in twenty fails at its end and
is ranked last.  The n-th evaluation of all searches of a pair has the
same run time, noise and failure.  Repeats are answered, as by the ledger, and take no time.

The goal of a pair is the regret of what its generational search hands over after so many
evaluations, and a share is of the time that it took until then.  The columns are shares: `median
regret` and `mean regret` that after which the median, or the mean, of the regrets of all pairs is
that of their goals, with the 90 % interval of resampled objectives; `median pair` the median of the
shares after which the regret of each pair first is its goal; and `as many evaluations` the median
of those after which as many have ended.  The `control` of a column has in place of the asynchronous
search a generational one by another seed of the optimizer.  Since what has the lowest noisy loss
comes and goes, a search is early at a single goal by chance: the control of `median pair` is no 1.

Finished searches are kept in the file of `--cache` as long as the code of the optimizers is as it
was.
"""

import argparse
import hashlib
import heapq
import json
import math
import random
import statistics
import sys
from bisect import bisect_right
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from dataclasses import asdict, dataclass, field, replace
from functools import cache, partial
from importlib import metadata
from itertools import chain
from multiprocessing import get_context
from pathlib import Path

import numpy as np
from optimizers import recorded_sources

from elmanctl.constants import CMA_GP
from elmanctl.replay.functions import FUNCTIONS, FunctionSource
from elmanctl.replay.objective import Objective, Source, values_at
from elmanctl.replay.simulation import fitness_of, settings_of
from elmanctl.replay.trace_cache import key_of
from elmanctl.search.fitness import last_ranks
from elmanctl.search.optimizers import registry
from elmanctl.search.optimizers.port import Optimizer, Point
from elmanctl.search.optimizers.registry import packages_of, start_optimizer
from elmanctl.search.rebuild import problem_of
from elmanctl.space.axis import Value
from elmanctl.space.space import SearchSpace

GPUS = 8
SPREAD = 0.3
FAILURE_SHARE = 0.05
MARKS = (30, 60, 120)

# A generational search by another seed of the optimizer.
CONTROL = "control"
_OTHER_SEEDS = 1_000_000

# Another search may need more evaluations for the same value.
_MORE = 1.5

# A search that asked for so many repeats and nothing else has come to its end.
_IDLE = 200

SHARES = [share / 100 for share in range(10, 201)]
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

    def end_of(self, evaluations: int) -> float:
        """Return when so many evaluations had ended, or all of a search that had fewer."""
        return self.ended[min(evaluations, len(self.ended)) - 1]


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


# The losses of trained configurations, None for a failure.
Known = dict[tuple[Value, ...], float | None]


class Progress:
    """The search for points that have to be trained; it ends where there are only repeats."""

    def __init__(self, trainings: Trainings, budget: int) -> None:
        self._trainings = trainings
        self._budget = budget
        self._begun = self._idle = 0

    @property
    def is_over(self) -> bool:
        """Whether the budget is spent, or nothing but repeats was asked for long."""
        return self._trainings.begun >= self._budget or self._idle >= _IDLE

    def asked(self, count: int) -> None:
        """Note that so many points were asked."""
        is_idle = self._trainings.begun == self._begun
        self._idle = self._idle + count if is_idle else 0
        self._begun = self._trainings.begun


def generational(objective: Objective, asking: Optimizer, seed: int, budget: int) -> Course:
    """Simulate a search that asks a generation when all of the one before has ended."""
    trainings, time = Trainings(objective, seed), 0.0
    known: Known = {}
    progress = Progress(trainings, budget)
    while not progress.is_over:
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
        progress.asked(len(points))
    return trainings.course


def asynchronous(objective: Objective, asking: Optimizer, seed: int, budget: int) -> Course:
    """Simulate a search that reports each evaluation when it ends, and asks one in its place."""
    trainings, time = Trainings(objective, seed), 0.0
    known: Known = {}
    progress = Progress(trainings, budget)
    running: list[tuple[float, int, Point, float | None, float]] = []
    repeats: dict[tuple[Value, ...], list[Point]] = {}
    losses: list[float] = []

    def report(point: Point, loss: float | None) -> None:
        if loss is not None:
            losses.append(loss)
        worst = max(losses[-GPUS:], default=0.0)
        asking.report([(point, last_ranks(worst, 1)[0] if loss is None else loss)])

    while not progress.is_over or running:
        # A repeat takes no slot; one of what still runs waits for it.
        waiting = sum(map(len, repeats.values()))
        room = min(GPUS - len(running), GPUS - waiting)
        if not progress.is_over and room > 0:
            points = asking.ask(room, objective.surface.is_valid)
            for point in points:
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
            progress.asked(len(points))
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
    CONTROL: generational,
    "asynchronous": asynchronous,
}


@dataclass(frozen=True, slots=True, kw_only=True)
class Task:
    """One search to simulate."""

    source: str
    optimizer: str
    mode: str
    seed: int

    def simulate(self, objective: Objective) -> Course:
        """Return the course of the search."""
        is_longer = self.mode != "generational"
        seed = self.seed + _OTHER_SEEDS * (self.mode == CONTROL)
        search = settings_of(
            self.optimizer, population=GPUS, sigma=None, seed=seed, budget=MARKS[-1]
        )
        space = SearchSpace(model="", name=objective.name, axes=objective.axes)
        asking = start_optimizer(self.optimizer, problem_of(space, search, space.middle))
        most = int(MARKS[-1] * _MORE) if is_longer else MARKS[-1]
        return MODES[self.mode](objective, asking, self.seed, most)

    def key(self, objective: Objective) -> str:
        """Return the key of the search in a cache."""
        parts = {"objective": objective.fingerprint, "code": _code(), "search": asdict(self)}
        versions = {name: metadata.version(name) for name in packages_of(self.optimizer)}
        return key_of(parts | {"packages": versions})


@cache
def _code() -> str:
    """Return a digest of the code of the optimizers."""
    folder = Path(registry.__file__).parent
    files = sorted(folder.glob("*.py"))
    return hashlib.sha256(b"".join(path.read_bytes() for path in files)).hexdigest()


class CourseCache:
    """Courses by key, in memory and, with a path, in a file of JSON lines that only grows."""

    def __init__(self, path: Path | None) -> None:
        self._path = path
        self._courses: dict[str, Course] = {}
        if path is not None and path.exists():
            # A process that was killed while it wrote leaves half a line.
            whole, newline, torn = path.read_text(encoding="utf-8").rpartition("\n")
            if torn:
                path.write_text(whole + newline, encoding="utf-8")
            for line in whole.splitlines():
                data = json.loads(line)
                handed = [(time, value) for time, value in data["handed"]]
                self._courses[data["key"]] = Course(handed=handed, ended=data["ended"])

    def get(self, key: str) -> Course | None:
        """Return the course of a key, None if it has to be simulated."""
        return self._courses.get(key)

    def add(self, key: str, course: Course) -> None:
        """Keep a course."""
        self._courses[key] = course
        if self._path is not None:
            with self._path.open("a", encoding="utf-8") as file:
                file.write(json.dumps({"key": key, **asdict(course)}, allow_nan=False) + "\n")


def simulate_all(
    sources: Mapping[str, Source], tasks: Sequence[Task], kept: CourseCache, processes: int
) -> dict[Task, Course]:
    """Return the course of every search."""
    objectives = {task: sources[task.source].at(task.seed) for task in tasks}
    keys = {task: task.key(objective) for task, objective in objectives.items()}
    waiting = [task for task in tasks if kept.get(keys[task]) is None]
    with ProcessPoolExecutor(processes, get_context("spawn")) as pool:
        futures = {pool.submit(task.simulate, objectives[task]): task for task in waiting}
        for number, future in enumerate(as_completed(futures), start=1):
            kept.add(keys[futures[future]], future.result())
            if number % 50 == 0:
                print(f"\r{number} of {len(waiting)}", end="", file=sys.stderr)
    courses = {task: kept.get(key) for task, key in keys.items()}
    return {task: course for task, course in courses.items() if course is not None}


@dataclass(frozen=True, slots=True)
class Pair:
    """A search beside the generational one, at a number of evaluations of that.

    `goal` is the regret of the generational search, `regrets` are those of the other one after
    each of the shares of its time, and `evaluations` is the share after which as many ended.
    """

    source: str
    goal: float
    regrets: Sequence[float]
    evaluations: float

    @property
    def share(self) -> float:
        """The least share after which the regret is the goal, infinity for never."""
        return next(
            (s for s, regret in zip(SHARES, self.regrets, strict=True) if regret <= self.goal),
            math.inf,
        )


def pairs_at(
    courses: Mapping[Task, Course], sources: Mapping[str, Source], mode: str, mark: int
) -> list[Pair]:
    """Return the pairs of searches in a mode at a number of evaluations."""
    return [
        _pair(sources[task.source].at(task.seed), task, course, courses[other], mark)
        for task, course in courses.items()
        if task.mode == "generational"
        for other in [replace(task, mode=mode)]
    ]


def _pair(objective: Objective, task: Task, own: Course, other: Course, mark: int) -> Pair:
    whole = own.end_of(mark)
    return Pair(
        task.source,
        _regret(objective, own.value(whole)),
        [_regret(objective, other.value(whole * share)) for share in SHARES],
        other.end_of(mark) / whole,
    )


def _regret(objective: Objective, value: float) -> float:
    return objective.regret(value) if value < math.inf else 1.0


def median_pair(pairs: Sequence[Pair]) -> float:
    """Return the median share after which the regret of a pair is its goal."""
    return statistics.median(pair.share for pair in pairs)


def share_of(average: Callable[[Sequence[float]], float], pairs: Sequence[Pair]) -> float:
    """Return the least share after which the average regret is the average goal."""
    goal = average([pair.goal for pair in pairs])
    averages = map(average, zip(*(pair.regrets for pair in pairs), strict=True))
    return next(
        (share for share, found in zip(SHARES, averages, strict=True) if found <= goal), math.inf
    )


# Ways to compare all pairs of a kind, as the table names them.
COLUMNS: Mapping[str, Callable[[Sequence[Pair]], float]] = {
    "median regret": partial(share_of, statistics.median),
    "mean regret": partial(share_of, statistics.fmean),
    "median pair": median_pair,
}


def interval(
    pairs: Sequence[Pair], statistic: Callable[[Sequence[Pair]], float]
) -> tuple[float, float]:
    """Return the 90 % interval of a statistic over resampled objectives, with all their pairs."""
    groups: dict[str, list[Pair]] = {}
    for pair in pairs:
        groups.setdefault(pair.source, []).append(pair)
    draw = random.Random(0)
    chosen = (draw.choices([*groups.values()], k=len(groups)) for _ in range(_RESAMPLES))
    again = sorted(statistic([*chain.from_iterable(each)]) for each in chosen)
    return again[_RESAMPLES // 20], again[-_RESAMPLES // 20]


def cells(
    courses: Mapping[Task, Course], sources: Mapping[str, Source], mark: int
) -> Iterator[str]:
    """Yield what the table says at a number of evaluations."""
    pairs = pairs_at(courses, sources, "asynchronous", mark)
    control = pairs_at(courses, sources, CONTROL, mark)
    yield str(len(pairs))
    yield str(mark)
    for statistic in COLUMNS.values():
        low, high = interval(pairs, statistic)
        yield f"{_cell(statistic(pairs))} [{_cell(low)}, {_cell(high)}]"
        yield _cell(statistic(control))
    yield f"{statistics.median(pair.evaluations for pair in pairs):.2f}"


def _cell(share: float) -> str:
    return f"{share:.2f}" if share < math.inf else "more"


def main() -> None:
    """Do what the usage says."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("histories", type=Path)
    parser.add_argument("--cache", type=Path, help="file that keeps finished searches")
    parser.add_argument("--optimizer", action="append", help=f"default: {CMA_GP}")
    parser.add_argument("--kind", choices=("recorded", "synthetic"), help="default: both")
    parser.add_argument("--objective", action="append", help="default: all of a kind")
    parser.add_argument("--seeds", type=int, default=30)
    parser.add_argument("--processes", type=int, default=1)
    options = parser.parse_args()
    kept = CourseCache(options.cache)
    names = chain.from_iterable((name, "control") for name in COLUMNS)
    head = ("optimizer", "objectives", "pairs", "evaluations", *names, "as many evaluations")
    print(f"| {' | '.join(head)} |\n| --- | --- |{' ---: |' * (len(head) - 2)}")
    for kind in [options.kind] if options.kind else ("recorded", "synthetic"):
        sources = _sources(kind, options.histories, options.objective)
        for optimizer in options.optimizer or [CMA_GP]:
            tasks = [
                Task(source=name, optimizer=optimizer, mode=mode, seed=seed)
                for seed in range(1, options.seeds + 1)
                for name in sources
                for mode in MODES
            ]
            courses = simulate_all(sources, tasks, kept, options.processes)
            for mark in MARKS:
                line = " | ".join(cells(courses, sources, mark))
                print(f"| `{optimizer}` | {kind} | {line} |", flush=True)


def _sources(kind: str, histories: Path, chosen: Collection[str] | None) -> dict[str, Source]:
    found: list[Source] = (
        [FunctionSource(name=name) for name in FUNCTIONS]
        if kind == "synthetic"
        else [source for source, _ in recorded_sources(histories)]
    )
    return {s.name: s for s in found if chosen is None or s.name in chosen}


if __name__ == "__main__":
    main()
