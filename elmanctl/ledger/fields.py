"""A JSON object read key by key, strictly: what does not fit is named by its JSON path."""

from collections.abc import Mapping
from types import TracebackType
from typing import Any

from elmanctl.errors import LedgerCorrupt


class Fields:
    """The keys of one JSON object; as a context manager it also refuses keys nobody read.

    Every method raises LedgerCorrupt with the JSON path of a missing key or a wrong type.  The
    `optional_` methods return None for a key that is absent or null.
    """

    def __init__(self, value: object, path: str) -> None:
        if not isinstance(value, Mapping):
            raise LedgerCorrupt(f"`{path}` must be an object, not {describe(value)}")
        self._value: Mapping[str, Any] = value
        self._unread = set(value)
        self.path = path

    def __enter__(self) -> "Fields":
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        if kind is None and self._unread:
            raise LedgerCorrupt(f"`{self.path}.{min(self._unread)}` is not a known key")

    def text(self, key: str) -> str:
        """Return a text."""
        value = self._take(key)
        return value if isinstance(value, str) else self._refuse(key, "a text")

    def optional_text(self, key: str) -> str | None:
        """Return a text or None."""
        return None if self._is_absent(key) else self.text(key)

    def whole(self, key: str) -> int:
        """Return a whole number."""
        value = self._take(key)
        return value if type(value) is int else self._refuse(key, "a whole number")

    def optional_whole(self, key: str) -> int | None:
        """Return a whole number or None."""
        return None if self._is_absent(key) else self.whole(key)

    def number(self, key: str) -> float:
        """Return a number as a float."""
        return as_number(self._take(key), f"{self.path}.{key}")

    def optional_number(self, key: str) -> float | None:
        """Return a number as a float, or None."""
        return None if self._is_absent(key) else self.number(key)

    def flag(self, key: str) -> bool:
        """Return true or false."""
        value = self._take(key)
        return value if isinstance(value, bool) else self._refuse(key, "true or false")

    def optional_flag(self, key: str) -> bool | None:
        """Return true, false or None."""
        return None if self._is_absent(key) else self.flag(key)

    def mapping(self, key: str) -> Mapping[str, Any]:
        """Return an object as it stands."""
        value = self._take(key)
        return value if isinstance(value, dict) else self._refuse(key, "an object")

    def optional_mapping(self, key: str) -> Mapping[str, Any] | None:
        """Return an object as it stands, or None."""
        return None if self._is_absent(key) else self.mapping(key)

    def items(self, key: str) -> list[tuple[str, Any]]:
        """Return each item of an array with its JSON path."""
        value = self._take(key)
        if not isinstance(value, list):
            self._refuse(key, "an array")
        return [(f"{self.path}.{key}[{index}]", item) for index, item in enumerate(value)]

    def optional_items(self, key: str) -> list[tuple[str, Any]]:
        """Return each item of an array with its JSON path; none for an absent array."""
        return [] if self._is_absent(key) else self.items(key)

    def _take(self, key: str) -> Any:
        if key not in self._value:
            raise LedgerCorrupt(f"`{self.path}.{key}` is missing")
        self._unread.discard(key)
        return self._value[key]

    def _is_absent(self, key: str) -> bool:
        self._unread.discard(key)
        return self._value.get(key) is None

    def _refuse(self, key: str, expected: str) -> Any:
        found = describe(self._value[key])
        raise LedgerCorrupt(f"`{self.path}.{key}` must be {expected}, not {found}")


def as_number(value: object, path: str) -> float:
    """Return a JSON number as a float; LedgerCorrupt for anything else, true and false included."""
    if isinstance(value, bool) or not isinstance(value, int | float):
        raise LedgerCorrupt(f"`{path}` must be a number, not {describe(value)}")
    try:
        return float(value)
    except OverflowError as exc:
        raise LedgerCorrupt(f"`{path}` is too large: {describe(value)}") from exc


def as_text(value: object, path: str) -> str:
    """Return a JSON text; LedgerCorrupt for anything else."""
    if not isinstance(value, str):
        raise LedgerCorrupt(f"`{path}` must be a text, not {describe(value)}")
    return value


def describe(value: object) -> str:
    """Return a value as it can stand in a message, cut to a readable length."""
    shown = repr(value)
    return shown if len(shown) <= 60 else f"{shown[:57]}..."
