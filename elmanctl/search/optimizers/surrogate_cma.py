"""CMA-ES whose candidates are screened by a surrogate: the search method by default.

The first generation is the start point and a Latin hypercube.  In each later one CMA-ES draws four
times as many candidates as are wanted; two of three points are those of them for which the
surrogate predicts least, the third is that of the highest expected improvement among all these and
others, which lie anywhere and around the best.  CMA-ES learns from every point.  So the surrogate
does the most while there are few values, and CMA-ES goes where no surrogate is exact.

Points that are asked one by one are chosen from as many candidates as those of a generation, and by
turns from the better half of a generation: the very best of each draw alone would be too greedy.

What is asked is a function of the problem and its history, and a replay fits no surrogate: the
candidates are drawn again, and the points on record must be among them.
"""

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import chain

import numpy as np

from elmanctl.search.optimizers.history import History
from elmanctl.search.optimizers.port import CLOSE, Differs, Point, Problem, Result
from elmanctl.search.optimizers.pycma import Strategy
from elmanctl.search.optimizers.space_filling import latin_hypercube
from elmanctl.search.optimizers.surrogate import Array, Posterior, Surrogate
from elmanctl.search.optimizers.unit_cube import rows_from_shares, to_shares
from elmanctl.space.coordinate import Coordinate

# Draws of CMA-ES for each point of a generation.
_SCREENED = 4

# Of so many points one is chosen by its expected improvement.
_EXPLORING = 3

# Other candidates: anywhere, and around the best points.
_ANYWHERE = 600
_AROUND = 1_500
_BEST = 5
_REACH = (0.02, 0.3)

# Values that a surrogate needs.
_LEAST_VALUES = 4

# Its time grows with the cube of the values: the best and the newest are enough.
_LEARNED = (100, 60)

# So many points without a value are believed to have that which the surrogate predicts.
_PENDING = 64

# Random points to fall back on where every candidate is known or invalid.
_FALLBACK = 1_500

# So many invalid candidates are passed over for one point before another one is repeated.
_PATIENCE = 100


@dataclass(frozen=True, slots=True)
class _Candidates:
    """Candidates of one ask.

    `points` and `shares` are [m, axes]: first those that CMA-ES drew, its rows being `own`, then
    others up to `proposed`, then random ones to fall back on.
    """

    points: Array
    shares: Array
    own: Sequence[Array]
    proposed: int

    def point(self, place: int) -> Point:
        """Return a candidate as a point."""
        return tuple(self.points[place].tolist())

    def learned(self, place: int) -> Array:
        """Return what CMA-ES learns of a candidate: the row that it drew, where it did."""
        return self.own[place] if place < len(self.own) else self.shares[place]

    def place(self, point: Point, coordinates: Sequence[Coordinate]) -> int | None:
        """Return where a point first is, None if it is not a candidate."""
        widths = np.array([0.25 if c.integer else CLOSE * (c.high - c.low) for c in coordinates])
        # A converged search draws points that are closer to each other than the tolerance.
        apart = (np.abs(self.points - np.array(point)) / widths).max(axis=1)
        nearest = int(apart.argmin())
        return nearest if apart[nearest] <= 1.0 else None


