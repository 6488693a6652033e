"""Strict codec between frozen dataclasses and plain JSON, driven by their type hints.

A field is one key of a JSON object, in the order of declaration.  `json_field` marks those whose
key is left out at the default: no other key may be missing, and one that is no field is an error.
A `setting` with a value for where it is absent is left out at that value instead.  Where records
are not `named`, each is the array of its values: for files that only the code that wrote them
reads.
"""

import types
import typing
from collections.abc import Callable, Iterable, Mapping
from dataclasses import MISSING, Field, field, fields, is_dataclass
from enum import StrEnum
from functools import cache
from typing import Any, TypeVar

from elmanctl.errors import ElmanError

_T = TypeVar("_T")
_Reader = Callable[[Any], Any]

# Kinds of values that are JSON data as they are; those derived from them may not be.
_PLAIN = frozenset({str, int, float, bool})

_NAMES: Mapping[type | None, str] = {
    **{str: "a text", int: "a whole number", float: "a number", bool: "true or false"},
    **{list: "an array", dict: "an object", None: "null"},
}


def json_field(
    *,
    default: Any = MISSING,
    default_factory: Any = MISSING,
    omit: bool = False,
    make: _Reader | None = None,
    within: str | None = None,
) -> Any:
    """Declare a field of a record.

    With `omit` its key is left out at the default and may be missing.  `make` converts a decoded
    value.  `within` names the field, a mapping, whose object holds the key as its last one.
    """
    metadata = {"omit": omit, "make": make, "within": within}
    if default_factory is not MISSING:
        return field(default_factory=default_factory, metadata=metadata)
    return field(default=default, metadata=metadata)


