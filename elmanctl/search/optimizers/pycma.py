"""CMA-ES by pycma, with bounds and integer coordinates.

Reference: Hansen, "The CMA Evolution Strategy: A Tutorial", arXiv 1604.00772; integers by Marty et
al., PPSN 2024, as pycma implements them.

pycma draws from two generators: its sampler from its own, its integer handling from numpy's global
one.  The state of the global generator is kept here and swapped in for each call, so that another
search in the process, or any other user of numpy, never changes the points.
"""

import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

from elmanctl.search.optimizers.history import History
from elmanctl.search.optimizers.port import Expected, Point, Problem, Result
from elmanctl.space.coordinate import Coordinate

# Warnings of pycma about what a search does on purpose.
_EXPECTED = (
    # Points refused before submission have no fitness.
    r"(?s).*have not been consumed",
    # Integer points repeat.
    r"(?s).*keys with seemingly identical solutions were found",
    # Half a generation may fail, and failed points are replaced.
    r"(?s).*The number of solutions passed to `tell` should",
    r"(?s).*orphanated injected solution",
    # Values may come after those of later points: such a point is learned with its whole numbers.
    r"(?s).*solutions passed\s+to `tell` = .*phenotype-archived by `ask`",
)


class Strategy:
    """pycma's evolution strategy over coordinates, with generators of its own.

    pycma 4.5 fails on a single bounded coordinate, so an idle second one is added: rows that it
    draws have it, rows that it learns may.
    """

    def __init__(
        self,
        coordinates: Sequence[Coordinate],
        start: Sequence[float],
        *,
        sigma: float,
        population: int,
        seed: int,
    ) -> None:
        bounds, at = list(coordinates), list(start)
        self._is_padded = len(bounds) == 1
        if self._is_padded:
            bounds.append(Coordinate(low=0.0, high=1.0, integer=False))
            at.append(0.5)
        self._population = population
        self._has_drawn = False
        random_state = _numpy().random.RandomState
        self._numpy_state = random_state(seed + 1).get_state()
        with self._own_numpy_state():
            options = _options(bounds, population, seed, random_state(seed))
            self._strategy = load_cma().CMAEvolutionStrategy(at, sigma, options)

    def draw(self, count: int) -> Any:
        """Return a list of `count` new rows."""
        self._has_drawn = True
        with self._own_numpy_state():
            return self._strategy.ask(count)

    def learn(self, rows: Sequence[Any], values: Sequence[float]) -> None:
        """Update the distribution by rows, drawn or not, and their values."""
        if not self._has_drawn or self._strategy.pop_injection_directions:
            # pycma learns once after each draw, and not before what it injects into draws of more
            # than one is drawn; reports may come before that, and points be asked one by one.
            self.draw(self._population)
        self._has_drawn = False
        # As arrays: pycma's archives do not recognize a row given as a list.
        arrays = [_numpy().array(row) for row in rows]
        if self._is_padded:
            arrays = [row if len(row) == 2 else _numpy().append(row, 0.5) for row in arrays]
        with self._own_numpy_state(), warnings.catch_warnings():
            for message in _EXPECTED:
                warnings.filterwarnings("ignore", message=message)
            self._strategy.tell(arrays, list(values))

    @contextmanager
    def _own_numpy_state(self) -> Iterator[None]:
        """Swap in the strategy's own state of numpy's global generator."""
        random = _numpy().random
        before = random.get_state()
        random.set_state(self._numpy_state)
        try:
            yield
            self._numpy_state = random.get_state()
        finally:
            random.set_state(before)


class Pycma:
    """CMA-ES by pycma.

    It learns from a batch of reports: from a whole population as soon as it has one, and from at
    least half of one when the next generation is asked.
    """

    def __init__(self, problem: Problem) -> None:
        self._problem = problem
        self._history = History()
        # As drawn: before rounding, and with the last digits of this processor.
        self._drawn: list[Any] = []
        self._batch: list[int] = []
        self._strategy = Strategy(
            problem.coordinates,
            problem.start,
            sigma=problem.sigma,
            population=problem.population,
            seed=problem.seed,
        )

    def ask(self, count: int, is_valid: Callable[[Point], bool]) -> list[Point]:
        """Return `count` new valid points; see the port."""
        if count >= self._problem.population and len(self._batch) >= self._problem.population // 2:
            self._tell()
        chosen: list[Point] = []
        draws = self._strategy.draw(count)
        while True:
            for drawn in draws:
                point = tuple(float(x) for x in drawn)[: len(self._problem.coordinates)]
                if is_valid(point):
                    chosen.append(point)
                    self._drawn.append(drawn)
            if len(chosen) >= count:
                self._history.add(chosen)
                return chosen
            draws = self._strategy.draw(1)

    def replay(self, points: Sequence[Point], refused: int) -> None:
        """Advance as the `ask` that returned `points` did; see the port."""
        expected = Expected(self._problem.coordinates, points, refused)
        self.ask(len(points), expected)
        expected.check()
        self._history.rename(points)

    def report(self, results: Sequence[Result]) -> None:
        """Learn values; see the port."""
        self._batch += self._history.report(results)
        if len(self._batch) >= self._problem.population:
            self._tell()

    def _tell(self) -> None:
        rows = [self._drawn[number] for number in self._batch]
        self._strategy.learn(rows, [self._history.values[number] for number in self._batch])
        self._batch = []


def _options(
    coordinates: Sequence[Coordinate], population: int, seed: int, generator: Any
) -> dict[str, Any]:
    return {
        "seed": seed,
        "randn": generator.randn,
        "popsize": population,
        "bounds": [[c.low for c in coordinates], [c.high for c in coordinates]],
        "CMA_stds": [c.high - c.low for c in coordinates],
        "integer_variables": [i for i, c in enumerate(coordinates) if c.integer],
        # A stray cma_signals.in in the working folder would stop pycma.
        "signals_filename": "",
        "verbose": -10,
        "verb_log": 0,
        "verb_disp": 0,
    }


def load_cma() -> Any:
    """Return the package of pycma."""
    with warnings.catch_warnings():
        # pycma's plots are not used.
        warnings.filterwarnings("ignore", message="Could not import matplotlib")
        import cma
    return cma


def _numpy() -> Any:
    import numpy

    return numpy
