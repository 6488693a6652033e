"""CatCMA with margin, the CMA-ES for mixed spaces of the package `cmaes`.

Reference: Hamano et al., "CatCMA with Margin", arXiv 2504.07884.

The library sorts and changes the list that it is told, ranks NaN anywhere, needs as many values as
its population, and fails where all values are equal.  It is told lists of our own, the ranks
instead of the values, full populations, and nothing of values that are all equal.
"""

from collections.abc import Callable, Sequence
from typing import Any

from elmanctl.search.optimizers.history import History
from elmanctl.search.optimizers.model_based import seed_of
from elmanctl.search.optimizers.port import Expected, Point, Problem, Result
from elmanctl.search.optimizers.unit_cube import from_shares, is_constant, levels, to_shares
from elmanctl.space.coordinate import Coordinate

# The library holds a table of all values of its integers: those with more are continuous to it.
_MOST_LEVELS = 1_000

# No sound distribution draws a solution so far out, in shares or in numbers of values.
_FARTHEST = 1e9


class CatCma:
    """CatCMA with margin.

    It learns from a whole population of values as soon as it has one; values beyond it wait for
    the next.  When its distribution degenerates it starts again at the best point so far.
    """

    def __init__(self, problem: Problem) -> None:
        self._problem = problem
        self._history = History()
        # The solution of the library for each point, by the point's number.
        self._solutions: list[Any] = []
        self._batch: list[int] = []
        moving = [i for i, c in enumerate(problem.coordinates) if not is_constant(c)]
        self._integers = [i for i in moving if _is_table(problem.coordinates[i])]
        self._shares = [i for i in moving if not _is_table(problem.coordinates[i])]
        self._restarts = 0
        # Points with lower numbers are of a distribution that is no more.
        self._first = 0
        self._strategy = self._start(problem.start, problem.seed)

    def ask(self, count: int, is_valid: Callable[[Point], bool]) -> list[Point]:
        """Return `count` new valid points; see the port."""
        chosen: list[Point] = []
        while len(chosen) < count:
            solution = self._draw()
            point = self._point(solution)
            if is_valid(point):
                chosen.append(point)
                self._solutions.append(solution)
        self._history.add(chosen)
        return chosen

    def replay(self, points: Sequence[Point], refused: int) -> None:
        """Advance as the `ask` that returned `points` did; see the port."""
        expected = Expected(self._problem.coordinates, points, refused)
        self.ask(len(points), expected)
        expected.check()
        self._history.rename(points)

    def report(self, results: Sequence[Result]) -> None:
        """Learn values; see the port."""
        numbers = self._history.report(results)
        self._batch += [number for number in numbers if number >= self._first]
        population = self._problem.population
        while len(self._batch) >= population:
            batch, self._batch = self._batch[:population], self._batch[population:]
            self._tell(batch)

    def _tell(self, numbers: Sequence[int]) -> None:
        values = self._history.values
        if len({values[number] for number in numbers}) == 1:
            return
        ranked = sorted(numbers, key=lambda number: (values[number], number))
        told = [(self._solutions[number], float(rank)) for rank, number in enumerate(ranked)]
        try:
            with _numpy().errstate(all="ignore"):
                self._strategy.tell(told)
        except _numpy().linalg.LinAlgError:
            self._restart()

    def _draw(self) -> Any:
        """Return a solution, from a new distribution where the present one has degenerated."""
        numpy = _numpy()
        while True:
            try:
                with numpy.errstate(all="ignore"):
                    solution = self._strategy.ask()
            except numpy.linalg.LinAlgError:
                pass
            else:
                # Comparisons with NaN are false.
                if numpy.all(numpy.abs(solution._v_raw) < _FARTHEST):
                    return solution
            self._restart()

    def _restart(self) -> None:
        history = self._history
        best = min(history.values, key=lambda number: (history.values[number], number))
        self._restarts += 1
        self._first, self._batch = len(self._solutions), []
        seed = seed_of(self._problem, self._restarts)
        self._strategy = self._start(history.points[best], seed)

    def _start(self, start: Point, seed: int) -> Any:
        from cmaes import CatCMAwM

        numpy = _numpy()
        counts = [len(levels(self._problem.coordinates[i])) for i in self._integers]
        shares = to_shares(self._problem, [start])[0]
        indices = [shares[i] * n - 0.5 for i, n in zip(self._integers, counts, strict=True)]
        widths = numpy.array([1.0] * len(self._shares) + [float(n) for n in counts])
        return CatCMAwM(
            x_space=[[0.0, 1.0]] * len(self._shares) or None,
            z_space=[list(range(n)) for n in counts] or None,
            population_size=self._problem.population,
            mean=numpy.array([*(shares[i] for i in self._shares), *indices], dtype=float),
            sigma=self._problem.sigma,
            # By default nothing moves along a coordinate whose mean is at a bound.
            cov=numpy.diag(widths**2),
            seed=seed,
        )

    def _point(self, solution: Any) -> Point:
        """Return the point of a solution."""
        coordinates = self._problem.coordinates
        shares = [0.5] * len(coordinates)
        for i, x in zip(self._shares, () if solution.x is None else solution.x, strict=True):
            shares[i] = float(x)
        point = list(from_shares(self._problem, shares))
        for i, z in zip(self._integers, () if solution.z is None else solution.z, strict=True):
            point[i] = float(levels(coordinates[i])[int(z)])
        return tuple(point)


def _is_table(coordinate: Coordinate) -> bool:
    return coordinate.integer and len(levels(coordinate)) <= _MOST_LEVELS


def _numpy() -> Any:
    import numpy

    return numpy
