"""The points that an optimizer asked and the values reported for them, by number."""

import math
from collections import defaultdict
from collections.abc import Iterable, Sequence

from elmanctl.search.optimizers.port import Point, Result


class History:
    """Points in the order asked, and their values; a point is known by its number in that order."""

    def __init__(self) -> None:
        self.points: list[Point] = []
        self.values: dict[int, float] = {}
        self._open: defaultdict[Point, list[int]] = defaultdict(list)

    def add(self, points: Iterable[Point]) -> None:
        """Add newly asked points."""
        for point in points:
            self._open[point].append(len(self.points))
            self.points.append(point)

    def rename(self, points: Sequence[Point]) -> None:
        """Give the newest points these last digits, by which their values will be reported."""
        first = len(self.points) - len(points)
        for number, point in enumerate(points, start=first):
            self._open[self.points[number]].remove(number)
            self._open[point].append(number)
            self.points[number] = point

    def report(self, results: Sequence[Result]) -> list[int]:
        """Record values; return the numbers of their points.

        Raises ValueError, with nothing recorded, for a value that is not finite and for a point
        that was not asked or has its value already.
        """
        numbers: list[int] = []
        taken: defaultdict[Point, int] = defaultdict(int)
        for point, value in results:
            if not math.isfinite(value):
                raise ValueError(f"the optimizer takes finite values only, not {value}")
            key = tuple(point)
            waiting = self._open.get(key, [])
            if taken[key] >= len(waiting):
                raise ValueError(f"the point {key} was not asked, or has its value already")
            numbers.append(waiting[taken[key]])
            taken[key] += 1
        for number, (_, value) in zip(numbers, results, strict=True):
            self.values[number] = float(value)
        for key, count in taken.items():
            del self._open[key][:count]
        return numbers

    @property
    def pending(self) -> list[Point]:
        """The points without a value, in the order asked."""
        return [p for number, p in enumerate(self.points) if number not in self.values]
