"""A Latin hypercube, then CMA-ES from the best of its points, one start after the other.

The starts share evenly what the budget leaves after the hypercube; the last one goes on to the end.
"""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from itertools import groupby

from elmanctl.constants import MAX_SEED
from elmanctl.search.optimizers.history import History
from elmanctl.search.optimizers.port import Expected, Point, Problem, Result
from elmanctl.search.optimizers.pycma import Pycma
from elmanctl.search.optimizers.space_filling import latin_hypercube_points

# A point of the hypercube that is known already is passed over so often: small spaces end.
_MOST_REPEATS = 100


class LhsCma:
    """CMA-ES from the best `starts` of at least `design` points that fill the space.

    Points fill the space until so many are asked and one has a value.  Each start is a CMA-ES of
    its own, whose seed is that of the problem plus its number, counted from 1.
    """

    def __init__(self, problem: Problem) -> None:
        self._problem = problem
        self._history = History()
        self._stream = _new(latin_hypercube_points(replace(problem, budget=problem.design)))
        # Where each start's CMA-ES begins, and the first of its points by number.
        self._starts: list[Point] = []
        self._stages: list[tuple[int, Pycma]] = []

    def ask(self, count: int, is_valid: Callable[[Point], bool]) -> list[Point]:
        """Return `count` new valid points; see the port."""
        stage = self._stage(count)
        points = self._fill(count, is_valid) if stage is None else stage.ask(count, is_valid)
        self._history.add(points)
        return points

    def replay(self, points: Sequence[Point], refused: int) -> None:
        """Advance as the `ask` that returned `points` did; see the port."""
        stage = self._stage(len(points))
        if stage is not None:
            stage.replay(points, refused)
        else:
            expected = Expected(self._problem.coordinates, points, refused)
            self._fill(len(points), expected)
            expected.check()
        self._history.add(points)

    def report(self, results: Sequence[Result]) -> None:
        """Learn values; see the port."""
        numbers = self._history.report(results)
        owners = [self._owner(number) for number in numbers]
        for owner, group in groupby(zip(owners, results, strict=True), key=lambda pair: pair[0]):
            if owner is not None:
                self._stages[owner][1].report([result for _, result in group])

    def _owner(self, number: int) -> int | None:
        """Return the start that asked a point, None for one of the hypercube."""
        begun = [index for index, (first, _) in enumerate(self._stages) if first <= number]
        return begun[-1] if begun else None

    def _stage(self, count: int) -> Pycma | None:
        """Return the CMA-ES that is asked next, None for the hypercube."""
        asked = len(self._history.points)
        if not self._stages and (asked < self._problem.design or not self._history.values):
            return None
        if not self._stages:
            self._starts = self._best()
        is_last = len(self._stages) == len(self._starts)
        # What replaces a failed point of a generation is of the same start.
        is_new = self._problem.is_asynchronous or count >= self._problem.population
        begins = is_new and not is_last
        if not self._stages or (begins and asked - self._stages[-1][0] >= self._share()):
            self._stages.append((asked, self._begin(len(self._stages))))
        return self._stages[-1][1]

    def _share(self) -> int:
        """Return how many points the newest start may ask, so that the rest is shared evenly."""
        left = self._problem.budget - self._stages[-1][0]
        return left // (len(self._starts) - len(self._stages) + 1)

    def _begin(self, index: int) -> Pycma:
        seed = (self._problem.seed + index + 1) % (MAX_SEED + 1)
        return Pycma(replace(self._problem, start=self._starts[index], seed=seed))

    def _best(self) -> list[Point]:
        """Return the points of the lowest values, the first asked of equal ones."""
        values = self._history.values
        numbers = sorted(values, key=lambda number: (values[number], number))
        points = dict.fromkeys(self._history.points[number] for number in numbers)
        return list(points)[: self._problem.starts]

    def _fill(self, count: int, is_valid: Callable[[Point], bool]) -> list[Point]:
        chosen: list[Point] = []
        while len(chosen) < count:
            point = next(self._stream)
            if is_valid(point):
                chosen.append(point)
        return chosen


def _new(points: Iterator[Point]) -> Iterator[Point]:
    """Yield points that did not come before, and repeats where those do not end."""
    known: set[Point] = set()
    repeats = 0
    for point in points:
        repeats += point in known
        if point not in known or repeats > _MOST_REPEATS:
            known.add(point)
            repeats = 0
            yield point
