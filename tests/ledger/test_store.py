"""Ledger file: what was written is read again, and any damage to it is found."""

import random
import zlib
from collections.abc import Callable
from pathlib import Path

import pytest

from elmanctl.errors import LedgerCorrupt, LedgerError, LedgerTooNew, NotFound
from elmanctl.ledger.contents import read_events
from elmanctl.ledger.lease import Lease
from elmanctl.ledger.state import replay
from elmanctl.ledger.store import LEDGER_FILE, LedgerWriter
from tests.ledger.stories import Story, lines_of, note, write_story


def test_what_is_written_is_what_is_read(tmp_path: Path, story: Story) -> None:
    path = tmp_path / LEDGER_FILE
    written = []
    with Lease.acquire(tmp_path) as lease:
        kind, data = story[0]
        with LedgerWriter.create(path, lease, kind, **data) as writer:
            written = list(writer.contents.events)
            written += [writer.append(kind, **data) for kind, data in story[1:]]
    contents = read_events(path)
    assert list(contents.events) == written
    assert [(e.kind, e.data) for e in written] == story
    assert [e.seq for e in written] == list(range(1, len(story) + 1))
    assert (contents.torn, contents.warning, contents.highest_fence) == (b"", None, lease.fence)


def test_appended_event_is_returned_as_it_will_be_read(tmp_path: Path) -> None:
    path = tmp_path / LEDGER_FILE
    with Lease.acquire(tmp_path) as lease, LedgerWriter.create(path, lease, "note") as writer:
        event = writer.append("note", pair=(1, 2.0))
        assert event.data == {"pair": [1, 2.0]}
        assert read_events(path).events[-1] == event


def test_missing_ledger_is_not_found(tmp_path: Path) -> None:
    with pytest.raises(NotFound):
        read_events(tmp_path / LEDGER_FILE)
    with Lease.acquire(tmp_path) as lease, pytest.raises(NotFound):
        LedgerWriter(tmp_path / LEDGER_FILE, lease)


def test_unreadable_ledger_is_a_ledger_error(tmp_path: Path) -> None:
    (tmp_path / LEDGER_FILE).mkdir()
    with pytest.raises(LedgerError, match="cannot read"):
        read_events(tmp_path / LEDGER_FILE)


def test_ledger_is_never_made_twice(tmp_path: Path, story: Story) -> None:
    path = write_story(tmp_path, story[:1])
    before = path.read_bytes()
    lease = Lease.acquire(tmp_path, minimum_fence=1)
    with lease, pytest.raises(LedgerError, match="already"):
        LedgerWriter.create(path, lease, "run_created", run={})
    assert path.read_bytes() == before


def test_ledger_that_could_not_be_made_does_not_exist(tmpfs: Callable[[int], Path]) -> None:
    folder = tmpfs(64)
    with Lease.acquire(folder) as lease, pytest.raises(LedgerError, match="space"):
        LedgerWriter.create(folder / LEDGER_FILE, lease, "note", text="x" * 200_000)
    assert list(folder.iterdir()) == []


def test_cut_at_any_byte_loses_at_most_the_last_event(
    tmpfs: Callable[[int], Path], story: Story
) -> None:
    folder = tmpfs(2048)
    path = write_story(folder, [*story[:2], ("note", {"text": "x"})])
    raw = path.read_bytes()
    whole = read_events(path).events
    ends = [index + 1 for index, byte in enumerate(raw) if byte == ord("\n")]
    for cut in range(len(raw) + 1):
        path.write_bytes(raw[:cut])
        contents = read_events(path)
        complete = sum(end - 1 <= cut for end in ends)
        assert contents.events == whole[:complete]
        is_torn = cut not in (0, *ends, *(end - 1 for end in ends))
        assert (contents.warning is not None) is is_torn
        assert (contents.torn != b"") is is_torn
        assert path.read_bytes() == raw[:cut]
        replay(contents.events)

        lease = Lease.acquire(folder, minimum_fence=contents.highest_fence)
        with lease, LedgerWriter(path, lease) as writer:
            assert writer.contents == contents
            added = writer.append("note", text=f"after the cut at {cut}")
        again = read_events(path)
        assert again.events == (*contents.events, added)
        assert again.warning is None
        kept = list(folder.glob("ledger.torn-*"))
        assert [file.read_bytes() for file in kept] == ([contents.torn] if is_torn else [])
        for file in kept:
            file.unlink()