class SurrogateCma:
    """CMA-ES by pycma on the unit cube, with a surrogate."""

    def __init__(self, problem: Problem) -> None:
        self._problem = problem
        self._history = History()
        self._known: set[Point] = set()
        # What CMA-ES learns of each point asked.
        self._rows: list[Array] = []
        self._strategy: Strategy | None = None
        self._batch: list[int] = []

    def ask(self, count: int, is_valid: Callable[[Point], bool]) -> list[Point]:
        """Return `count` new valid points; see the port."""
        found = self._candidates(count)
        posterior = self._posterior(found)
        passed = set(self._known)
        points: list[Point] = []
        for number in range(len(self._rows), len(self._rows) + count):
            order = _order(found, posterior, number, self._rank(count, number))
            place = self._new(found, order, passed, is_valid)
            if place is None:
                points.append(self._repeated(found, is_valid))
                continue
            points.append(found.point(place))
            if posterior is not None and place < found.proposed:
                posterior.believe(place)
        self._add(points, found)
        return points

    def _rank(self, count: int, number: int) -> int:
        """Return how many of the best candidates are passed over for the point of this number."""
        population = self._problem.population
        if count >= population:
            return 0
        ranks = population // 2
        # Every third point explores: the others would meet but some of so many ranks.
        return number % (ranks + (ranks % _EXPLORING == 0))

    def _new(
        self,
        found: _Candidates,
        order: Iterable[int],
        passed: set[Point],
        is_valid: Callable[[Point], bool],
    ) -> int | None:
        """Return the first valid candidate not `passed`, None without; add what is passed now."""
        refused = 0
        for place in order:
            point = found.point(place)
            if point in passed:
                continue
            passed.add(point)
            if is_valid(point):
                return place
            refused += 1
            if refused == _PATIENCE and self._known:
                break
        return None

    def _repeated(self, found: _Candidates, is_valid: Callable[[Point], bool]) -> Point:
        """Return a point that was asked before, which costs nothing: the best valid one."""
        values = self._history.values
        known = sorted(values, key=lambda number: (values[number], number))
        points = (self._history.points[number] for number in known)
        anywhere = (found.point(place) for place in range(found.proposed, len(found.points)))
        return next(point for point in chain(points, anywhere) if is_valid(point))

    def report(self, results: Sequence[Result]) -> None:
        """Learn values; see the port."""
        self._batch += self._history.report(results)
        if len(self._batch) >= self._problem.population:
            self._learn()

    def replay(self, points: Sequence[Point], refused: int) -> None:
        """Advance as the `ask` that returned `points` did; see the port."""
        self._add(points, self._candidates(len(points)))

    def _add(self, points: Sequence[Point], found: _Candidates) -> None:
        for point in points:
            place = found.place(point, self._problem.coordinates)
            if place is None and point not in self._known:
                raise Differs(f"the point {point} is not among its candidates")
            own = to_shares(self._problem, [point])[0]
            self._rows.append(own if place is None else found.learned(place))
        self._history.add(points)
        self._known.update(points)

    def _learn(self) -> None:
        if self._strategy is not None:
            values = [self._history.values[number] for number in self._batch]
            self._strategy.learn([self._rows[number] for number in self._batch], values)
        self._batch = []

    def _candidates(self, count: int) -> _Candidates:
        """Return the candidates of the next ask, and advance CMA-ES to it."""
        problem, first = self._problem, len(self._rows)
        if count >= problem.population and len(self._batch) >= problem.population // 2:
            self._learn()
        # The stream of this generator is the same in every version of numpy.
        draw = np.random.RandomState([problem.seed, first])
        axes = len(problem.coordinates)
        own: Sequence[Array] = ()
        if len(self._history.values) < _LEAST_VALUES:
            start = to_shares(problem, [problem.start])[: first == 0]
            others = np.concatenate([start, latin_hypercube(draw, problem.population, axes)])
        else:
            self._strategy = self._strategy or self._started()
            own = self._strategy.draw(_SCREENED * max(count, problem.population))
            others = np.concatenate([draw.random_sample((_ANYWHERE, axes)), self._around(draw)])
        drawn = np.array([row[:axes] for row in own]).reshape(len(own), axes)
        anywhere = draw.random_sample((_FALLBACK, axes))
        points = rows_from_shares(problem, np.concatenate([drawn, others, anywhere]))
        return _Candidates(points, to_shares(problem, points), own, len(drawn) + len(others))

    def _started(self) -> Strategy:
        """Return CMA-ES at the best point so far."""
        problem = self._problem
        best = min(self._history.values, key=self._history.values.__getitem__)
        return Strategy(
            [Coordinate(low=0.0, high=1.0, integer=False)] * len(problem.coordinates),
            to_shares(problem, [self._history.points[best]])[0],
            sigma=problem.sigma,
            population=problem.population,
            seed=problem.seed,
        )

    def _around(self, draw: np.random.RandomState) -> Array:
        """Return shares [m, axes] around the best points, moved in about two coordinates each."""
        values = self._history.values
        best = sorted(values, key=lambda number: (values[number], number))[:_BEST]
        centres = to_shares(self._problem, [self._history.points[number] for number in best])
        rows = np.repeat(centres, _AROUND // len(best), axis=0)
        count, axes = rows.shape
        low, high = np.log(_REACH)
        steps = draw.standard_normal(rows.shape) * np.exp(draw.uniform(low, high, (count, 1)))
        # A whole number moves by one at least.
        steps = np.sign(steps) * np.maximum(np.abs(steps), self._widths())
        moved = np.maximum(1, draw.binomial(axes, min(1.0, 2.0 / axes), count))
        is_moved = draw.random_sample(rows.shape).argsort(axis=1) < moved[:, None]
        rows = np.abs(rows + np.where(is_moved, steps, 0.0))
        return np.asarray(np.clip(np.where(rows > 1.0, 2.0 - rows, rows), 0.0, 1.0))

    def _widths(self) -> Array:
        """Return the share of its range that one whole number takes, 0 where there are none."""
        return np.array(
            [1.0 / (c.high - c.low) if c.integer else 0.0 for c in self._problem.coordinates]
        )

    def _posterior(self, found: _Candidates) -> Posterior | None:
        """Return what the surrogate says of the candidates, None with too few values."""
        values = self._history.values
        if len(values) < _LEAST_VALUES:
            return None
        most_best, most_new = _LEARNED
        best = sorted(values, key=lambda number: (values[number], number))[:most_best]
        learned = sorted({*best, *sorted(values)[-most_new:]})
        surrogate = Surrogate(
            to_shares(self._problem, [self._history.points[number] for number in learned]),
            np.array([values[number] for number in learned]),
        )
        pending = self._history.pending[-_PENDING:]
        proposed = found.shares[: found.proposed]
        shares = np.concatenate([proposed, to_shares(self._problem, pending)])
        posterior = surrogate.posterior(shares)
        for place in range(len(proposed), len(shares)):
            posterior.believe(place)
        return posterior


def _order(
    found: _Candidates, posterior: Posterior | None, number: int, rank: int
) -> Iterator[int]:
    """Yield candidates for the point of this number, the best first, or first that of a rank."""
    if posterior is None:
        yield from range(len(found.points))
        return
    if number % _EXPLORING < _EXPLORING - 1:
        order = np.argsort(posterior.mean[: len(found.own)], kind="stable").tolist()
        yield from (*order[rank : rank + 1], *order)
    gain = posterior.improvement()[: found.proposed]
    yield from np.argsort(-gain, kind="stable").tolist()
    yield from range(found.proposed, len(found.points))
