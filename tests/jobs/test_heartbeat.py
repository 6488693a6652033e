import errno
import json
import logging
import os
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from elmanctl import clock
from elmanctl.jobs.heartbeat import FAILURES_BEFORE_ERROR, Heartbeat
from elmanctl.processes import start_ticks
from tests.patience import PATIENCE_S


def beat(path: Path, interval_s: float = 60.0) -> Heartbeat:
    return Heartbeat(path, interval_s=interval_s, job_id="12_3", restart=1)


def read(path: Path) -> dict[str, Any]:
    content = json.loads(path.read_text())
    assert isinstance(content, dict)
    return content


def wait_until(is_true: Callable[[], bool]) -> None:
    deadline = time.monotonic() + PATIENCE_S
    while not is_true():
        assert time.monotonic() < deadline
        time.sleep(0.005)


def test_the_first_beat_comes_at_once_and_names_the_process(tmp_path: Path) -> None:
    path = tmp_path / "heartbeat.json"
    with beat(path):
        content = read(path)
    assert content["phase"] == "starting"
    assert (content["pid"], content["pid_start"]) == (os.getpid(), start_ticks(os.getpid()))
    assert (content["job_id"], content["restart"]) == ("12_3", 1)
    assert clock.from_text(content["started_at"]) <= clock.from_text(content["at"])
    assert content["signals"] == []


def test_a_new_phase_is_written_without_waiting_for_the_next_beat(tmp_path: Path) -> None:
    path = tmp_path / "heartbeat.json"
    with beat(path) as heartbeat:
        heartbeat.progress(step=7, loss=2.5, tokens=700)
        heartbeat.enter_phase("training")
        wait_until(lambda: read(path)["phase"] == "training")
        assert [read(path)[key] for key in ("step", "loss", "tokens")] == [7, 2.5, 700]


def test_beats_go_on_by_themselves(tmp_path: Path) -> None:
    path = tmp_path / "heartbeat.json"
    with beat(path, interval_s=0.02) as heartbeat:
        heartbeat.progress(step=1, loss=None, tokens=100)
        wait_until(lambda: read(path)["step"] == 1)
        first = read(path)["at"]
        wait_until(lambda: read(path)["at"] > first)


def test_the_last_beat_is_written_on_leaving_and_nothing_else_stays(tmp_path: Path) -> None:
    path = tmp_path / "heartbeat.json"
    with beat(path) as heartbeat:
        heartbeat.progress(step=9, loss=1.5, tokens=900)
    assert read(path)["step"] == 9
    assert [item.name for item in tmp_path.iterdir()] == ["heartbeat.json"]


def test_a_noted_signal_is_in_the_file_when_the_call_returns(tmp_path: Path) -> None:
    path = tmp_path / "heartbeat.json"
    with beat(path) as heartbeat:
        heartbeat.note_signal("SIGUSR2")
        heartbeat.note_signal("SIGTERM")
        signals = read(path)["signals"]
    assert [signal["name"] for signal in signals] == ["SIGUSR2", "SIGTERM"]
    assert all(clock.from_text(signal["at"]) for signal in signals)


def test_a_write_that_keeps_failing_is_raised_where_it_is_asked_for(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    folder = tmp_path / "gone"
    folder.mkdir()
    with caplog.at_level(logging.WARNING), beat(folder / "heartbeat.json", 0.02) as heartbeat:
        heartbeat.check()
        (folder / "heartbeat.json").unlink()
        folder.rmdir()
        wait_until(lambda: len(caplog.records) >= FAILURES_BEFORE_ERROR)
        with pytest.raises(OSError, match="No such file") as caught:
            heartbeat.check()
        assert caught.value.errno == errno.ENOENT
        folder.mkdir()
        wait_until((folder / "heartbeat.json").exists)
        heartbeat.check()
