"""An interrupted training resumes as if it had not been, or starts over and says why."""

import errno
import json
import os
import resource
import signal
import threading
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from elmanctl.jobs import checkpoints, evaluation, tensor_file
from elmanctl.jobs.checkpoints import Checkpoints
from elmanctl.jobs.metrics import MetricsLog, StepRecord
from elmanctl.jobs.training_clock import TrainingClock
from elmanctl.models.registry import FAMILIES
from elmanctl.run.saved_file import CHECKPOINT, Card, read_header
from tests.jobs.attempts import (
    EVERY_STEP,
    ON_DEMAND,
    Write,
    interrupted,
    losses,
    read,
    run,
    steps,
)
from tests.models.samples import small_config


@pytest.fixture
def whole(write: Write) -> dict[str, Any]:
    """The result of the same training without interruption and without checkpoints."""
    return run(write(evaluation="g000-e99", checkpoint_min=0.0))


@pytest.mark.parametrize("level", FAMILIES)
def test_any_family_goes_on_to_the_same_loss_to_the_last_bit(write: Write, level: str) -> None:
    asked = {"level": level, "config": small_config(level).encode(), "steps": 8}
    interrupted(write(**asked), before_step=5)
    second = write(2, **asked)
    result = run(second)
    assert result["continued_from"] == {"attempt": 1, "step": 4}
    other = write(evaluation="g000-e99", **(asked | {"checkpoint_min": 0.0}))
    assert run(other)["loss"] == result["loss"]
    assert losses(second) == losses(other)[4:]


@pytest.mark.parametrize("error", [None, OSError(errno.EIO, "Input/output error")])
def test_slow_checkpoints_take_at_most_3_percent_of_the_time(
    write: Write, monkeypatch: pytest.MonkeyPatch, error: OSError | None
) -> None:
    began, writing_s, written = time.monotonic(), 0.0, []
    ahead_s = 0.0

    def save(*arguments: Any) -> int:
        """Write on a disk that takes 5 seconds."""
        nonlocal ahead_s, writing_s
        ahead_s, writing_s = ahead_s + 5.0, writing_s + 5.0
        written.append(ahead_s)
        if error is not None:
            raise error
        return 0

    def append(log: MetricsLog, record: StepRecord) -> None:
        """Let every step take a second."""
        nonlocal ahead_s
        ahead_s += 1.0
        recorded(log, record)

    recorded = MetricsLog.append
    clock = SimpleNamespace(monotonic=lambda: began + ahead_s)
    monkeypatch.setattr(checkpoints, "time", clock)
    monkeypatch.setattr(checkpoints, "_SHORT_S", 1.0)
    monkeypatch.setattr(checkpoints, "save", save)
    monkeypatch.setattr(MetricsLog, "append", append)
    run(write(steps=400, checkpoint_min=0.5))
    # The first comes after the interval that was asked for.
    assert written[0] == 30.0 + 5.0
    assert len(written) == 3 and written[2] - written[1] == written[1] - written[0]
    assert 0.02 < 5.0 / (written[2] - written[1]) <= checkpoints.MOST_STALL


def test_writing_checkpoints_changes_no_loss(write: Write, whole: dict[str, Any]) -> None:
    paths = write()
    result = run(paths)
    assert result["loss"] == whole["loss"]
    assert (result["continued_from"], result["checkpoints_written"]) == (None, 11)
    assert "not_continued" not in result
    assert not list(paths.folder.glob("checkpoint*"))


def test_another_micro_batch_goes_on_with_the_same_steps(
    write: Write, whole: dict[str, Any]
) -> None:
    interrupted(write(), before_step=7)
    result = run(write(2, micro_batch=1, timeout_min=9.0))
    assert result["continued_from"] == {"attempt": 1, "step": 6}
    assert result["micro_batch"] == 1
    assert result["loss"] == pytest.approx(whole["loss"], rel=1e-5)


def test_a_chain_of_interruptions_loses_at_most_one_step_each(
    write: Write, whole: dict[str, Any]
) -> None:
    interrupted(write(), before_step=4)
    second = write(2)
    interrupted(second, before_step=5)
    # Its only step was saved in a file of its own, and the earlier one was no longer needed.
    assert second.checkpoint.exists()
    assert not (second.folder.parent / "attempt-1" / "checkpoint.safetensors").exists()
    third = write(3, continues_from=("attempt-2", "attempt-1"))
    result = run(third)
    assert result["continued_from"] == {"attempt": 2, "step": 4}
    assert result["loss"] == whole["loss"]


