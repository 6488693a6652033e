"""A read-only mapping that shares its keys with other mappings of the same keys.

A ledger holds a configuration and a result for each evaluation, all with the same twenty keys: as
dictionaries they are half of a controller's memory that grows with the search.
"""

from collections.abc import Iterator, Mapping
from sys import intern
from typing import Any

# One index for each sequence of keys: where in the values a key's own stands.
_indexes: dict[tuple[str, ...], dict[str, int]] = {}


class SharedKeys(Mapping[str, Any]):
    """The keys and values of a mapping, in its order; equal texts are kept once for all."""

    __slots__ = ("_index", "_values")

    def __init__(self, mapping: Mapping[str, object]) -> None:
        keys = tuple(mapping)
        index = _indexes.get(keys)
        if index is None:
            index = _indexes[keys] = {key: place for place, key in enumerate(keys)}
        self._index = index
        self._values = tuple(map(_shared, mapping.values()))

    def __getitem__(self, key: str) -> Any:
        return self._values[self._index[key]]

    def __iter__(self) -> Iterator[str]:
        return iter(self._index)

    def __len__(self) -> int:
        return len(self._values)

    def __repr__(self) -> str:
        return repr(dict(self))


def _shared(value: Any) -> Any:
    return intern(value) if type(value) is str else value