def encode(value: object, *, named: bool = True) -> Any:
    """Return a record, or a collection of records, as plain JSON data."""
    # Nearly all values are of these kinds, and the checks below take long.
    if value is None or type(value) in _PLAIN:
        return value
    if isinstance(value, StrEnum):
        return value.value
    if is_dataclass(value) and not isinstance(value, type):
        if not named:
            return [encode(getattr(value, name), named=False) for name, *_ in _keys(type(value))]
        table = {
            name: encode(item)
            for name, default, omit in _keys(type(value))
            if not ((item := getattr(value, name)) == default and omit)
        }
        for name, place in _inner(type(value)):
            table[place][name] = table.pop(name)
        return table
    if isinstance(value, Mapping):
        return {key: encode(item, named=named) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [encode(item, named=named) for item in value]
    return value


def decode(
    kind: type[_T], data: object, path: str, error: type[ElmanError], *, named: bool = True
) -> _T:
    """Return the record of type `kind` that `data` encodes; `path` names it in messages.

    Raises `error`, with the JSON path of what is wrong.
    """
    try:
        read: Callable[[Any], _T] = _reader(typing.cast(Any, kind), named)
        return read(data)
    except _Misfit as exc:
        raise error(f"`{path}{exc.path}` {exc.reason}") from exc


def describe(value: object) -> str:
    """Return a value as it can stand in a message, cut to a readable length."""
    shown = repr(value)
    return shown if len(shown) <= 60 else f"{shown[:57]}..."


class _Misfit(ValueError):
    """A value that does not fit its type hint; `path` grows on the way out."""

    def __init__(self, reason: str, path: str = "") -> None:
        super().__init__(reason)
        self.reason = reason
        self.path = path


def _at(part: str, read: _Reader, value: Any) -> Any:
    try:
        return read(value)
    except _Misfit as exc:
        exc.path = part + exc.path
        raise


@cache
def _keys(kind: type) -> tuple[tuple[str, Any, bool], ...]:
    return tuple((each.name, _default(each), _may_miss(each)) for each in fields(kind))


@cache
def _inner(kind: type) -> tuple[tuple[str, str], ...]:
    """Return each field whose key stands in the object of another one, and that other one."""
    found = ((each.name, each.metadata.get("within")) for each in fields(kind))
    return tuple((name, place) for name, place in found if place is not None)


def _default(each: "Field[Any]") -> Any:
    if "absent" in each.metadata:
        return each.metadata["absent"]
    return each.default if each.default_factory is MISSING else each.default_factory()


@cache
def _reader(kind: Any, named: bool) -> _Reader:
    origin, parts = typing.get_origin(kind), typing.get_args(kind)
    if origin in (typing.Union, types.UnionType):
        return _union(parts, named)
    if origin is Mapping or origin is dict:
        return _mapping(parts[0], parts[1], named)
    if origin is tuple and parts[-1] is not Ellipsis:
        return _fixed(tuple, [_reader(part, named) for part in parts])
    if origin in (tuple, list):
        return _array(origin, _reader(parts[0], named))
    if is_dataclass(kind):
        return _record(kind) if named else _row(kind)
    if isinstance(kind, type) and issubclass(kind, StrEnum):
        return _member(kind)
    return _plain(kind)


def _plain(kind: Any) -> _Reader:
    if kind in (object, Any):
        return lambda data: data

    def read(data: Any) -> Any:
        if type(data) is kind or data is kind:
            return data
        if kind is float and type(data) is int:
            try:
                return float(data)
            except OverflowError as exc:
                raise _Misfit(f"is too large: {describe(data)}") from exc
        raise _wrong(kind, data)

    return read


def _wrong(kind: Any, data: object) -> _Misfit:
    return _Misfit(f"must be {_NAMES[kind]}, not {describe(data)}")


def _union(parts: tuple[Any, ...], named: bool) -> _Reader:
    kinds = [part for part in parts if part is not type(None)]
    wanted = " or ".join(_NAMES.get(each, "") for each in kinds)
    is_optional = len(kinds) < len(parts)
    if len(kinds) == 1:
        read = _reader(kinds[0], named)
        return lambda data: None if data is None and is_optional else read(data)

    def read_plain(data: Any) -> Any:
        if type(data) in kinds or (data is None and is_optional):
            return data
        raise _Misfit(f"must be {wanted}, not {describe(data)}")

    return read_plain


def _mapping(key_kind: Any, item: Any, named: bool) -> _Reader:
    if item in (object, Any):
        return _plain(dict)
    read_object, read = _plain(dict), _reader(item, named)
    return lambda data: {
        key_kind(key): _at(f".{key}", read, value) for key, value in read_object(data).items()
    }


def _array(make: Callable[[Iterable[Any]], Any], read: _Reader) -> _Reader:
    read_list = _plain(list)
    return lambda data: make(
        [_at(f"[{number}]", read, value) for number, value in enumerate(read_list(data))]
    )


def _fixed(make: Callable[[Iterable[Any]], Any], readers: list[_Reader]) -> _Reader:
    parts = [(f"[{number}]", reader) for number, reader in enumerate(readers)]

    def read(data: Any) -> Any:
        if type(data) is not list or len(data) != len(readers):
            raise _Misfit(f"must be an array of {len(readers)}, not {describe(data)}")
        return make([_at(part, each, item) for (part, each), item in zip(parts, data, strict=True)])

    return read


def _member(kind: type[StrEnum]) -> _Reader:
    members: Mapping[Any, StrEnum] = {member.value: member for member in kind}

    def read(data: Any) -> Any:
        if isinstance(data, str) and data in members:
            return members[data]
        if not isinstance(data, str):
            raise _wrong(str, data)
        raise _Misfit(f"is {describe(data)}, not one of {', '.join(members)}")

    return read


def _row(kind: Any) -> _Reader:
    hints, names = typing.get_type_hints(kind), [name for name, *_ in _keys(kind)]
    readers = [_reader(hints[name], False) for name in names]
    return _fixed(lambda values: kind(**dict(zip(names, values, strict=True))), readers)


def _record(kind: Any) -> _Reader:
    hints, inner = typing.get_type_hints(kind), _inner(kind)
    plan = [
        (each.name, _part(each), _made(_reader(hints[each.name], True), each), _may_miss(each))
        for each in fields(kind)
    ]
    names = {name for name, *_ in plan}
    absent = {e.name: e.metadata["absent"] for e in fields(kind) if "absent" in e.metadata}

    def read(data: Any) -> Any:
        if not isinstance(data, Mapping):
            raise _wrong(dict, data)
        for name, place in inner:
            data = _lifted(data, name, place)
        values = {}
        for name, part, read_item, may_miss in plan:
            if name in data:
                values[name] = _at(part, read_item, data[name])
            elif not may_miss:
                raise _Misfit("is missing", part)
            elif name in absent:
                values[name] = absent[name]
        if not names.issuperset(data):
            raise _Misfit("is not a known key", f".{min(set(data) - names)}")
        return kind(**values)

    return read


def _lifted(data: Mapping[str, Any], name: str, place: str) -> Mapping[str, Any]:
    """Return an object with a key of the one at `place` among its own."""
    if name in data:
        raise _Misfit("is not a known key", f".{name}")
    held = data.get(place)
    if not isinstance(held, dict) or name not in held:
        return data
    rest = {key: value for key, value in held.items() if key != name}
    return {**data, place: rest, name: held[name]}


def _part(each: "Field[Any]") -> str:
    place = each.metadata.get("within")
    return f".{place}.{each.name}" if place else f".{each.name}"


def _may_miss(each: "Field[Any]") -> bool:
    return bool(each.metadata.get("omit", False))


def _made(read: _Reader, each: "Field[Any]") -> _Reader:
    make = each.metadata.get("make")
    if make is None:
        return read
    return lambda data: None if (value := read(data)) is None else make(value)
