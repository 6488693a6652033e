"""Objective of simulated searches: a noise-free value at every point, with noise and failures."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

import numpy as np
import numpy.typing as npt

from elmanctl.errors import InvalidConfiguration
from elmanctl.space.axis import Axis, Value

Array = npt.NDArray[np.float64]

_SAMPLE = 1024
_STARTS = 8
_STEPS = 40
_NEIGHBOURS = 48


class Surface(Protocol):
    """The noise-free value at every point of a space."""

    @property
    def fingerprint(self) -> str:
        """A text that differs wherever another value may be returned."""

    def values(self, points: Array) -> Array:
        """Return the values [n] at points [n, axes]; infinity where training diverges."""

    def is_valid(self, point: Sequence[float]) -> bool:
        """Whether the configuration at a point can be trained."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Objective:
    """A surface, with the standard deviation of a loss on it and the share of failures.

    `best` is the lowest value known, `typical` the median at random points: a regret is measured
    from the one to the other.
    """

    name: str
    axes: tuple[Axis, ...]
    surface: Surface
    noise: float
    failure_share: float
    best: float
    typical: float

    def regret(self, value: float) -> float:
        """Return how far a value is above the best: 0 there, 1 at the median of random points."""
        return (value - self.best) / (self.typical - self.best)

    @property
    def fingerprint(self) -> str:
        """A text that differs for any other objective."""
        axes = [(axis.name, axis.encode()) for axis in self.axes]
        return repr((axes, self.surface.fingerprint, self.noise, self.failure_share))


class Source(Protocol):
    """An objective for every seed: always the same one, or a family of them."""

    @property
    def name(self) -> str:
        """The name in tables."""

    @property
    def axes(self) -> tuple[Axis, ...]:
        """The axes of every objective."""

    def at(self, seed: int) -> Objective:
        """Return the objective of the searches with a seed."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Constant:
    """The same objective for every seed."""

    objective: Objective

    @property
    def name(self) -> str:
        """The name in tables."""
        return self.objective.name

    @property
    def axes(self) -> tuple[Axis, ...]:
        """The axes of the objective."""
        return self.objective.axes

    def at(self, seed: int) -> Objective:
        """Return the objective."""
        return self.objective


def values_at(axes: Sequence[Axis], point: Sequence[float]) -> tuple[Value, ...]:
    """Return the value of every axis at a point: equal ones train the same configuration."""
    return tuple(axis.value(x) for axis, x in zip(axes, point, strict=True))


def shares(axes: Sequence[Axis], points: Array) -> Array:
    """Return points [n, axes] as shares of each axis' range, from 0 to 1."""
    last = np.array([1.0 if axis.levels is None else len(axis.levels) - 1.0 for axis in axes])
    return np.asarray(np.asarray(points, dtype=np.float64) / last)


def random_points(axes: Sequence[Axis], count: int, draw: np.random.Generator) -> Array:
    """Return uniform points [count, axes]: whole numbers on finite axes."""
    columns = [
        draw.random(count)
        if axis.levels is None
        else draw.integers(0, len(axis.levels), count).astype(np.float64)
        for axis in axes
    ]
    return np.stack(columns, axis=1)


def extent(
    surface: Surface, axes: Sequence[Axis], known: Array | None = None
) -> tuple[Array, float]:
    """Return the lowest point found on a surface, and the median value at random points.

    It starts from the best of `known` and of random points, and moves one or two axes at a time.
    Points that are not valid, or diverge, count in neither.  Raises InvalidConfiguration where no
    random point is left.
    """
    draw = np.random.default_rng(0)
    points = _valid(surface, random_points(axes, _SAMPLE, draw))
    values = surface.values(points)
    if not np.isfinite(values).any():
        raise InvalidConfiguration(f"none of {_SAMPLE:,} random points is valid")
    typical = float(np.median(values[np.isfinite(values)]))
    if known is not None and len(known):
        points = np.concatenate([points, _valid(surface, known)])
        values = surface.values(points)
    found = [
        _descend(surface, axes, points[start], float(values[start]), draw)
        for start in np.argsort(values, kind="stable")[:_STARTS]
    ]
    return min(found, key=lambda pair: pair[1])[0], typical


def _descend(
    surface: Surface, axes: Sequence[Axis], point: Array, value: float, draw: np.random.Generator
) -> tuple[Array, float]:
    """Return the point, and its value, to which ever smaller random moves lead."""
    for step in range(_STEPS):
        around = _neighbours(axes, point, 0.3 * 0.9**step, draw)
        told = surface.values(around)
        # Whether a point is valid may cost far more than its value.
        for index in np.argsort(told, kind="stable"):
            if told[index] >= value:
                break
            if surface.is_valid(around[index].tolist()):
                point, value = around[index], float(told[index])
                break
    return point, value


def _valid(surface: Surface, points: Array) -> Array:
    return points[[surface.is_valid(point) for point in points.tolist()]]


def _neighbours(
    axes: Sequence[Axis], point: Array, reach: float, draw: np.random.Generator
) -> Array:
    """Return points [n, axes] that differ from one in one or two axes."""
    around = np.tile(point, (_NEIGHBOURS, 1))
    for row in around:
        for index in draw.choice(len(axes), size=min(len(axes), int(draw.integers(1, 3)))):
            levels = axes[index].levels
            if levels is None:
                row[index] = np.clip(row[index] + reach * draw.normal(), 0.0, 1.0)
            elif len(levels) <= 4 or draw.random() < 0.1:
                row[index] = draw.integers(0, len(levels))
            else:
                jump = max(1, round(abs(reach * draw.normal()) * len(levels)))
                moved = row[index] + (jump if draw.random() < 0.5 else -jump)
                row[index] = np.clip(moved, 0, len(levels) - 1)
    return around
