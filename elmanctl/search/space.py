"""Axes and search spaces: from the optimizer's coordinates to values and back.

An axis with a finite number of values is an integer coordinate, the index of its value, with
half a step of room at both ends so that every value has an equal share; a continuous axis is a
coordinate from 0 to 1.
"""

import math
import tomllib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from importlib import resources
from typing import Any

from elmanctl.errors import ConfigError, NotFound, nearest
from elmanctl.search.optimizer import Coordinate

Value = int | float | str | bool

_FIELDS = {
    "int": {"low", "high", "multiple_of"},
    "choice": {"values"},
    "bool": set[str](),
    "float": {"low", "high"},
    "log": {"low", "high"},
}


@dataclass(frozen=True, slots=True, kw_only=True)
class Axis:
    """One searched parameter."""

    name: str
    kind: str
    low: float | None = None
    high: float | None = None
    multiple_of: int = 1
    values: tuple[Value, ...] = ()

    @classmethod
    def decode(cls, name: str, data: Mapping[str, Any]) -> "Axis":
        """Return the axis that a table describes; raise ConfigError naming what is wrong."""
        if not isinstance(data, Mapping):
            raise ConfigError(
                f"axis `{name}` must be a table, not `{data}`",
                hint=f'e.g. {name} = {{ kind = "int", low = 1, high = 8 }}',
            )
        kind = data.get("kind")
        if not isinstance(kind, str) or kind not in _FIELDS:
            near = nearest(str(kind), _FIELDS)
            raise ConfigError(
                f"axis `{name}`: unknown kind `{kind}`",
                hint=f"did you mean `{near}`?" if near else f"kinds: {', '.join(_FIELDS)}",
            )
        unknown = set(data) - _FIELDS[kind] - {"kind"}
        missing = _FIELDS[kind] - set(data) - {"multiple_of"}
        if unknown or missing:
            wrong = f"has no `{min(unknown)}`" if unknown else f"lacks `{min(missing)}`"
            raise ConfigError(f"axis `{name}` of kind {kind} {wrong}")
        values = data.get("values", ())
        if not isinstance(values, list | tuple):
            raise ConfigError(f"axis `{name}`: values must be a list, not `{values}`")
        axis = cls(
            name=name,
            kind=kind,
            low=data.get("low"),
            high=data.get("high"),
            multiple_of=data.get("multiple_of", 1),
            values=tuple(values),
        )
        axis._check()
        return axis

    def encode(self) -> dict[str, Any]:
        """Return the table that `decode` reads."""
        known = {
            "low": self.low,
            "high": self.high,
            "multiple_of": self.multiple_of,
            "values": list(self.values),
        }
        return {"kind": self.kind} | {k: v for k, v in known.items() if k in _FIELDS[self.kind]}

    @property
    def levels(self) -> tuple[Value, ...] | None:
        """Every value of a finite axis in order, None for a continuous one."""
        if self.kind == "int":
            first = math.ceil(self._low / self.multiple_of) * self.multiple_of
            return tuple(range(first, int(self._high) + 1, self.multiple_of))
        if self.kind == "bool":
            return (False, True)
        return self.values if self.kind == "choice" else None

    @property
    def coordinate(self) -> Coordinate:
        """The optimizer's view of this axis."""
        levels = self.levels
        if levels is None:
            return Coordinate(low=0.0, high=1.0, integer=False)
        return Coordinate(low=-0.5, high=len(levels) - 0.5, integer=True)

    def value(self, x: float) -> Value:
        """Return the value at coordinate `x`, which is clipped to the bounds."""
        levels = self.levels
        if levels is not None:
            return levels[min(max(round(x), 0), len(levels) - 1)]
        share = min(max(x, 0.0), 1.0)
        if self.kind == "log":
            low, high = math.log(self._low), math.log(self._high)
            return min(max(math.exp(low + share * (high - low)), self._low), self._high)
        return self._low + share * (self._high - self._low)

    def position(self, value: object) -> float:
        """Return the coordinate of a value.

        Raises ConfigError for a value outside the axis.
        """
        levels = self.levels
        if levels is not None and value in levels:
            return float(levels.index(value))
        number = float(value) if isinstance(value, int | float) else math.nan
        if levels is None and self._low <= number <= self._high:
            low, high = self._low, self._high
            if self.kind == "log":
                low, high, number = math.log(low), math.log(high), math.log(number)
            return (number - low) / (high - low)
        raise ConfigError(f"axis `{self.name}` does not reach `{value}`", hint=self.describe())

    @property
    def middle(self) -> float:
        """The coordinate halfway along the axis."""
        levels = self.levels
        return 0.5 if levels is None else float((len(levels) - 1) // 2)

    def describe(self) -> str:
        """Return the range in words."""
        if self.kind == "int":
            step = f", multiples of {self.multiple_of}" if self.multiple_of > 1 else ""
            return f"{self.low} to {self.high}{step}"
        if self.kind in ("float", "log"):
            return f"{self.low:g} to {self.high:g}" + (
                ", logarithmic" if self.kind == "log" else ""
            )
        return ", ".join(str(level) for level in self.levels or ())

    @property
    def _low(self) -> float:
        assert self.low is not None
        return self.low

    @property
    def _high(self) -> float:
        assert self.high is not None
        return self.high

    def _check(self) -> None:
        numbers = (self.low, self.high, self.multiple_of)
        if any(isinstance(n, bool) or not isinstance(n, int | float | None) for n in numbers):
            raise ConfigError(f"axis `{self.name}`: low, high and multiple_of are numbers")
        if not all(n is None or math.isfinite(n) for n in numbers):
            raise ConfigError(f"axis `{self.name}`: low and high must be finite")
        if self.kind in ("int", "float", "log") and not self._low < self._high:
            raise ConfigError(f"axis `{self.name}`: low must be under high")
        if self.kind == "int" and not all(isinstance(n, int) for n in numbers):
            raise ConfigError(f"axis `{self.name}`: low and high must be whole numbers")
        if self.multiple_of < 1:
            raise ConfigError(f"axis `{self.name}`: multiple_of must be at least 1")
        if self.kind == "log" and self._low <= 0:
            raise ConfigError(f"axis `{self.name}`: a logarithmic axis starts above 0")
        if not all(isinstance(value, Value) for value in self.values):
            raise ConfigError(f"axis `{self.name}`: values are numbers, words, true or false")
        levels = self.levels
        if levels is not None and len(set(levels)) < max(2, len(levels)):
            raise ConfigError(f"axis `{self.name}`: needs two or more different values")


@dataclass(frozen=True, slots=True, kw_only=True)
class SearchSpace:
    """Axes, constants, and where a search may start."""

    model: str
    name: str
    axes: tuple[Axis, ...]
    fixed: Mapping[str, Any] = field(default_factory=dict)
    best: Mapping[str, Any] = field(default_factory=dict)
    best_source: str | None = None

    @property
    def coordinates(self) -> tuple[Coordinate, ...]:
        """The optimizer's coordinates, one an axis."""
        return tuple(axis.coordinate for axis in self.axes)

    @property
    def middle(self) -> tuple[float, ...]:
        """The point halfway along every axis."""
        return tuple(axis.middle for axis in self.axes)

    def values(self, point: Sequence[float]) -> dict[str, Any]:
        """Return the constants and the values of every axis at `point`."""
        return {
            **self.fixed,
            **{axis.name: axis.value(x) for axis, x in zip(self.axes, point, strict=True)},
        }

    def point(self, values: Mapping[str, Any]) -> tuple[float, ...]:
        """Return the point of the given values; raise ConfigError when one lies outside."""
        return tuple(axis.position(values[axis.name]) for axis in self.axes)

    def encode(self) -> dict[str, Any]:
        """Return the space as plain data, for the ledger."""
        return {
            "model": self.model,
            "name": self.name,
            "axes": {axis.name: axis.encode() for axis in self.axes},
            "fixed": dict(self.fixed),
        }

    @classmethod
    def decode(cls, data: Mapping[str, Any]) -> "SearchSpace":
        """Return the space that `encode` wrote."""
        return cls(
            model=data["model"],
            name=data["name"],
            axes=tuple(Axis.decode(name, axis) for name, axis in data["axes"].items()),
            fixed=data["fixed"],
        )


def space_names(model: str) -> list[str]:
    """Return the names of the spaces that ship for a model."""
    return list(_shipped().get(model, {}))


def load_space(
    model: str, name: str, *, axes: Mapping[str, Any], fixed: Mapping[str, Any]
) -> SearchSpace:
    """Return a shipped space with the user's own axes and constants laid over it.

    Raises NotFound for an unknown name, ConfigError for an axis that is also a constant.
    """
    spaces = _shipped().get(model, {})
    if name not in spaces:
        near = nearest(name, spaces)
        raise NotFound(
            f"no search space named `{name}` for {model}",
            hint=f"did you mean `{near}`?" if near else f"spaces: {', '.join(spaces)}",
        )
    table = spaces[name]
    # A constant set by the user takes its axis out of the search, unless the axis is theirs too.
    both = set(axes) & set(fixed)
    if both:
        raise ConfigError(
            f"`{both.pop()}` is both a constant in `[model]` and an axis in `[search.axes]`"
        )
    tables = {k: v for k, v in {**table["axes"], **axes}.items() if k not in fixed}
    constants = {k: v for k, v in {**table.get("fixed", {}), **fixed}.items() if k not in tables}
    best = table.get("best", {})
    return SearchSpace(
        model=model,
        name=name,
        axes=tuple(Axis.decode(axis, data) for axis, data in tables.items()),
        fixed=constants,
        best=best.get("values", {}),
        best_source=best.get("source"),
    )


def _shipped() -> dict[str, Any]:
    text = resources.files("elmanctl.search").joinpath("spaces.toml").read_text(encoding="utf-8")
    return tomllib.loads(text)