def test_an_older_checkpoint_stands_until_there_is_a_newer_one(
    write: Write, whole: dict[str, Any]
) -> None:
    interrupted(write(), before_step=4)
    interrupted(write(2, checkpoint_min=ON_DEMAND), before_step=9)
    result = run(write(3, continues_from=("attempt-2", "attempt-1")))
    assert result["continued_from"] == {"attempt": 1, "step": 3}
    assert result["not_continued"] == "attempt-2: no checkpoint"
    assert result["loss"] == whole["loss"]


def test_a_job_that_slurm_starts_again_goes_on_from_its_own_checkpoint(
    write: Write, whole: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("SLURM_JOB_ID", "41")
    paths = write()
    interrupted(paths, before_step=7)
    stale = paths.folder / "checkpoint.safetensors.1.tmp"
    stale.write_bytes(b"half")
    monkeypatch.setenv("SLURM_RESTART_COUNT", "1")
    result = run(paths)
    assert result["continued_from"] == {"attempt": 1, "step": 6}
    assert steps(paths) == list(range(7, 13))
    assert result["loss"] == whole["loss"]
    assert not stale.exists()


def cut(data: bytes) -> bytes:
    return data[: len(data) // 2]


def flip(data: bytes) -> bytes:
    place = len(data) - 100
    return data[:place] + bytes([data[place] ^ 1]) + data[place + 1 :]


@pytest.mark.parametrize("damage", [cut, flip, lambda data: b"", lambda data: b"[]" * 99])
def test_a_damaged_checkpoint_is_named_and_the_training_begins_anew(
    write: Write, whole: dict[str, Any], damage: Callable[[bytes], bytes]
) -> None:
    first = write()
    interrupted(first, before_step=7)
    first.checkpoint.write_bytes(damage(first.checkpoint.read_bytes()))
    result = run(write(2))
    assert result["continued_from"] is None
    assert result["not_continued"].startswith("attempt-1: its checkpoint cannot be read: ")
    assert result["loss"] == whole["loss"]


@pytest.mark.parametrize(
    "changes",
    [
        {"seed": 4},
        {"lr": 2e-2},
        {"precision": "bf16"},
        {"seq_len": 17},
    ],
    ids=lambda changes: next(iter(changes)),
)
def test_a_checkpoint_of_something_else_is_not_used(write: Write, changes: dict[str, Any]) -> None:
    interrupted(write(), before_step=3)
    second = write(2, **changes)
    result = run(second)
    assert result["continued_from"] is None
    assert "does not fit: it is of another configuration" in result["not_continued"]
    assert steps(second)[0] == 1


@pytest.mark.parametrize("part", ["position", "param_groups", "model", "optimizer", "generators"])
def test_a_state_that_is_not_whole_is_not_put_in_place(
    write: Write, whole: dict[str, Any], part: str
) -> None:
    first = write()
    interrupted(first, before_step=3)
    saved, tensors = tensor_file.read(first.checkpoint)
    state = {key: {} if key == part else value for key, value in saved.card.state.items()}
    left = {name: tensor for name, tensor in tensors.items() if not name.startswith(f"{part}.")}
    assert (state, left.keys()) != (saved.card.state, tensors.keys())
    tensor_file.write(first.checkpoint, left, replace(saved.card, state=state))
    result = run(write(2))
    assert result["continued_from"] is None
    assert "attempt-1: its checkpoint does not fit: " in result["not_continued"]
    assert result["loss"] == whole["loss"]


def test_a_checkpoint_runs_no_code(write: Write, tmp_path: Path) -> None:
    class Evil:
        def __reduce__(self) -> Any:
            return Path.touch, (tmp_path / "ran",)

    first = write()
    torch.save(Evil(), first.checkpoint)
    result = run(write(2))
    assert result["verdict"]["kind"] == "completed"
    assert "it has no header of safetensors" in result["not_continued"]
    assert not (tmp_path / "ran").exists()


def test_a_checkpoint_that_finds_no_room_costs_nothing_else(
    write: Write, whole: dict[str, Any], caplog: pytest.LogCaptureFixture
) -> None:
    paths = write()
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (10_000, limits[1]))
    try:
        result = run(paths)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert (result["checkpoints_written"], result["loss"]) == (0, whole["loss"])
    assert "the checkpoint of step 3 was not written: File too large" in caplog.text
    written = read(paths.heartbeat)["checkpoint"]
    assert (written["step"], written["error"]) == (11, "File too large")
    assert not list(paths.folder.glob("checkpoint*"))


def test_no_byte_is_written_where_a_state_cannot_fit(tmp_path: Path) -> None:
    huge = {"weight": torch.empty(10**16, device="meta")}
    with pytest.raises(OSError, match=r"4e\+07 GB are needed") as raised:
        tensor_file.write(tmp_path / "checkpoint", huge, Card(kind=CHECKPOINT, spec={}))
    assert raised.value.errno == errno.ENOSPC
    assert list(tmp_path.iterdir()) == []


def test_the_warning_of_the_end_writes_one_checkpoint(
    write: Write, monkeypatch: pytest.MonkeyPatch
) -> None:
    append = MetricsLog.append

    def warn(log: MetricsLog, record: StepRecord) -> None:
        append(log, record)
        if record.step == 5:
            os.kill(os.getpid(), signal.SIGUSR2)

    monkeypatch.setattr(MetricsLog, "append", warn)
    paths = write(checkpoint_min=ON_DEMAND)
    result = run(paths)
    assert result["checkpoints_written"] == 1
    beat = read(paths.heartbeat)
    assert (beat["checkpoint"]["step"], beat["checkpoint"]["error"]) == (5, None)
    assert [entry["name"] for entry in beat["signals"]] == ["SIGUSR2"]


def test_without_checkpoints_the_warning_writes_nothing(
    write: Write, monkeypatch: pytest.MonkeyPatch
) -> None:
    paths = write(checkpoint_min=0.0)
    timer = threading.Timer(0.0, os.kill, (os.getpid(), signal.SIGUSR2))
    train = evaluation._Evaluation._train

    def train_warned(self: Any, *arguments: Any) -> Any:
        timer.start()
        timer.join()
        return train(self, *arguments)

    monkeypatch.setattr(evaluation._Evaluation, "_train", train_warned)
    result = run(paths)
    assert "continued_from" not in result and "checkpoints_written" not in result
    assert not list(paths.folder.glob("checkpoint*"))


def test_a_divergence_leaves_no_checkpoint_and_names_its_line(
    write: Write, monkeypatch: pytest.MonkeyPatch
) -> None:
    interrupted(write(), before_step=4)
    from elmanctl.models.lm import LanguageModel

    loss = LanguageModel.loss
    calls = []

    def poisoned(self: Any, tokens: torch.Tensor) -> torch.Tensor:
        calls.append(1)
        return loss(self, tokens) * (float("nan") if len(calls) == 3 else 1.0)

    monkeypatch.setattr(LanguageModel, "loss", poisoned)
    second = write(2)
    result = run(second)
    assert result["verdict"]["kind"] == "diverged"
    assert result["divergence"]["step"] == 6
    quoted = result["verdict"]["evidence"][0]
    assert json.loads(second.metrics.read_text().splitlines()[quoted["line"] - 1])["step"] == 6
    assert not list(second.folder.parent.glob("*/checkpoint*"))


@pytest.fixture
def step_takes_a_second(training_time: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    append = MetricsLog.append

    def take_it(log: MetricsLog, record: StepRecord) -> None:
        training_time.now_s += 1.0
        append(log, record)

    monkeypatch.setattr(MetricsLog, "append", take_it)


@pytest.mark.usefixtures("step_takes_a_second")
def test_a_time_budget_goes_on_with_the_seconds_it_had(write: Write, training_time: Any) -> None:
    # One step of warm-up, and forty that count.
    first = write(minutes=40 / 60, checkpoint_min=EVERY_STEP)
    interrupted(first, before_step=20)
    position = read_header(first.checkpoint).card.state["position"]
    assert (position["counted_s"], position["elapsed_s"]) == (18.0, 19.0)
    # What passes between the two is nobody's training.
    training_time.now_s += 500.0
    result = run(write(2, minutes=40 / 60, checkpoint_min=ON_DEMAND))
    assert result["continued_from"]["step"] == 19
    assert (result["steps"], result["elapsed_s"]) == (41, 41.0)
    assert result["tokens_per_s"] == pytest.approx(4 * 16)


@pytest.mark.usefixtures("step_takes_a_second")
def test_no_second_of_a_checkpoint_is_counted(
    write: Write, training_time: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    write_one = Checkpoints.write

    def slowly(self: Checkpoints, *arguments: Any) -> None:
        training_time.now_s += 50.0
        write_one(self, *arguments)

    monkeypatch.setattr(Checkpoints, "write", slowly)
    result = run(write())
    assert (result["checkpoints_written"], result["elapsed_s"]) == (11, 12.0)


def test_a_stopped_clock_keeps_what_it_had_counted(training_time: Any) -> None:
    clock = TrainingClock(elapsed_s=5.0, counted_s=3.0, warm_tokens=10)
    with clock.stopped():
        training_time.now_s += 70.0
    training_time.now_s += 1.0
    assert (clock.elapsed_s(), clock.counted_s()) == (6.0, 4.0)
    assert not TrainingClock(elapsed_s=5.0).is_warm
