"""Space-filling optimizers: random points, a Sobol sequence, Latin hypercubes.

They learn nothing: which points come next depends on the seed alone.
"""

from collections.abc import Callable, Iterator, Sequence
from typing import Any

from elmanctl.search.optimizers.history import History
from elmanctl.search.optimizers.port import Expected, Point, Problem, Result
from elmanctl.search.optimizers.unit_cube import from_shares

# Blocks of Sobol points are balanced where their size is a power of two.
_SOBOL_BLOCK = 64


class SpaceFilling:
    """An optimizer that takes its points from an endless stream."""

    def __init__(self, problem: Problem, stream: Iterator[Point]) -> None:
        self._problem = problem
        self._stream = stream
        self._history = History()

    def ask(self, count: int, is_valid: Callable[[Point], bool]) -> list[Point]:
        """Return `count` new valid points; see the port."""
        chosen: list[Point] = []
        while len(chosen) < count:
            point = next(self._stream)
            if is_valid(point):
                chosen.append(point)
        self._history.add(chosen)
        return chosen

    def report(self, results: Sequence[Result]) -> None:
        """Check the reports, and learn nothing; see the port."""
        self._history.report(results)

    def replay(self, points: Sequence[Point], refused: int) -> None:
        """Advance as the `ask` that returned `points` did; see the port."""
        expected = Expected(self._problem.coordinates, points, refused)
        self.ask(len(points), expected)
        expected.check()
        self._history.rename(points)


def random_points(problem: Problem) -> Iterator[Point]:
    """Yield independent points, each even over the space."""
    generator = _numpy().random.default_rng(problem.seed)
    while True:
        yield from_shares(problem, generator.random(len(problem.coordinates)))


def sobol_points(problem: Problem) -> Iterator[Point]:
    """Yield the points of a scrambled Sobol sequence (Owen, "Randomly permuted (t,m,s)-nets")."""
    from scipy.stats import qmc

    generator = _numpy().random.default_rng(problem.seed)
    sequence = qmc.Sobol(len(problem.coordinates), scramble=True, rng=generator)
    while True:
        for shares in sequence.random(_SOBOL_BLOCK):
            yield from_shares(problem, shares)


def latin_hypercube_points(problem: Problem) -> Iterator[Point]:
    """Yield a Latin hypercube as large as the budget, then others for what was refused of it."""
    generator = _numpy().random.default_rng(problem.seed)
    while True:
        for shares in latin_hypercube(generator, problem.budget, len(problem.coordinates)):
            yield from_shares(problem, shares)


def latin_hypercube(generator: Any, count: int, dimension: int) -> Any:
    """Return shares of shape (count, dimension): in each coordinate one in each of `count` strata.

    Reference: McKay, Beckman and Conover, Technometrics 21 (1979), 239-245.
    """
    numpy = _numpy()
    strata = numpy.column_stack([generator.permutation(count) for _ in range(dimension)])
    return (strata + generator.random((count, dimension))) / count


def _numpy() -> Any:
    import numpy

    return numpy
