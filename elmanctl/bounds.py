"""Declaration of a setting: its default, its bounds and its meaning in one dataclass field."""

from collections.abc import Mapping
from dataclasses import MISSING, dataclass, field, fields
from math import inf
from typing import Any


@dataclass(frozen=True, slots=True, kw_only=True)
class Bounds:
    """Which values of a setting make sense: numbers from `low` to `high`, or one of some words.

    With `is_open` a number has to be above `low`.  What is not set is within all bounds.
    """

    low: float = 0
    high: float = 0
    is_open: bool = False
    words: tuple[str, ...] = ()

    def refusal(self, value: Any) -> str | None:
        """Return what a value must be and is not, in words; None when it is within the bounds."""
        if value is None or self.words or not value > self.high:
            return self.refusal_below(value)
        return f"must be at most {_plain(self.high)}, not {value}"

    def refusal_below(self, value: Any) -> str | None:
        """Return the same without the upper bound, which an earlier version may not have had."""
        if value is None:
            return None
        if self.words:
            known = f"must be one of {', '.join(self.words)}, not `{value}`"
            return None if value in self.words else known
        if self.is_open:
            return None if self.low < value < inf else f"must be above {self.low:g}, not {value}"
        is_within = self.low <= value < inf
        return None if is_within else f"must be at least {_plain(self.low)}, not {value}"

    def describe(self) -> str:
        """Return the bounds in words."""
        if self.words:
            return f"one of {', '.join(self.words)}"
        if self.is_open:
            return f"above {_plain(self.low)}, at most {_plain(self.high)}"
        return f"{_plain(self.low)} to {_plain(self.high)}"


def _plain(number: float) -> str:
    return str(int(number)) if number == int(number) else str(number)


def setting(
    default: Any,
    help_text: str,
    *,
    least: float = 0,
    above: float | None = None,
    most: float | None = None,
    words: tuple[str, ...] = (),
    condition: bool = False,
    omit: bool = False,
    absent: Any = MISSING,
) -> Any:
    """Return a field; a number names its `most`, and is at least `least` or else `above` that.

    A `condition` is part of the protocol: losses under different ones are not compared.  `absent`
    is what was done before the setting existed: that value is left out of every file, and is the
    one of a file without it.  With `omit` the default is left out of specs and protocols alone.
    """
    metadata: dict[str, Any] = {"help": help_text, "condition": condition, "omit": omit}
    if absent is not MISSING:
        metadata |= {"omit": True, "absent": absent}
    if most is not None:
        low = least if above is None else above
        metadata["bounds"] = Bounds(low=low, high=most, is_open=above is not None)
    elif words:
        metadata["bounds"] = Bounds(words=words)
    if isinstance(default, dict):
        return field(default_factory=lambda: dict(default), metadata=metadata)
    return field(default=default, metadata=metadata)


def bounds_of(record: type) -> Mapping[str, Bounds]:
    """Return the bounds of each field of a record that has some."""
    return {
        item.name: item.metadata["bounds"] for item in fields(record) if "bounds" in item.metadata
    }
