"""A coordinate of a search space, as the optimizer sees it."""

from dataclasses import dataclass


@dataclass(frozen=True, slots=True, kw_only=True)
class Coordinate:
    """Bounds of one coordinate, and whether it is an integer."""

    low: float
    high: float
    integer: bool
