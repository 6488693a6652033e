"""Writers of a ledger: deposed, paused, interrupted, killed, and out of room."""

import os
import random
import signal
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from elmanctl.errors import LeaseLost, LedgerError, LedgerLocked
from elmanctl.ledger.contents import read_events
from elmanctl.ledger.lease import LEASE_FILE, Lease
from elmanctl.ledger.store import LedgerWriter
from tests.ledger.stories import Story, note, write_story
from tests.patience import PATIENCE_S


def test_late_events_of_a_deposed_writer_are_skipped(tmp_path: Path, story: Story) -> None:
    path = write_story(tmp_path, story[:2])
    with path.open("ab") as file:
        file.write(note(3, 5, "new") + note(3, 1, "late") + note(4, 1, "late") + note(4, 5, "new"))
    contents = read_events(path)
    assert [e.data.get("text") for e in contents.events[2:]] == ["new", "new"]
    assert contents.warning is not None and "2 late events" in contents.warning
    with Lease.acquire(tmp_path, minimum_fence=5) as lease, LedgerWriter(path, lease) as writer:
        assert writer.append("note", text="next").seq == 5


def test_late_event_that_the_next_writer_never_saw_does_not_count(
    tmp_path: Path, story: Story
) -> None:
    path = write_story(tmp_path, story[:2])
    with Lease.acquire(tmp_path, minimum_fence=1) as lease, LedgerWriter(path, lease) as writer:
        # The new writer has read two events; the old one wakes up before it writes its first.
        with path.open("ab") as file:
            file.write(note(3, 1, "late"))
        ours = writer.append("note", text="new")
    contents = read_events(path)
    assert ours.seq == 3
    assert contents.events[2:] == (ours,)
    assert contents.warning is not None and "1 late event" in contents.warning


def test_half_a_late_line_does_not_spoil_the_next_event(tmp_path: Path, story: Story) -> None:
    path = write_story(tmp_path, story[:2])
    with Lease.acquire(tmp_path, minimum_fence=1) as lease, LedgerWriter(path, lease) as writer:
        writer.append("note", text="one")
        with path.open("ab") as file:
            file.write(note(3, 1, "late")[:30])
        writer.append("note", text="two")
    contents = read_events(path)
    assert [e.data.get("text") for e in contents.events[2:]] == ["one", "two"]
    assert contents.warning is None


def test_lease_that_is_not_newer_than_the_ledger_is_refused(tmp_path: Path, story: Story) -> None:
    path = write_story(tmp_path, story[:2])
    with path.open("ab") as file:
        file.write(note(3, 4))
    for too_low in (0, 3):
        lease = Lease.acquire(tmp_path, minimum_fence=too_low)
        with lease, pytest.raises(LedgerLocked, match="written under lease 4"):
            LedgerWriter(path, lease)
    with Lease.acquire(tmp_path, minimum_fence=4) as lease:
        LedgerWriter(path, lease).close()
        LedgerWriter(path, lease).close()


def test_writer_without_its_lease_writes_nothing(tmp_path: Path, story: Story) -> None:
    path = write_story(tmp_path, story[:2])
    lease = Lease.acquire(tmp_path, minimum_fence=1)
    with LedgerWriter(path, lease) as writer:
        lease.release()
        before = path.read_bytes()
        with pytest.raises(LeaseLost):
            writer.append("note", text="x")
    assert path.read_bytes() == before


