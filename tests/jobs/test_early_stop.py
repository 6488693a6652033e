"""Early stopping in a worker: the losses at the looks, and a training that is asked to end."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from elmanctl.constants import LOOKS
from elmanctl.jobs.early_stop import EarlyStop, LossCurve
from elmanctl.jobs.evaluation import evaluate_attempt
from elmanctl.jobs.metrics import MetricsLog, StepRecord
from elmanctl.models.params import count_parameters
from elmanctl.run.paths import AttemptPaths, RunPaths
from elmanctl.run.progress import read_curve
from elmanctl.run.spec import AttemptSpec

CONFIG = {"dim": 16, "depth": 1, "n_heads": 2, "n_state": 4}
# Three steps a look: at the eighth, the window is long enough.
STEPS = 3 * LOOKS


def test_loss_at_a_look_is_the_mean_of_the_later_half_of_the_steps() -> None:
    curve, steps = LossCurve(), 400
    for step in range(1, steps + 1):
        is_new = curve.add(step / steps, float(step))
        assert is_new == (step % 10 == 0)
    losses = curve.losses
    assert len(losses) == LOOKS
    # Looks one and two have five and ten steps.
    assert losses[0] is None
    for look in range(2, LOOKS + 1):
        window = range(5 * look + 1, 10 * look + 1)
        assert losses[look - 1] == pytest.approx(sum(window) / len(window))


def test_long_steps_pass_several_looks_at_once() -> None:
    curve = LossCurve()
    for step in range(1, 31):
        curve.add(step / 30, 2.0)
    assert len(curve.losses) == LOOKS
    assert [loss for loss in curve.losses if loss is not None] == [2.0] * 15
    assert curve.losses[-15] is not None


def test_warm_up_and_what_is_not_finite_count_for_nothing() -> None:
    curve = LossCurve()
    for _ in range(50):
        assert not curve.add(0.0, 100.0)
    for step in range(1, 101):
        curve.add(step / 100, float("nan") if step % 2 else 3.0)
    assert set(curve.losses) == {None, 3.0}


def test_look_before_which_another_worker_trained_has_no_loss() -> None:
    curve = LossCurve()
    curve.resume(0.31)
    for step in range(1, 691):
        curve.add(0.31 + step / 1000, 1.0)
    known = [look for look, loss in enumerate(curve.losses, start=1) if loss is not None]
    # Half of 25/40 is the first share after it.
    assert known == list(range(25, LOOKS + 1))


@pytest.mark.parametrize("value", [None, "x", {}, [1.0, "x"], [float("nan")], [1.0] * 41, [True]])
def test_what_is_no_curve_is_none(value: object) -> None:
    assert read_curve(value) == ()


def test_request_is_looked_for_now_and_then(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    now = 100.0
    monkeypatch.setattr("time.monotonic", lambda: now)
    noted: list[Any] = []
    stop = EarlyStop(tmp_path / "stop.json", interval_s=10.0, note=noted.append)
    assert not stop.is_asked()
    (tmp_path / "stop.json").touch()
    now = 109.0
    assert not stop.is_asked()
    now = 110.0
    assert stop.is_asked()
    assert noted == []


@pytest.fixture
def attempt(make_spec: Callable[..., AttemptSpec], tmp_path: Path) -> AttemptPaths:
    """An attempt that may be stopped, checkpoints and keeps its model."""
    paths = RunPaths(tmp_path / "run").attempt("g000-e00", 1)
    paths.folder.mkdir(parents=True)
    RunPaths(tmp_path / "run").finished.mkdir()
    spec = make_spec(
        config=CONFIG,
        parameters_expected=count_parameters("e88", CONFIG),
        steps=STEPS,
        stoppable=True,
        keep=["model"],
        heartbeat_s=1e-9,
        checkpoint_min=1e-9,
    )
    paths.spec.write_text(json.dumps(spec.encode()))
    return paths


def request_at(monkeypatch: pytest.MonkeyPatch, paths: AttemptPaths, step: int) -> None:
    """Ask a training to stop while it reports a step."""
    append = MetricsLog.append

    def append_and_ask(log: MetricsLog, record: StepRecord) -> None:
        append(log, record)
        if record.step == step:
            paths.stop.write_text("{}")

    monkeypatch.setattr(MetricsLog, "append", append_and_ask)


def test_training_ends_after_the_step_in_which_it_is_asked_to(
    attempt: AttemptPaths, monkeypatch: pytest.MonkeyPatch
) -> None:
    request_at(monkeypatch, attempt, 60)
    result = evaluate_attempt(str(attempt.folder))
    assert result == json.loads(attempt.result.read_text()) | {
        "curve": result["curve"],
        "validations": result["validations"],
    }
    assert result["verdict"]["kind"] == "stopped"
    assert "stopped after 60 steps" in result["verdict"]["evidence"][0]["text"]
    assert "50% of the budget" in result["verdict"]["evidence"][0]["text"]
    assert (result["steps"], result["share"], result["is_stopped"]) == (60, 0.5, True)
    assert result["tokens"] == 60 * result["tokens_per_step"]
    # Its training losses are kept, and it has no loss.
    assert result["loss"] is None and result["val_loss"] is None
    metrics = [json.loads(line)["loss"] for line in attempt.metrics.read_text().splitlines()]
    assert len(metrics) == 60
    assert result["last100_loss"] == pytest.approx(sum(metrics) / 60)
    assert len(result["curve"]) == LOOKS // 2
    assert result["curve"][-1] == pytest.approx(sum(metrics[30:]) / 30, abs=1e-5)
    beat = json.loads(attempt.heartbeat.read_text())
    assert beat["phase"] == "done" and read_curve(beat["curve"]) == tuple(result["curve"])
    assert attempt.finished_marker.exists()
    assert not attempt.model.exists() and not attempt.checkpoint.exists()


def test_training_that_is_not_asked_has_its_loss_and_its_whole_curve(
    attempt: AttemptPaths,
) -> None:
    result = evaluate_attempt(str(attempt.folder))
    assert result["verdict"]["kind"] == "completed"
    assert result["loss"] is not None and "is_stopped" not in result
    assert (len(result["curve"]), result["share"]) == (LOOKS, 1.0)
    assert attempt.model.exists()


def test_request_changes_nothing_for_a_training_that_is_not_stoppable(
    attempt: AttemptPaths,
) -> None:
    spec = json.loads(attempt.spec.read_text())
    del spec["stoppable"]
    attempt.spec.write_text(json.dumps(spec))
    attempt.stop.write_text("{}")
    result = evaluate_attempt(str(attempt.folder))
    assert result["verdict"]["kind"] == "completed"
    assert not {"curve", "share", "is_stopped"} & result.keys()


def test_worker_that_takes_over_after_a_request_ends_at_once(attempt: AttemptPaths) -> None:
    """As where the scheduler starts the job again: the request is still there."""
    attempt.stop.write_text("{}")
    result = evaluate_attempt(str(attempt.folder))
    assert (result["verdict"]["kind"], result["steps"]) == ("stopped", 0)
