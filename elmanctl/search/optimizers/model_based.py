"""Optimizers that choose points by a model of the values reported so far.

What such an optimizer asks next is a pure function of the problem and its history: generators are
made anew for each point, from the seed and the number of the point.  A replay therefore takes the
points from the record and fits no model but where it checks them.
"""

from collections.abc import Callable, Iterator, Sequence
from itertools import chain
from typing import Any, Protocol

from elmanctl.search.optimizers.history import History
from elmanctl.search.optimizers.port import Differs, Expected, Point, Problem, Result
from elmanctl.search.optimizers.space_filling import latin_hypercube
from elmanctl.search.optimizers.unit_cube import from_shares, nearest

# Values that a model needs; before, points fill the space.
_MIN_VALUES = 10

# Points of one Latin hypercube at the start.
_DESIGN = 16

# Tells the generator of random points from those of models.
_ANYWHERE = 1 << 20

# What a model learns at most: far beyond any loss, and its square is a number.
_LARGEST = 1e100

# A point that was asked before is passed over so often, then asked again: small spaces end.
_MOST_REPEATS = 100

# So many invalid points are passed over for one point before a known one is asked again.
_MOST_INVALID = 100


class Model(Protocol):
    """A model of the values at the points of one ask."""

    def points(self, number: int) -> Iterator[Point]:
        """Yield some promising points, the best first, for the point of this number."""

    def add(self, point: Point) -> None:
        """Take a newly chosen point into account, whose value is not known."""


Fit = Callable[[Problem, History], Model]


class ModelBased:
    """An optimizer by a model that is fitted at each ask.

    The first point is the problem's start; Latin hypercubes follow until there are ten values.
    `is_portable` says that the model chooses the same points on every processor.
    """

    def __init__(self, problem: Problem, fit: Fit, *, is_portable: bool = True) -> None:
        self._problem = problem
        self._fit = fit
        self._is_portable = is_portable
        self._history = History()
        self._known: set[Point] = set()

    def ask(self, count: int, is_valid: Callable[[Point], bool]) -> list[Point]:
        """Return `count` new valid points; see the port."""
        history = self._history
        model = self._fit(self._problem, history) if self._has_model else None
        first = len(history.points)
        chosen: list[Point] = []
        refused: set[Point] = set()
        for number in range(first, first + count):
            points = _start(self._problem, number) if model is None else model.points(number)
            # Where none of those is new and valid, any point is better.
            points = chain(points, _anywhere(self._problem, number))
            point = self._valid(points, refused, is_valid)
            chosen.append(point)
            self._known.add(point)
            if model is not None:
                model.add(point)
        history.add(chosen)
        return chosen

    def report(self, results: Sequence[Result]) -> None:
        """Learn values; see the port."""
        self._history.report(results)

    def replay(self, points: Sequence[Point], refused: int) -> None:
        """Advance as the `ask` that returned `points` did; see the port.

        Asks again only where the number of points passes a power of two: a search of a thousand
        points is checked at ten places.  Others are taken as they are, since what comes next
        depends on the points and values on record alone; and so is what a model chose that is not
        portable.
        """
        before = len(self._history.points)
        after = before + len(points)
        is_due = before.bit_length() < after.bit_length()
        if is_due and (self._is_portable or not self._has_model):
            expected = Expected(self._problem.coordinates, points, refused)
            self.ask(len(points), expected)
            expected.check()
            self._history.rename(points)
        else:
            self._check_bounds(points)
            self._history.add(points)
        self._known.update(points)

    def _valid(
        self, points: Iterator[Point], refused: set[Point], is_valid: Callable[[Point], bool]
    ) -> Point:
        """Return the first valid point; the best known one where too many in a row are not."""
        invalid = 0
        for point in self._new(points):
            if point in refused:
                continue
            if is_valid(point):
                return point
            refused.add(point)
            invalid += 1
            if invalid == _MOST_INVALID and self._known:
                break
        values = self._history.values
        known = sorted(values, key=lambda number: (values[number], number))
        best = (self._history.points[number] for number in known)
        return next(point for point in chain(best, points) if is_valid(point))

    @property
    def _has_model(self) -> bool:
        return len(self._history.values) >= _MIN_VALUES

    def _new(self, points: Iterator[Point]) -> Iterator[Point]:
        """Yield points that were not asked before, and repeats where those do not end."""
        repeats = 0
        for point in points:
            if point in self._known and repeats < _MOST_REPEATS:
                repeats += 1
            else:
                yield point

    def _check_bounds(self, points: Sequence[Point]) -> None:
        for point in points:
            if (
                len(point) != len(self._problem.coordinates)
                or nearest(self._problem, point) != point
            ):
                raise Differs(f"the point {point} is not one of this space")


def _start(problem: Problem, number: int) -> Iterator[Point]:
    """Yield the point of this number of those that fill the space."""
    import numpy

    if number == 0:
        yield nearest(problem, problem.start)
    design, row = divmod(number, _DESIGN)
    generator = numpy.random.default_rng([problem.seed, design])
    yield from_shares(problem, latin_hypercube(generator, _DESIGN, len(problem.coordinates))[row])


def _anywhere(problem: Problem, number: int) -> Iterator[Point]:
    """Yield random points without end."""
    import numpy

    generator = numpy.random.default_rng([problem.seed, number, _ANYWHERE])
    while True:
        yield from_shares(problem, generator.random(len(problem.coordinates)))


def seed_of(problem: Problem, number: int, attempt: int = 0) -> int:
    """Return the seed, below 2**32, of a generator that serves one attempt at one point."""
    import numpy

    return int(numpy.random.SeedSequence([problem.seed, number, attempt]).generate_state(1)[0])


def clipped(values: Sequence[float]) -> Any:
    """Return values as an array, with those far behind the median moved near.

    Failures are ranked behind all losses; as they are, they would flatten a model of the rest.
    """
    import numpy

    array = numpy.clip(numpy.array(values, dtype=float), -_LARGEST, _LARGEST)
    best, median = array.min(), numpy.median(array)
    return numpy.minimum(array, median + 2.0 * (median - best))
