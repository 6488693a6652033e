"""The optimizer as ask and tell, with its whole state as bytes.

pycma draws from two generators: its sampler from the one it was given, its integer handling from
numpy's global one.  Both belong to the search here: the global state is swapped in for each call
and put back after it, so that two searches in one process, or any other user of numpy, never
change the points that are asked.
"""

import math
import pickle
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, Protocol

from elmanctl.constants import MIN_POPULATION
from elmanctl.errors import UsageError


@dataclass(frozen=True, slots=True, kw_only=True)
class Coordinate:
    """One coordinate of the optimizer: bounds, whether it is an integer, and its first spread."""

    low: float
    high: float
    integer: bool


class Optimizer(Protocol):
    """What the search loop needs: points out, finite values in, state as bytes."""

    def ask(self, count: int) -> list[tuple[float, ...]]:
        """Return `count` new points."""

    def tell(self, points: Sequence[Sequence[float]], values: Sequence[float]) -> None:
        """Learn the values of one generation's points; smaller is better."""

    def dump(self) -> bytes:
        """Return the whole state, generators included."""


class CmaOptimizer:
    """CMA-ES by pycma, with bounds and integer coordinates.

    Reference: Hansen, "The CMA Evolution Strategy: A Tutorial", arXiv 1604.00772; integers by
    Marty et al., PPSN 2024, as pycma implements them.
    """

    def __init__(self, strategy: Any, numpy_state: Any, dimension: int) -> None:
        self._strategy = strategy
        self._numpy_state = numpy_state
        self._dimension = dimension

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

        Raises UsageError for a population under four or no coordinates.
        """
        if population < MIN_POPULATION:
            raise UsageError(
                f"a generation needs at least {MIN_POPULATION} evaluations, not {population}",
                hint="set `--population`",
            )
        if not coordinates:
            raise UsageError("the search space has no axis to move")
        padded = list(coordinates)
        point = list(start)
        if len(padded) == 1:
            # pycma 4.5 fails on one integer coordinate; an idle second one carries it.
            padded.append(Coordinate(low=0.0, high=1.0, integer=False))
            point.append(0.5)
        numpy = _numpy()
        with _swapped_state(numpy.random.RandomState(seed + 1).get_state()) as state:
            strategy = _cma().CMAEvolutionStrategy(
                point, sigma, _options(padded, population, seed, numpy.random.RandomState(seed))
            )
        return cls(strategy, state.after, len(coordinates))

    @classmethod
    def load(cls, data: bytes) -> "CmaOptimizer":
        """Return the optimizer that `dump` wrote."""
        _cma()
        strategy, numpy_state, dimension = pickle.loads(data)
        _rehash(strategy)
        return cls(strategy, numpy_state, dimension)

    def dump(self) -> bytes:
        """Return the whole state, generators included."""
        return pickle.dumps((self._strategy, self._numpy_state, self._dimension))

    def ask(self, count: int) -> list[tuple[float, ...]]:
        """Return `count` new points; each is a tuple of plain floats."""
        with self._own_state():
            points = self._strategy.ask(count)
        return [tuple(float(x) for x in point[: self._dimension]) for point in points]

    def tell(self, points: Sequence[Sequence[float]], values: Sequence[float]) -> None:
        """Learn the values of one generation.

        Raises ValueError for a value that is not finite: pycma would silently rank it as average.
        """
        if not all(math.isfinite(value) for value in values):
            raise ValueError("the optimizer is told finite values only")
        padding = [0.5] * (self._strategy.N - self._dimension)
        with self._own_state(), warnings.catch_warnings():
            # Points refused before submission were asked and are never told.
            warnings.filterwarnings("ignore", message=r"(?s).*have not been consumed")
            self._strategy.tell([[*point, *padding] for point in points], list(values))

    @contextmanager
    def _own_state(self) -> Iterator[None]:
        with _swapped_state(self._numpy_state) as state:
            yield
        self._numpy_state = state.after


def _rehash(strategy: Any) -> None:
    """Renew the keys of pycma's archives of asked points.

    They are Python hashes of bytes, which differ from process to process: without this, another
    process finds no point in its archive, and learns from rounded integers in place of what
    was drawn.
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


@dataclass
class _State:
    after: Any = None


@contextmanager
def _swapped_state(state: Any) -> Iterator[_State]:
    random = _numpy().random
    before = random.get_state()
    random.set_state(state)
    swapped = _State()
    try:
        yield swapped
        swapped.after = random.get_state()
    finally:
        random.set_state(before)


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
        # A stray cma_signals.in in the working folder would stop the run.
        "signals_filename": "",
        "verbose": -10,
        "verb_log": 0,
        "verb_disp": 0,
    }


def _cma() -> Any:
    with warnings.catch_warnings():
        # matplotlib is optional for pycma and of no use here.
        warnings.filterwarnings("ignore", message="Could not import matplotlib")
        import cma
    return cma


def _numpy() -> Any:
    import numpy

    return numpy
