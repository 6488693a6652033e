"""CMA-ES as a study of January 2026 ran it: bare pycma on the unit cube, values by rounding.

It is here to be compared with, and does what this program's own optimizers do not: values of finite
axes are rounded from a share, a point that cannot be built is a loss of 10 that moves the
distribution, repeats count again, and pycma's own criteria end the search.
"""

import warnings
from collections.abc import Callable, Sequence
from typing import Any

from elmanctl.constants import STUDY_FAILURE
from elmanctl.search.optimizers.history import History
from elmanctl.search.optimizers.port import Expected, Point, Problem, Result
from elmanctl.search.optimizers.pycma import load_cma
from elmanctl.search.optimizers.unit_cube import levels
from elmanctl.space.coordinate import Coordinate


class Study:
    """The study's search; a generation with invalid points is shorter for them.

    It learns from a generation when all of its points have a value.
    """

    def __init__(self, problem: Problem) -> None:
        self._problem = problem
        self._history = History()
        # The newest generation as drawn, and the numbers of its points; None for an invalid one.
        self._drawn: list[tuple[Any, int | None]] = []
        self._ending: str | None = None
        pairs = zip(problem.coordinates, problem.start, strict=True)
        start = [_share(coordinate, x) for coordinate, x in pairs]
        # The study's search of one axis failed: pycma 4.5 needs a second one.
        start += [0.5] * (len(start) == 1)
        self._strategy = _strategy(start, problem)

    @property
    def ending(self) -> str | None:
        """Why pycma ended the search by its own criteria, None if it did not."""
        return self._ending

    def ask(self, count: int, is_valid: Callable[[Point], bool]) -> list[Point]:
        """Return those of `count` new points that are valid."""
        if count >= self._problem.population:
            self._tell()
        chosen: list[Point] = []
        for drawn in self._strategy.ask(count):
            point = self._point(drawn)
            if is_valid(point):
                self._drawn.append((drawn, len(self._history.points) + len(chosen)))
                chosen.append(point)
            else:
                self._drawn.append((drawn, None))
        self._history.add(chosen)
        return chosen

    def replay(self, points: Sequence[Point], refused: int) -> None:
        """Advance as the `ask` that returned `points` did; see the port."""
        expected = Expected(self._problem.coordinates, points, refused)
        self.ask(len(points) + refused, expected)
        expected.check()
        self._history.rename(points)

    def report(self, results: Sequence[Result]) -> None:
        """Learn values; see the port."""
        self._history.report(results)
        is_whole = len(self._drawn) >= self._problem.population
        if is_whole and not self._history.pending:
            self._tell()

    def _tell(self) -> None:
        values = self._history.values
        valued = [
            (drawn, STUDY_FAILURE if number is None else values[number])
            for drawn, number in self._drawn
            if number is None or number in values
        ]
        self._drawn = []
        if len(valued) < max(3, self._problem.population // 2):
            return
        with warnings.catch_warnings():
            # Fewer than a population, where the last generation of a search was extended.
            warnings.filterwarnings("ignore", message=r"(?s).*The number of solutions passed")
            self._strategy.tell([drawn for drawn, _ in valued], [value for _, value in valued])
        met = ", ".join(f"{name} {value:g}" for name, value in self._strategy.stop().items())
        self._ending = f"pycma ended it: {met}" if met else None

    def _point(self, drawn: Any) -> Point:
        return tuple(
            _value(coordinate, float(x))
            for coordinate, x in zip(self._problem.coordinates, drawn, strict=False)
        )


def _share(coordinate: Coordinate, x: float) -> float:
    """Return the share of a coordinate: 0 is its first value, 1 its last."""
    low, high = _ends(coordinate)
    return 0.5 if low == high else min(max((x - low) / (high - low), 0.0), 1.0)


def _value(coordinate: Coordinate, share: float) -> float:
    low, high = _ends(coordinate)
    x = low + min(max(share, 0.0), 1.0) * (high - low)
    return float(round(x)) if coordinate.integer else x


def _ends(coordinate: Coordinate) -> tuple[float, float]:
    if not coordinate.integer:
        return coordinate.low, coordinate.high
    values = levels(coordinate)
    return float(values[0]), float(values[-1])


def _strategy(start: Sequence[float], problem: Problem) -> Any:
    import numpy

    # pycma seeds numpy's global generator, though it draws from this one.
    before = numpy.random.get_state()
    try:
        return load_cma().CMAEvolutionStrategy(
            list(start),
            problem.sigma,
            {
                "bounds": [0, 1],
                "popsize": problem.population,
                "seed": problem.seed or 1,
                "randn": numpy.random.RandomState(problem.seed).randn,
                # The generations of a search are counted by the search.
                "maxiter": 10**9,
                "signals_filename": "",
                "verbose": -9,
                "verb_log": 0,
            },
        )
    finally:
        numpy.random.set_state(before)
