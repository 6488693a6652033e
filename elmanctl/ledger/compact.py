"""Positional codec of records for derived files, which are rewritten when the code changes.

A record is the list of its fields' values, in order and without names.
"""

import types
import typing
from collections.abc import Callable, Mapping
from dataclasses import fields, is_dataclass
from enum import StrEnum
from functools import cache
from typing import Any, TypeVar

_T = TypeVar("_T")
_Reader = Callable[[Any], Any]


def squeeze(value: object) -> object:
    """Return a record, or anything made of records, as plain JSON data."""
    if isinstance(value, StrEnum):
        return value.value
    if is_dataclass(value) and not isinstance(value, type):
        return [squeeze(getattr(value, each.name)) for each in fields(value)]
    if isinstance(value, Mapping):
        return {str(key): squeeze(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [squeeze(item) for item in value]
    return value


def restore(kind: type[_T], data: object) -> _T:
    """Return what `squeeze` was given, which was of the type `kind`.

    Raises ValueError or TypeError for data of another shape; what is inside a plain JSON value
    is not checked.
    """
    restored: _T = _reader(typing.cast(Any, kind))(data)
    return restored


@cache
def _reader(kind: Any) -> _Reader:
    origin, parts = typing.get_origin(kind), typing.get_args(kind)
    if origin in (typing.Union, types.UnionType):
        return _optional([part for part in parts if part is not type(None)])
    if origin in (dict, Mapping):
        return _mapping(*parts)
    if origin is list or (origin is tuple and parts[-1] is Ellipsis):
        make: Callable[[Any], Any] = list if origin is list else tuple
        item = _reader(parts[0])
        return lambda data: make(map(item, data))
    if origin is tuple:
        readers = [_reader(part) for part in parts]
        return lambda data: tuple(read(each) for read, each in zip(readers, data, strict=True))
    if is_dataclass(kind):
        return _record(kind)
    if isinstance(kind, type) and issubclass(kind, StrEnum):
        return kind
    return lambda data: data


def _optional(kinds: list[Any]) -> _Reader:
    if len(kinds) > 1:
        # Several plain types, as in `int | str`: JSON keeps them apart.
        return lambda data: data
    read = _reader(kinds[0])
    return lambda data: None if data is None else read(data)


def _mapping(key: Any, value: Any) -> _Reader:
    read = _reader(value)
    make = key if key in (int, str) else _reader(key)
    return lambda data: {make(name): read(item) for name, item in data.items()}


def _record(kind: Any) -> _Reader:
    hints = typing.get_type_hints(kind)
    names = [each.name for each in fields(kind)]
    readers = [_reader(hints[name]) for name in names]

    def read(data: Any) -> Any:
        values = {
            name: reader(item) for name, reader, item in zip(names, readers, data, strict=True)
        }
        return kind(**values)

    return read
