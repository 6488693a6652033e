import math
import zlib
from pathlib import Path

import pytest

from elmanctl.errors import LedgerTooNew
from elmanctl.ledger.events import (
    DamagedLine,
    Event,
    MalformedEvent,
    decode_line,
    encode_event,
    holds_whole_event,
)

AT = "2026-05-01T10:00:00.000Z"
EVENT = Event(seq=3, at=AT, fence=2, kind="note", data={"text": "ü", "n": [1, 2.5, None]})
LINE = (
    b'{"v":1,"seq":3,"at":"2026-05-01T10:00:00.000Z","fence":2,"kind":"note",'
    b'"data":{"text":"\\u00fc","n":[1,2.5,null]},"crc":"%s"}\n'
)


def sealed(body: bytes) -> bytes:
    return body + b',"crc":"%08x"}' % zlib.crc32(body)


def test_line_is_byte_for_byte_what_the_format_says() -> None:
    line = encode_event(EVENT)
    body = line.partition(b',"crc"')[0]
    assert line == LINE % f"{zlib.crc32(body):08x}".encode()
    assert decode_line(line[:-1]) == EVENT


def test_documented_line_is_an_event() -> None:
    text = (Path(__file__).parents[2] / "docs" / "concepts" / "ledger.md").read_text()
    (line,) = [line for line in text.splitlines() if line.startswith('{"v":1')]
    assert decode_line(line.encode()).data == {"text": "x"}


def test_checksum_is_over_the_bytes_and_not_over_their_meaning() -> None:
    spaced = encode_event(EVENT)[:-1].replace(b'"seq":3', b'"seq": 3')
    with pytest.raises(DamagedLine):
        decode_line(spaced)
    assert decode_line(sealed(spaced.partition(b',"crc"')[0])) == EVENT


@pytest.mark.parametrize(
    ("data", "place"),
    [
        ({"result": {"loss": math.nan}}, "data.result.loss"),
        ({"told": [["a", math.inf]]}, r"data.told\[0\]\[1\]"),
        ({"a": {1: 2}}, "data.a"),
        ({"a": {"x"}}, "data.a"),
        ({"a": b"x"}, "data.a"),
    ],
)
def test_what_json_cannot_give_back_is_refused_with_its_place(
    data: dict[str, object], place: str
) -> None:
    with pytest.raises(ValueError, match=place):
        encode_event(Event(seq=1, at=AT, fence=1, kind="note", data=data))


@pytest.mark.parametrize("text", ["\n", "\r\n\u2028", '","crc":"00000000"}', "\ud800", "\x00"])
def test_no_text_can_break_a_line(text: str) -> None:
    event = Event(seq=1, at=AT, fence=1, kind="note", data={"text": text})
    line = encode_event(event)
    assert line.count(b"\n") == 1
    assert decode_line(line[:-1]) == event


def test_newer_version_is_told_apart_from_damage() -> None:
    newer = encode_event(EVENT)[:-1].replace(b'"v":1', b'"v":2')
    with pytest.raises(DamagedLine):
        decode_line(newer)
    with pytest.raises(LedgerTooNew, match="version 2"):
        decode_line(sealed(newer.partition(b',"crc"')[0]))


@pytest.mark.parametrize(
    ("old", "new"),
    [
        (b'"seq":3', b'"seq":0'),
        (b'"seq":3', b'"seq":true'),
        (b'"seq":3', b'"seq":3.0'),
        (b'"fence":2', b'"fence":0'),
        (b'"v":1', b'"v":0'),
        (b'"kind":"note"', b'"kind":null'),
        (b'"data":{', b'"more":1,"data":{'),
        (b'"kind":"note",', b""),
        (b'"at":"2026-05-01T10:00:00.000Z"', b'"at":"yesterday"'),
        (b'"at":"2026-05-01T10:00:00.000Z"', b'"at":"2026-05-01T10:00:00"'),
        (b'"seq":3', b'"seq":3,"seq":3'),
        (b"2.5", b"NaN"),
        (b"2.5", b"1e999"),
        (b'"data":{"text":"\\u00fc","n":[1,2.5,null]}', b'"data":[]'),
        (b'{"v":1', b'["v",1'),
    ],
)
def test_wrong_contents_under_a_right_checksum_are_malformed(old: bytes, new: bytes) -> None:
    body = encode_event(EVENT).partition(b',"crc"')[0]
    assert old in body
    with pytest.raises(MalformedEvent):
        decode_line(sealed(body.replace(old, new)))


@pytest.mark.parametrize("line", [b"", b"{}", b"\x00" * 40, b',"crc":"1234abcd"}'])
def test_garbage_is_damaged(line: bytes) -> None:
    with pytest.raises(DamagedLine):
        decode_line(line)


def test_torn_write_never_holds_a_whole_event() -> None:
    line = encode_event(EVENT)
    assert not any(holds_whole_event(line[:cut]) for cut in range(len(line) - 1))
    assert holds_whole_event(line[:-1] + b"x" + line)