def test_event_written_while_the_lease_went_is_not_acknowledged(
    tmp_path: Path, story: Story, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = write_story(tmp_path, story[:2])
    lease = Lease.acquire(tmp_path, minimum_fence=1)
    real_fsync = os.fsync

    def lose_the_lease(descriptor: int) -> None:
        real_fsync(descriptor)
        (tmp_path / LEASE_FILE).write_bytes(b"{}")

    with LedgerWriter(path, lease) as writer:
        monkeypatch.setattr(os, "fsync", lose_the_lease)
        with pytest.raises(LeaseLost):
            writer.append("note", text="x")
        monkeypatch.undo()
        with pytest.raises(LedgerError, match="unknown"):
            writer.append("note", text="y")


def test_closed_writer_refuses_to_write(tmp_path: Path, story: Story) -> None:
    path = write_story(tmp_path, story[:2])
    with Lease.acquire(tmp_path, minimum_fence=1) as lease:
        writer = LedgerWriter(path, lease)
        writer.close()
        writer.close()
        with pytest.raises(LedgerError, match="closed"):
            writer.append("note", text="x")


def test_refused_data_leaves_the_ledger_and_the_writer_as_they_were(
    tmp_path: Path, story: Story
) -> None:
    path = write_story(tmp_path, story[:2])
    with Lease.acquire(tmp_path, minimum_fence=1) as lease, LedgerWriter(path, lease) as writer:
        before = path.read_bytes()
        with pytest.raises(ValueError, match=r"data\.loss is nan"):
            writer.append("note", loss=float("nan"))
        assert path.read_bytes() == before
        assert writer.append("note", text="x").seq == 3


def fill(folder: Path, leave_bytes: int) -> Path:
    """Take all space but about `leave_bytes`."""
    ballast = folder / "ballast"
    free = os.statvfs(folder).f_bavail * os.statvfs(folder).f_frsize
    ballast.write_bytes(b"\0" * (free - leave_bytes))
    return ballast


@pytest.mark.parametrize("leave_bytes", [0, 4096, 8192])
def test_full_disk_leaves_the_ledger_intact(
    tmpfs: Callable[[int], Path], story: Story, leave_bytes: int
) -> None:
    folder = tmpfs(256)
    path = write_story(folder, story[:6])
    with Lease.acquire(folder, minimum_fence=1) as lease, LedgerWriter(path, lease) as writer:
        before = path.read_bytes()
        ballast = fill(folder, leave_bytes)
        with pytest.raises(LedgerError, match=r"No space|bytes could be written") as caught:
            writer.append("note", text="x" * 20_000)
        assert isinstance(caught.value.__cause__, OSError)
        assert caught.value.hint is not None and "disk space" in caught.value.hint
        assert path.read_bytes() == before
        assert read_events(path).warning is None
        ballast.unlink()
        assert writer.append("note", text="there is room again").seq == 7
    assert len(read_events(path).events) == 7


def test_event_that_could_not_be_synced_is_taken_back(
    tmp_path: Path, story: Story, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = write_story(tmp_path, story[:2])
    failures = [OSError(5, "Input/output error")]
    real_fsync = os.fsync

    def fail_once(descriptor: int) -> None:
        if failures:
            raise failures.pop()
        real_fsync(descriptor)

    with Lease.acquire(tmp_path, minimum_fence=1) as lease, LedgerWriter(path, lease) as writer:
        before = path.read_bytes()
        monkeypatch.setattr(os, "fsync", fail_once)
        with pytest.raises(LedgerError, match="Input/output"):
            writer.append("note", text="x")
        assert path.read_bytes() == before
        assert writer.append("note", text="y").seq == 3


def test_event_that_cannot_be_taken_back_ends_the_writer(
    tmp_path: Path, story: Story, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = write_story(tmp_path, story[:2])
    real_write = os.write

    def write_half(descriptor: int, data: bytes) -> int:
        return real_write(descriptor, data[: len(data) // 2])

    def refuse(descriptor: int, length: int) -> None:
        raise OSError(5, "Input/output error")

    with Lease.acquire(tmp_path, minimum_fence=1) as lease, LedgerWriter(path, lease) as writer:
        monkeypatch.setattr(os, "write", write_half)
        monkeypatch.setattr(os, "ftruncate", refuse)
        with pytest.raises(LedgerError, match="could be written"):
            writer.append("note", text="x")
        monkeypatch.undo()
        with pytest.raises(LedgerError, match="unknown"):
            writer.append("note", text="y")
        with LedgerWriter(path, lease) as reopened:
            assert reopened.contents.torn != b""
            assert reopened.append("note", text="z").seq == 3
    assert read_events(path).warning is None


def test_failed_write_of_a_deposed_writer_cuts_off_nothing_of_the_new_one(
    tmp_path: Path, story: Story, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = write_story(tmp_path, story[:2])
    real_write = os.write

    def write_too_late(descriptor: int, data: bytes) -> int:
        with path.open("ab") as file:
            file.write(note(3, 9, "new"))
        return real_write(descriptor, data[:10])

    with Lease.acquire(tmp_path, minimum_fence=1) as lease, LedgerWriter(path, lease) as writer:
        monkeypatch.setattr(os, "write", write_too_late)
        with pytest.raises(LedgerError):
            writer.append("note", text="late")
    contents = read_events(path)
    assert contents.events[-1].data == {"text": "new"}
    assert len(contents.torn) == 10


def test_interruption_in_the_middle_of_a_write_takes_the_event_back(
    tmp_path: Path, story: Story, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = write_story(tmp_path, story[:2])
    interruptions = [KeyboardInterrupt()]
    real_fsync = os.fsync

    def interrupt_once(descriptor: int) -> None:
        if interruptions:
            raise interruptions.pop()
        real_fsync(descriptor)

    with Lease.acquire(tmp_path, minimum_fence=1) as lease, LedgerWriter(path, lease) as writer:
        monkeypatch.setattr(os, "fsync", interrupt_once)
        with pytest.raises(KeyboardInterrupt):
            writer.append("note", text="x")
        writer.append("note", text="y")
    assert [e.data.get("text") for e in read_events(path).events[2:]] == ["y"]


KILLED = """
import sys
from pathlib import Path
from elmanctl.ledger.lease import Lease
from elmanctl.ledger.contents import read_events
from elmanctl.ledger.store import LEDGER_FILE, LedgerWriter

folder = Path(sys.argv[1])
path = folder / LEDGER_FILE
lease = Lease.acquire(folder, minimum_fence=read_events(path).highest_fence)
writer = LedgerWriter(path, lease)
while True:
    event = writer.append("note", text="x" * 3000)
    sys.stdout.write(f"{event.seq}\\n")
    sys.stdout.flush()
"""


def test_killed_writer_loses_no_acknowledged_event(
    tmp_path: Path, story: Story, spawn: Callable[..., Any]
) -> None:
    path = write_story(tmp_path, story[:1])
    dice = random.Random(2)
    for _ in range(10):
        before = len(read_events(path).events)
        process = spawn(KILLED, str(tmp_path)).process
        first = process.stdout.readline()
        time.sleep(dice.uniform(0, 0.1))
        process.send_signal(signal.SIGKILL)
        acknowledged = [int(line) for line in (first + process.stdout.read()).split()]
        contents = read_events(path)
        assert acknowledged == list(range(before + 1, acknowledged[-1] + 1))
        assert acknowledged[-1] <= len(contents.events) <= acknowledged[-1] + 1


def test_paused_holder_on_another_host_is_deposed_and_writes_no_more(
    tmp_path: Path, story: Story, spawn: Callable[..., Any]
) -> None:
    path = write_story(tmp_path, story[:1])
    child = spawn()
    order = {"folder": str(tmp_path), "minimum_fence": 1, "at": 0, "host": "elsewhere"}
    assert child.ask("acquire", **order) == {"fence": 2}
    child.ask("open")
    assert child.ask("append", text="before the pause") == {"seq": 2}

    with pytest.raises(LedgerLocked, match="on elsewhere"):
        Lease.acquire(tmp_path, minimum_fence=2, stale_s=PATIENCE_S)
    os.kill(child.pid, signal.SIGSTOP)
    time.sleep(0.4)
    lease = Lease.acquire(tmp_path, minimum_fence=2, stale_s=0.3)
    with lease, LedgerWriter(path, lease) as writer:
        writer.append("note", text="the new holder")
        os.kill(child.pid, signal.SIGCONT)
        answer = child.ask("append", text="after the pause")
        assert answer["error"] == "LeaseLost"
        assert child.ask("release") == {}
        lease.check()
    texts = [e.data.get("text") for e in read_events(path).events[1:]]
    assert texts == ["before the pause", "the new holder"]
