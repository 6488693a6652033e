"""A coordinate of a search space, as the optimizer sees it."""

from dataclasses import dataclass


@dataclass(frozen=True, slots=True, kw_only=True)
class Coordinate:
    """One coordinate of the optimizer: bounds, whether it is an integer, and its first spread."""

    low: float
    high: float
    integer: bool