@pytest.mark.parametrize("garbage", [b"\n", b"{}\n", b"\x00" * 50, b"\x00\n", b'{"v":1,"seq":99'])
def test_garbage_at_the_end_is_one_torn_line(tmp_path: Path, story: Story, garbage: bytes) -> None:
    path = write_story(tmp_path, story[:3])
    events = read_events(path).events
    with path.open("ab") as file:
        file.write(garbage)
    contents = read_events(path)
    assert contents.events == events
    assert contents.torn == garbage
    assert contents.warning is not None and "torn" in contents.warning


def test_any_flipped_bit_before_the_last_line_is_found(tmp_path: Path, story: Story) -> None:
    path = write_story(tmp_path, story[:6])
    raw = path.read_bytes()
    dice = random.Random(1)
    last = raw.rindex(b"\n", 0, -1)
    for position in dice.sample(range(last), 250):
        damaged = bytearray(raw)
        damaged[position] ^= 1 << dice.randrange(8)
        path.write_bytes(damaged)
        number = raw.count(b"\n", 0, position) + 1
        with pytest.raises(LedgerCorrupt, match=f"ledger.jsonl line {number}: ") as caught:
            read_events(path)
        assert caught.value.hint is not None
        assert "nothing was changed" in caught.value.hint
        assert path.read_bytes() == damaged


def test_any_flipped_bit_of_the_last_line_costs_at_most_that_event(
    tmp_path: Path, story: Story
) -> None:
    path = write_story(tmp_path, story[:4])
    raw = path.read_bytes()
    events = read_events(path).events
    last = raw.rindex(b"\n", 0, -1)
    for position in range(last, len(raw)):
        damaged = bytearray(raw)
        damaged[position] ^= 1 << (position % 8)
        path.write_bytes(damaged)
        if position in (last, len(raw) - 1):
            # Two events in one line, or one with something after it: no torn write does that.
            with pytest.raises(LedgerCorrupt):
                read_events(path)
            continue
        contents = read_events(path)
        assert contents.events == events[:-1]
        assert contents.warning is not None


def test_missing_line_is_found(tmp_path: Path, story: Story) -> None:
    path = write_story(tmp_path, story[:5])
    lines = lines_of(path)
    path.write_bytes(b"".join(lines[:2] + lines[3:]))
    with pytest.raises(LedgerCorrupt, match="line 3: event 4 stands where event 3 belongs"):
        read_events(path)


def test_repeated_line_is_found(tmp_path: Path, story: Story) -> None:
    path = write_story(tmp_path, story[:5])
    lines = lines_of(path)
    path.write_bytes(b"".join([*lines, lines[-1]]))
    with pytest.raises(LedgerCorrupt, match="event 5 stands where event 6 belongs"):
        read_events(path)


def test_malformed_last_line_is_damage_and_not_a_torn_write(tmp_path: Path, story: Story) -> None:
    path = write_story(tmp_path, story[:2])
    body = note(3, 1).partition(b',"crc"')[0].replace(b'"fence":1', b'"fence":"1"')
    with path.open("ab") as file:
        file.write(body + b',"crc":"%08x"}\n' % zlib.crc32(body))
    with pytest.raises(LedgerCorrupt, match="line 3: `fence`"):
        read_events(path)


def test_newer_ledger_is_named_as_such(tmp_path: Path, story: Story) -> None:
    path = write_story(tmp_path, story[:2])
    body = note(3, 1).partition(b',"crc"')[0].replace(b'"v":1', b'"v":2')
    with path.open("ab") as file:
        file.write(body + b',"crc":"%08x"}\n' % zlib.crc32(body))
    with pytest.raises(LedgerTooNew, match="line 3"):
        read_events(path)


def test_reader_of_a_line_being_written_sees_no_damage(
    tmp_path: Path, story: Story, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = write_story(tmp_path, story[:3])
    raw = path.read_bytes()
    readings = [raw[:-20], raw]
    monkeypatch.setattr(Path, "read_bytes", lambda self: readings.pop(0))
    contents = read_events(path)
    assert (len(contents.events), contents.warning) == (3, None)
