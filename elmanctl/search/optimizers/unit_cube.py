"""The unit cube of a problem: each coordinate as a share, whole ones in shares of equal width."""

import math
from collections.abc import Iterable, Sequence
from typing import Any

from elmanctl.search.optimizers.port import Point, Problem
from elmanctl.space.coordinate import Coordinate


def levels(coordinate: Coordinate) -> range:
    """Return the values of an integer coordinate."""
    return range(math.ceil(coordinate.low), math.floor(coordinate.high) + 1)


def is_constant(coordinate: Coordinate) -> bool:
    """Whether a coordinate has one value only."""
    if coordinate.integer:
        return len(levels(coordinate)) == 1
    return coordinate.low == coordinate.high


def from_shares(problem: Problem, shares: Iterable[float]) -> Point:
    """Return the point at these shares, each from 0 to 1."""
    pairs = zip(problem.coordinates, shares, strict=True)
    return tuple(_value(coordinate, float(share)) for coordinate, share in pairs)


def to_shares(problem: Problem, points: Sequence[Point]) -> Any:
    """Return points as shares, an array of shape (points, coordinates).

    A whole number is in the middle of its share; a coordinate with one value is at 0.5.
    """
    import numpy

    lows, widths = [], []
    for coordinate in problem.coordinates:
        if coordinate.integer:
            values = levels(coordinate)
            lows.append(values[0] - 0.5)
            widths.append(float(len(values)))
        else:
            is_one = is_constant(coordinate)
            lows.append(coordinate.low - 0.5 if is_one else coordinate.low)
            widths.append(1.0 if is_one else coordinate.high - coordinate.low)
    rows = numpy.array(points, dtype=float).reshape(len(points), len(problem.coordinates))
    return (rows - numpy.array(lows)) / numpy.array(widths)


def rows_from_shares(problem: Problem, shares: Any) -> Any:
    """Return the points at shares (points, coordinates), as an array of the same shape."""
    import numpy

    columns = []
    for coordinate, column in zip(problem.coordinates, shares.T, strict=True):
        if coordinate.integer:
            values = levels(coordinate)
            index = numpy.minimum(column * len(values), len(values) - 1).astype(int)
            columns.append(values[0] + index.astype(float))
        else:
            low, high = coordinate.low, coordinate.high
            columns.append(numpy.clip(low + column * (high - low), low, high))
    return numpy.stack(columns, axis=1)


def nearest(problem: Problem, point: Point) -> Point:
    """Return the point within the bounds, whole in integer coordinates, that is nearest."""
    inside = []
    for coordinate, x in zip(problem.coordinates, point, strict=True):
        low, high = coordinate.low, coordinate.high
        if coordinate.integer:
            values = levels(coordinate)
            low, high, x = values[0], values[-1], round(x)
        inside.append(float(min(max(x, low), high)))
    return tuple(inside)


def _value(coordinate: Coordinate, share: float) -> float:
    if coordinate.integer:
        values = levels(coordinate)
        return float(values[min(int(share * len(values)), len(values) - 1)])
    value = coordinate.low + share * (coordinate.high - coordinate.low)
    return min(max(value, coordinate.low), coordinate.high)
