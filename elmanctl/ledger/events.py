"""Line format of the ledger: one event a line, each line with its own checksum.

A line is `{"v":1,"seq":N,"at":"...","fence":N,"kind":"...","data":{...},"crc":"8 hex"}`: ASCII,
no blanks, keys in this order.  `crc` is the CRC-32 of the line's own bytes before `,"crc"`, so a
check never depends on writing the JSON again in exactly the same way.  The first key `v` and the
last 18 bytes keep this meaning in every later version of the format.
"""

import json
import math
import re
import zlib
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from elmanctl import clock
from elmanctl.errors import LedgerTooNew
from elmanctl.ledger.files import parse_object

FORMAT_VERSION = 1
SEAL_BYTES = 18

_KEYS = ("v", "seq", "at", "fence", "kind", "data", "crc")
_SEAL = re.compile(rb',"crc":"[0-9a-f]{8}"\}')


class DamagedLine(ValueError):
    """A line that holds no event: its checksum does not match, after a torn write or damage."""


class MalformedEvent(DamagedLine):
    """A line with a right checksum that does not hold an event."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Event:
    """One thing that happened to a run.

    `seq` counts from 1 without a gap, `at` is UTC text, `fence` the number of the lease under
    which the event was written.  `data` is plain JSON: dict, list, str, int, float, bool, None.
    """

    seq: int
    at: str
    fence: int
    kind: str
    data: Mapping[str, Any]


def encode_event(event: Event) -> bytes:
    """Return the event's line, its newline included.

    Raises ValueError, naming the place, for NaN, infinities and whatever is not plain JSON.
    """
    body = json.dumps(
        {
            "v": FORMAT_VERSION,
            "seq": event.seq,
            "at": event.at,
            "fence": event.fence,
            "kind": event.kind,
            "data": to_plain(event.data, "data"),
        },
        separators=(",", ":"),
        allow_nan=False,
    ).encode("ascii")[:-1]
    return body + seal(body) + b"\n"


def decode_line(line: bytes) -> Event:
    """Read one line, given without its newline.

    Raises DamagedLine when the checksum is wrong, MalformedEvent when it is right and the
    contents are not those of an event, LedgerTooNew for a version this code does not know.
    """
    body = line[:-SEAL_BYTES]
    if line[-SEAL_BYTES:] != seal(body):
        raise DamagedLine("the checksum does not match")
    try:
        record = parse_object(line)
    except ValueError as exc:
        raise MalformedEvent(str(exc)) from exc
    version = record.get("v")
    if type(version) is int and version > FORMAT_VERSION:
        raise LedgerTooNew(
            f"an event has format version {version}, this elmanctl knows {FORMAT_VERSION}",
            hint="use the version of elmanctl that wrote this run, or a newer one",
        )
    return _event_of(record)


def holds_whole_event(torn: bytes) -> bool:
    """Return whether damaged bytes begin with a complete event, which a torn write never does."""
    return any(
        torn[match.start() : match.end()] == seal(torn[: match.start()])
        for match in _SEAL.finditer(torn)
    )


def to_plain(value: object, path: str) -> object:
    """Return `value` with tuples as lists, refusing what JSON cannot give back unchanged.

    Raises ValueError with the path of the offending value.
    """
    if value is None or isinstance(value, bool | int | str):
        return value
    if isinstance(value, float):
        if not math.isfinite(value):
            raise ValueError(f"{path} is {value}, which a ledger cannot hold")
        return value
    if isinstance(value, Mapping):
        return {
            _text_key(key, path): to_plain(item, f"{path}.{key}") for key, item in value.items()
        }
    if isinstance(value, list | tuple):
        return [to_plain(item, f"{path}[{index}]") for index, item in enumerate(value)]
    raise ValueError(f"{path} is of type {type(value).__name__}, which a ledger cannot hold")


def seal(body: bytes) -> bytes:
    """Return what closes a JSON object that lacks its last bracket: its checksum and that."""
    return b',"crc":"%08x"}' % zlib.crc32(body)


def _text_key(key: object, path: str) -> str:
    if not isinstance(key, str):
        raise ValueError(f"{path} has the key {key!r}, which is not text")
    return key


def _event_of(record: Mapping[str, Any]) -> Event:
    """Check every key and type of a parsed line."""
    if tuple(record) != _KEYS:
        raise MalformedEvent(f"its keys are {', '.join(record)}, not {', '.join(_KEYS)}")
    for key, expected in (("v", int), ("seq", int), ("at", str), ("fence", int), ("kind", str)):
        if type(record[key]) is not expected:
            raise MalformedEvent(f"`{key}` is not of type {expected.__name__}")
    if record["v"] != FORMAT_VERSION or record["seq"] < 1 or record["fence"] < 1:
        raise MalformedEvent("`v`, `seq` or `fence` is out of range")
    if not isinstance(record["data"], dict):
        raise MalformedEvent("`data` is not an object")
    try:
        moment = clock.from_text(record["at"])
    except ValueError as exc:
        raise MalformedEvent(f"`at` is not a time: {record['at']}") from exc
    if moment.tzinfo is None:
        raise MalformedEvent(f"`at` has no time zone: {record['at']}")
    return Event(**{key: record[key] for key in _KEYS[1:-1]})
