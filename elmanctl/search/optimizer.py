"""The optimizer, CMA-ES by pycma: ask and tell, with its whole state as bytes.

pycma draws from two generators: its sampler from its own, its integer handling from numpy's global
one.  The state of the global generator is saved here and swapped in for each call, so that another
search in the process, or any other user of numpy, never changes the points.
"""

import math
import pickle
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

from elmanctl.constants import MAX_SEED, MIN_POPULATION
from elmanctl.errors import UsageError
from elmanctl.space.coordinate import Coordinate

# Limit on a saved state, far above any: the matrix of 1000 axes has 8 MB.
LARGEST_BYTES = 1 << 28

# Warnings of pycma about what a search does on purpose.
_EXPECTED = (
    # Points refused before submission have no fitness.
    r"(?s).*have not been consumed",
    # Integer points repeat.
    r"(?s).*keys with seemingly identical solutions were found",
    # Half a generation may fail, and failed points are replaced.
    r"(?s).*The number of solutions passed to `tell` should",
    r"(?s).*orphanated injected solution",
)


class CmaOptimizer:
    """CMA-ES by pycma, with bounds and integer coordinates.

    Reference: Hansen, "The CMA Evolution Strategy: A Tutorial", arXiv 1604.00772; integers by
    Marty et al., PPSN 2024, as pycma implements them.
    """

    def __init__(
        self, strategy: Any, numpy_state: Any, dimension: int, asked: list[tuple[float, ...]]
    ) -> None:
        self._strategy = strategy
        self._numpy_state = numpy_state
        self._dimension = dimension
        # The points since the last tell, as drawn: with the idle coordinate.
        self._asked = asked

    @classmethod
    def start(
        cls,
        coordinates: Sequence[Coordinate],
        start: Sequence[float],
        *,
        sigma: float,
        population: int,
        seed: int,
    ) -> "CmaOptimizer":
        """Return a new optimizer at `start`; `sigma` is a share of each coordinate's range.

        Raises UsageError for an invalid population, seed or sigma, or no coordinates.
        """
        if population < MIN_POPULATION:
            raise UsageError(
                f"a generation needs at least {MIN_POPULATION} evaluations, not {population}",
                hint="set `--population`",
            )
        if not 0 <= seed <= MAX_SEED:
            raise UsageError(f"the optimizer's seed must be from 0 to {MAX_SEED}, not {seed}")
        if not 0 < sigma < math.inf:
            raise UsageError(f"the first step size `sigma` must be above 0, not {sigma}")
        if not coordinates:
            raise UsageError("the search space has no axis to move")
        padded = list(coordinates)
        point = list(start)
        if len(padded) == 1:
            # pycma 4.5 fails on a single integer coordinate, so an idle second one is added.
            padded.append(Coordinate(low=0.0, high=1.0, integer=False))
            point.append(0.5)
        random_state = _numpy().random.RandomState
        optimizer = cls(None, random_state(seed + 1).get_state(), len(coordinates), [])
        with optimizer._own_numpy_state():
            optimizer._strategy = _cma().CMAEvolutionStrategy(
                point, sigma, _options(padded, population, seed, random_state(seed))
            )
        return optimizer

    @classmethod
    def load(cls, data: bytes) -> "CmaOptimizer":
        """Return the optimizer that `dump` wrote."""
        _cma()
        strategy, numpy_state, dimension, asked = pickle.loads(data)
        _rehash(strategy)
        return cls(strategy, numpy_state, dimension, asked)

    def dump(self) -> bytes:
        """Return the whole state, including both generators."""
        return pickle.dumps((self._strategy, self._numpy_state, self._dimension, self._asked))

    def ask(self, count: int) -> list[tuple[float, ...]]:
        """Return `count` new points, as tuples of plain floats."""
        with self._own_numpy_state():
            drawn = self._strategy.ask(count)
        points = [tuple(float(x) for x in point) for point in drawn]
        self._asked += points
        return [point[: self._dimension] for point in points]

    def tell(self, points: Sequence[Sequence[float]], values: Sequence[float]) -> None:
        """Learn the fitness values of one generation: at least half a population of them.

        Raises ValueError for a value that is not finite, which pycma would silently rank as
        average, and for a point that was not asked since the last tell.
        """
        if not all(math.isfinite(value) for value in values):
            raise ValueError("the optimizer takes finite values only")
        # As arrays: pycma's archives do not recognize a point given as a list.
        arrays = [_numpy().array(point) for point in self._as_drawn(points)]
        with self._own_numpy_state(), warnings.catch_warnings():
            for message in _EXPECTED:
                warnings.filterwarnings("ignore", message=message)
            self._strategy.tell(arrays, list(values))
        self._asked = []

    def _as_drawn(self, points: Sequence[Sequence[float]]) -> list[tuple[float, ...]]:
        """Return points with the idle coordinate; equal ones are matched in the order asked."""
        rest = list(self._asked)
        drawn = []
        for point in points:
            found = next((p for p in rest if p[: self._dimension] == tuple(point)), None)
            if found is None:
                raise ValueError(f"the point {tuple(point)} was not asked since the last tell")
            rest.remove(found)
            drawn.append(found)
        return drawn

    @contextmanager
    def _own_numpy_state(self) -> Iterator[None]:
        """Swap in the search's own state of numpy's global generator."""
        random = _numpy().random
        before = random.get_state()
        random.set_state(self._numpy_state)
        try:
            yield
            self._numpy_state = random.get_state()
        finally:
            random.set_state(before)


def _rehash(strategy: Any) -> None:
    """Renew the keys of pycma's archives of points.

    They are Python hashes of bytes, which differ between processes: without this, a restored
    optimizer finds no point in its archives and learns from rounded integers instead of the points
    as drawn.
    """
    from cma.utilities.utils import SolutionDict

    holders = (strategy, strategy._round_integer_variables)
    archives = {
        id(value): value
        for holder in holders
        for value in vars(holder).values()
        if isinstance(value, SolutionDict)
    }
    for archive in archives.values():
        renewed = {old: archive.key(x) for old, x in archive._unhashed_keys.items()}
        for name in ("data", "data_with_same_key", "_unhashed_keys"):
            table = getattr(archive, name)
            setattr(archive, name, {renewed[key]: value for key, value in table.items()})


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


def _cma() -> Any:
    with warnings.catch_warnings():
        # pycma's plots are not used.
        warnings.filterwarnings("ignore", message="Could not import matplotlib")
        import cma
    return cma


def _numpy() -> Any:
    import numpy

    return numpy
