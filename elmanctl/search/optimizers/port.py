"""The port of an optimizer: ask for points, report their values, replay what is on record.

An optimizer is a function of its problem and of the sequence of asks and reports.  It draws from
generators of its own, made from the seed of the problem; the clock, the hash seed of Python and the
global generators of a process have no part in it.  Therefore nothing of it is saved: its state
after any event is rebuilt from the ledger.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Protocol, runtime_checkable

from elmanctl.space.coordinate import Coordinate

# One number for each coordinate of the space.
Point = tuple[float, ...]
Result = tuple[Point, float]

# Two processors round the last digits of a point differently; two versions of a library do more.
CLOSE = 1e-6


@dataclass(frozen=True, slots=True, kw_only=True)
class Problem:
    """All that decides the points of an optimizer besides the values reported to it.

    `sigma` is the first step size as a share of each coordinate's range, `population` the points
    of a generation, `budget` the evaluations of the whole search.  `design` is the number of points
    that fill the space before an optimizer which begins so, and `starts` how many of the best of
    them it starts from.
    """

    coordinates: tuple[Coordinate, ...]
    start: Point
    sigma: float
    population: int
    seed: int
    budget: int
    design: int = 64
    starts: int = 2
    is_asynchronous: bool = False


class Differs(Exception):
    """The points on record are not those that a replayed ask returns; the message says how."""


class Optimizer(Protocol):
    """A search method over points."""

    def ask(self, count: int, is_valid: Callable[[Point], bool]) -> list[Point]:
        """Return `count` new points, each of which `is_valid`; others are drawn in place of those.

        Points are plain floats within the bounds, whole for integer coordinates.  `is_valid` may
        raise to end a search for valid points; the optimizer is of no use after that.
        """

    def report(self, results: Sequence[Result]) -> None:
        """Learn values: the lower, the better.

        Reports may come in any order, also of points that were asked before an earlier report;
        equal points are matched in the order asked.  Raises ValueError for a value that is not
        finite, and for a point that was not asked or has its value already.
        """

    def replay(self, points: Sequence[Point], refused: int) -> None:
        """Advance as the `ask` did that returned `points` after `refused` invalid ones.

        Raises Differs when that ask would not return them here.
        """


@runtime_checkable
class SelfEnding(Protocol):
    """An optimizer that may end a search by criteria of its own."""

    @property
    def ending(self) -> str | None:
        """Why nothing more is to be asked, None as long as something is."""


class Expected:
    """An `is_valid` for a replay: it accepts the points on record, one after the other."""

    def __init__(
        self, coordinates: Sequence[Coordinate], points: Sequence[Point], refused: int
    ) -> None:
        self._coordinates = coordinates
        self._rest = list(points)
        self._refused = refused

    def __call__(self, point: Point) -> bool:
        """Whether `point` is the next one on record; raises Differs after too many others."""
        if self._rest and is_close(self._coordinates, point, self._rest[0]):
            del self._rest[0]
            return True
        self._refused -= 1
        if self._refused < 0:
            raise Differs("its points are not those that the seed gives here")
        return False

    def check(self) -> None:
        """Raise Differs unless as many points were refused as on record."""
        if self._refused:
            raise Differs(f"{self._refused} more points were refused")


def is_close(coordinates: Sequence[Coordinate], one: Point, other: Point) -> bool:
    """Whether two points are the same but for the last digits of a processor."""
    return len(one) == len(other) == len(coordinates) and all(
        a == b if c.integer else abs(a - b) <= CLOSE * (c.high - c.low)
        for c, a, b in zip(coordinates, one, other, strict=True)
    )
