"""Copy-on-write overlay over a dictionary."""

from collections.abc import Iterator, MutableMapping
from typing import Generic, TypeVar

_Key = TypeVar("_Key")
_Value = TypeVar("_Value")

_GONE = object()


class Overlay(MutableMapping[_Key, _Value], Generic[_Key, _Value]):
    """Reads what `base` holds until it is written here; costs nothing per key of `base`.

    `looked_up` are the keys of `base` that were read.
    """

    def __init__(self, base: MutableMapping[_Key, _Value]) -> None:
        self._base = base
        self._own: dict[_Key, object] = {}
        self.looked_up: set[_Key] = set()

    def __getitem__(self, key: _Key) -> _Value:
        if key in self._own:
            value = self._own[key]
            if value is _GONE:
                raise KeyError(key)
            return value  # type: ignore[return-value]
        found = self._base[key]
        self.looked_up.add(key)
        return found

    def __setitem__(self, key: _Key, value: _Value) -> None:
        self._own[key] = value

    def __delitem__(self, key: _Key) -> None:
        self[key]
        self._own[key] = _GONE

    def write_back(self) -> None:
        """Write into `base` what was written here."""
        for key, value in self._own.items():
            if value is _GONE:
                self._base.pop(key, None)
            else:
                self._base[key] = value  # type: ignore[assignment]

    def __iter__(self) -> Iterator[_Key]:
        yield from (key for key in self._base if self._own.get(key) is not _GONE)
        yield from (k for k, v in self._own.items() if v is not _GONE and k not in self._base)

    def __len__(self) -> int:
        return sum(1 for _ in self)
