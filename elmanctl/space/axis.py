"""Axis of a search space: one searched parameter, mapped to a coordinate of the optimizer.

A finite axis is an integer coordinate, the index of its value, with half a step of room at both
ends so that every value has an equal share; a continuous axis is a coordinate from 0 to 1.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from elmanctl.codec import encode
from elmanctl.errors import ConfigError, meant, together
from elmanctl.space.coordinate import Coordinate

Value = int | float | str | bool

# The fields of each kind of axis, in the order of the documents, and its values in words.
KINDS: Mapping[str, tuple[tuple[str, ...], str]] = {
    "int": (("low", "high", "multiple_of", "at_most"), "whole numbers, the bounds included"),
    "pow2": (("low", "high", "at_most"), "powers of two, the bounds included where they are one"),
    "choice": (("values",), "one of a list"),
    "bool": ((), "false or true"),
    "float": (("low", "high"), "any number between the bounds"),
    "log": (("low", "high"), "any number between the bounds, even in its logarithm"),
}

OPTIONAL: Mapping[str, str] = {
    "multiple_of": "default 1",
    "at_most": "a setting that no value may exceed",
}

# With more levels one step would be smaller than the optimizer's rounding of a coordinate.
_LEVELS_LIMIT = 10**9


@dataclass(frozen=True, slots=True, kw_only=True)
class Axis:
    """One searched parameter; `at_most` names another setting that no value may exceed."""

    name: str
    kind: str
    low: float = 0.0
    high: float = 0.0
    multiple_of: int = 1
    at_most: str | None = None
    values: tuple[Value, ...] = ()

    @classmethod
    def decode(cls, name: str, data: object) -> "Axis":
        """Return the axis described by a table; raise ConfigError for an invalid one."""
        if not isinstance(data, Mapping):
            raise ConfigError(
                f"axis `{name}` must be a table, not `{data}`",
                hint=f'e.g. {name} = {{ kind = "int", low = 1, high = 8 }}',
            )
        kind = data.get("kind")
        if not isinstance(kind, str) or kind not in KINDS:
            raise ConfigError(
                f"axis `{name}`: unknown kind `{kind}`",
                hint=meant(str(kind), KINDS, f"kinds: {', '.join(KINDS)}"),
            )
        fields, _ = KINDS[kind]
        wrong = [f"has no `{key}`" for key in data if key not in (*fields, "kind")]
        wrong += [f"lacks `{key}`" for key in fields if key not in data and key not in OPTIONAL]
        if wrong:
            raise together([ConfigError(f"axis `{name}` of kind {kind} {text}") for text in wrong])
        values = data.get("values", ())
        if not isinstance(values, list | tuple):
            raise ConfigError(f"axis `{name}`: values must be a list, not `{values}`")
        given = {key: data[key] for key in fields if key in data}
        axis = cls(name=name, kind=kind, **given | {"values": tuple(values)})
        axis._check()
        return axis

    def encode(self) -> dict[str, object]:
        """Return the table that `decode` reads."""
        fields = {key: encode(getattr(self, key)) for key in KINDS[self.kind][0]}
        return {"kind": self.kind} | {key: v for key, v in fields.items() if v is not None}

    @property
    def levels(self) -> Sequence[Value] | None:
        """Every value of a finite axis in order, as a range if lazy; None for a continuous one."""
        if self.kind == "int":
            first = -(-int(self.low) // self.multiple_of) * self.multiple_of
            return range(first, int(self.high) + 1, self.multiple_of)
        if self.kind == "pow2":
            powers = (2**i for i in range(int(self.high).bit_length()))
            return tuple(power for power in powers if self.low <= power <= self.high)
        if self.kind == "bool":
            return (False, True)
        return self.values if self.kind == "choice" else None

    @property
    def coordinate(self) -> Coordinate:
        """The optimizer's coordinate of this axis."""
        levels = self.levels
        if levels is None:
            return Coordinate(low=0.0, high=1.0, integer=False)
        return Coordinate(low=-0.5, high=len(levels) - 0.5, integer=True)

    def value(self, x: float) -> Value:
        """Return the value at coordinate `x`, clipped to the bounds."""
        levels = self.levels
        if levels is not None:
            return levels[min(max(round(x), 0), len(levels) - 1)]
        share = min(max(x, 0.0), 1.0)
        if self.kind == "log":
            low, high = math.log(self.low), math.log(self.high)
            return min(max(math.exp(low + share * (high - low)), self.low), self.high)
        return self.low + share * (self.high - self.low)

    def position(self, value: object) -> float:
        """Return the coordinate of a value; raise ConfigError for one outside the axis."""
        levels = self.levels
        if isinstance(levels, range):
            # `in` on a range scans all of it for anything but an int.
            whole = int(value) if isinstance(value, float) and value.is_integer() else value
            if isinstance(whole, int) and whole in levels:
                return float(levels.index(whole))
        elif levels is not None and value in levels:
            return float(levels.index(value))
        number = float(value) if isinstance(value, int | float) else math.nan
        if levels is None and self.low <= number <= self.high:
            low, high = self.low, self.high
            if self.kind == "log":
                low, high, number = math.log(low), math.log(high), math.log(number)
            return (number - low) / (high - low)
        raise ConfigError(f"axis `{self.name}` does not reach `{value}`", hint=self.describe())

    @property
    def middle(self) -> float:
        """The coordinate halfway along the axis."""
        levels = self.levels
        return 0.5 if levels is None else float((len(levels) - 1) // 2)

    @property
    def samples(self) -> list[Value]:
        """All values of a short axis; both ends and the middle of a long one."""
        if self.levels is not None and len(self.levels) <= 8:
            return list(self.levels)
        coordinate = self.coordinate
        return [self.value(x) for x in (coordinate.low, self.middle, coordinate.high)]

    def describe(self) -> str:
        """Return the range in words."""
        if self.kind in ("int", "pow2"):
            step = f", multiples of {self.multiple_of}" if self.multiple_of > 1 else ""
            step = ", powers of two" if self.kind == "pow2" else step
            limit = f", at most {self.at_most}" if self.at_most else ""
            return f"{self.low} to {self.high}{step}{limit}"
        if self.kind in ("float", "log"):
            return f"{self.low:g} to {self.high:g}" + (
                ", logarithmic" if self.kind == "log" else ""
            )
        return ", ".join(str(level) for level in self.levels or ())

    def _check(self) -> None:
        numbers = (self.low, self.high, self.multiple_of)
        if any(isinstance(n, bool) or not isinstance(n, int | float) for n in numbers):
            raise ConfigError(f"axis `{self.name}`: low, high and multiple_of are numbers")
        if not all(math.isfinite(n) for n in numbers):
            raise ConfigError(f"axis `{self.name}`: low and high must be finite")
        if self.kind in ("int", "pow2", "float", "log") and not self.low < self.high:
            raise ConfigError(f"axis `{self.name}`: low must be under high")
        if self.kind in ("int", "pow2") and not all(isinstance(n, int) for n in numbers):
            raise ConfigError(f"axis `{self.name}`: low and high must be whole numbers")
        if self.multiple_of < 1:
            raise ConfigError(f"axis `{self.name}`: multiple_of must be at least 1")
        if not isinstance(self.at_most, str | None):
            raise ConfigError(f"axis `{self.name}`: at_most names another setting")
        if self.kind == "pow2" and self.low < 1:
            raise ConfigError(f"axis `{self.name}`: powers of two start at 1")
        if self.kind == "log" and self.low <= 0:
            raise ConfigError(f"axis `{self.name}`: a logarithmic axis starts above 0")
        if not all(isinstance(value, Value) for value in self.values):
            raise ConfigError(f"axis `{self.name}`: values are numbers, words, true or false")
        levels = self.levels
        if isinstance(levels, range) and len(levels) > _LEVELS_LIMIT:
            raise ConfigError(
                f"axis `{self.name}` has more than {_LEVELS_LIMIT:,} values",
                hint="raise multiple_of, or use kind = pow2",
            )
        distinct = len(levels or ()) if isinstance(levels, range) else len(set(levels or ()))
        if levels is not None and distinct < max(2, len(levels)):
            raise ConfigError(f"axis `{self.name}`: needs two or more different values")
