"""Evaluation of one attempt: its result, whatever happens."""

import json
import logging
import pickle
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest

from elmanctl.errors import EnvironmentNotReady, InvalidConfiguration
from elmanctl.jobs import evaluation
from elmanctl.jobs.evaluation import EvaluateAttempt, evaluate_attempt
from elmanctl.jobs.training_loop import TrainingLoop
from elmanctl.models.params import count_parameters
from elmanctl.run.paths import AttemptPaths
from elmanctl.run.spec import AttemptSpec
from tests.jobs.attempts import CHECKOUT, read
from tests.jobs.workers import CONFIG, LONG, Start, metrics, verdict, wait_for_steps
from tests.patience import PATIENCE_S


def test_a_completed_attempt_leaves_a_result_with_everything_a_comparison_needs(
    write_spec: Any, start: Start
) -> None:
    paths = write_spec()
    worker = start(paths, SLURM_JOB_ID="41")
    _, log = worker.communicate(timeout=PATIENCE_S)
    assert worker.returncode == 0, log
    result = read(paths.result)
    assert result["verdict"]["kind"] == "completed"
    lines = metrics(paths.metrics)
    assert [line["step"] for line in lines] == [1, 2, 3, 4]
    assert result["loss"] == pytest.approx(sum(line["loss"] for line in lines) / 4)
    assert result["parameters"] == count_parameters("e88", CONFIG)
    assert (result["steps"], result["tokens"], result["tokens_per_step"]) == (4, 256, 64)
    assert (result["job_id"], result["restart"]) == ("41", 0)
    assert result["protocol"]["precision"] == "fp32"
    spec = AttemptSpec.read(paths.spec)
    assert result["fingerprint"] == spec.protocol("fp32").fingerprint
    assert result["corpus_compared_by"] == "sha256"
    assert result["backend"] == "torch"
    assert set(result["versions"]) >= {"torch", "schedulefree", "elmanctl", "python", "cuda"}
    assert read(paths.claim)["job_id"] == "41"
    beat = read(paths.heartbeat)
    assert (beat["phase"], beat["step"], beat["signals"]) == ("done", 4, [])
    assert "Z step 1 loss 5." in log


def test_two_processes_with_one_spec_get_the_same_loss_to_the_last_bit(
    write_spec: Any, start: Start
) -> None:
    losses = []
    for name in ("g000-e00", "g000-e01"):
        paths = write_spec(name, steps=20, micro_batch=3)
        _, log = start(paths).communicate(timeout=PATIENCE_S)
        losses.append([read(paths.result)["loss"]] + [m["loss"] for m in metrics(paths.metrics)])
        assert len(losses[-1]) == 21, log
    assert losses[0] == losses[1]


def test_a_job_does_not_wait_for_torchs_compiler(write_spec: Any) -> None:
    paths = write_spec(steps=2)
    code = (
        "import sys; from elmanctl.jobs.evaluation import evaluate_attempt; "
        "evaluate_attempt(sys.argv[1]); sys.exit('torch._dynamo' in sys.modules)"
    )
    command = [sys.executable, "-c", code, str(paths.folder)]
    subprocess.run(command, cwd=CHECKOUT, check=True)
    assert read(paths.result)["steps"] == 2


def test_a_learning_rate_of_a_million_diverges_and_says_so(write_spec: Any) -> None:
    paths = write_spec(lr=1e6, steps=1000)
    result = evaluate_attempt(str(paths.folder))
    assert result == read(paths.result)
    kind, text = verdict(paths)
    assert kind == "diverged"
    assert result["loss"] is None
    assert f"step {result['divergence']['step']} is" in text
    evidence = result["verdict"]["evidence"][0]
    assert evidence["file"] == "evaluations/g000-e00/attempt-1/metrics.jsonl"
    line = metrics(paths.metrics)[evidence["line"] - 1]
    assert None in (line["loss"], line["grad_norm"])


def test_signals_are_noted_and_the_last_one_ends_the_worker(write_spec: Any, start: Start) -> None:
    paths = write_spec(steps=LONG, heartbeat_s=60.0)
    worker = start(paths)
    wait_for_steps(paths, 3)
    worker.send_signal(signal.SIGUSR2)
    deadline = time.monotonic() + PATIENCE_S
    while not read(paths.heartbeat)["signals"]:
        assert time.monotonic() < deadline
        time.sleep(0.01)
    reached = len(metrics(paths.metrics))
    wait_for_steps(paths, reached + 3)
    worker.send_signal(signal.SIGTERM)
    _, log = worker.communicate(timeout=PATIENCE_S)
    assert worker.returncode == -signal.SIGTERM
    beat = read(paths.heartbeat)
    assert [note["name"] for note in beat["signals"]] == ["SIGUSR2", "SIGTERM"]
    assert beat["phase"] == "training"
    assert "SIGUSR2 received\nSIGTERM received\n" in log
    assert metrics(paths.metrics)[-1]["step"] >= reached + 3
    assert not paths.result.exists()


def test_limit_on_cpu_time_is_noted_and_ends_the_worker(write_spec: Any, start: Start) -> None:
    paths = write_spec(steps=LONG, heartbeat_s=60.0)
    worker = start(paths)
    wait_for_steps(paths, 1)
    worker.send_signal(signal.SIGXCPU)
    worker.communicate(timeout=PATIENCE_S)
    assert worker.returncode == -signal.SIGXCPU
    assert [note["name"] for note in read(paths.heartbeat)["signals"]] == ["SIGXCPU"]


def test_a_killed_worker_leaves_its_curve_and_a_restart_takes_over(
    write_spec: Any, start: Start
) -> None:
    paths = write_spec(tokens=64 * 300)
    first = start(paths, SLURM_JOB_ID="5")
    wait_for_steps(paths, 3)
    first.kill()
    first.communicate()
    assert not paths.result.exists()
    assert read(paths.heartbeat)["job_id"] == "5"
    curve = metrics(paths.metrics)
    assert [line["step"] for line in curve] == list(range(1, len(curve) + 1))

    same_start = start(paths, SLURM_JOB_ID="5")
    assert "{'duplicate': True}" in same_start.communicate(timeout=PATIENCE_S)[0]
    restarted = start(paths, SLURM_JOB_ID="5", SLURM_RESTART_COUNT="1")
    _, log = restarted.communicate(timeout=PATIENCE_S)
    assert restarted.returncode == 0, log
    assert verdict(paths)[0] == "completed"
    assert read(paths.claim)["restart"] == 1
    assert metrics(paths.earlier_metrics(0)) == curve
    again = metrics(paths.metrics)
    assert [line["step"] for line in again] == list(range(1, 301))
    assert [m["loss"] for m in again[: len(curve)]] == [m["loss"] for m in curve]


def test_of_two_jobs_with_one_attempt_one_trains(write_spec: Any, start: Start) -> None:
    paths = write_spec()
    workers = [start(paths, ELMAN_LOCAL_JOB=name) for name in ("one", "two")]
    outputs = [worker.communicate(timeout=PATIENCE_S) for worker in workers]
    assert [worker.returncode for worker in workers] == [0, 0], outputs
    idle = [number for number, (out, _) in enumerate(outputs) if "'duplicate': True" in out]
    assert len(idle) == 1
    assert "held by another job" in outputs[idle[0]][1]
    busy = ("one", "two")[1 - idle[0]]
    assert read(paths.result)["job_id"] == read(paths.claim)["job_id"] == busy
    assert len(metrics(paths.metrics)) == 4


def test_an_attempt_with_a_result_is_not_run_again(write_spec: Any) -> None:
    paths = write_spec()
    paths.result.write_text("{}")
    assert evaluate_attempt(str(paths.folder)) == {"already_finished": True}
    assert paths.result.read_text() == "{}"
    assert not paths.claim.exists()


def test_a_result_says_whose_it_is_and_is_announced_where_a_controller_looks(
    write_spec: Any,
) -> None:
    paths = write_spec(evaluation="g000-e00", attempt=1)
    paths.finished_marker.parent.mkdir()
    evaluate_attempt(str(paths.folder))
    result = json.loads(paths.result.read_text())
    assert (result["evaluation"], result["attempt"]) == ("g000-e00", 1)
    assert result["parameters_expected"] == result["parameters"]
    assert [marker.name for marker in paths.finished_marker.parent.iterdir()] == ["g000-e00-1"]
    assert paths.finished_marker.read_bytes() == b""


def test_a_failure_is_announced_too_and_says_whose_it_is(write_spec: Any) -> None:
    paths = write_spec(evaluation="g000-e00", parameters_expected=7)
    paths.finished_marker.parent.mkdir()
    with pytest.raises(InvalidConfiguration):
        evaluate_attempt(str(paths.folder))
    assert json.loads(paths.result.read_text())["evaluation"] == "g000-e00"
    assert paths.finished_marker.exists()


def test_where_no_controller_looks_nothing_is_announced(write_spec: Any) -> None:
    paths = write_spec()
    evaluate_attempt(str(paths.folder))
    assert paths.result.exists()
    assert not paths.finished_marker.parent.exists()
    # As `elmanctl eval` does beside a folder that happens to have the name.
    other = AttemptPaths(paths.folder.parents[2] / "eval" / "x" / "y")
    other.folder.mkdir(parents=True)
    shutil.copyfile(paths.spec, other.spec)
    other.finished_marker.parent.mkdir()
    evaluate_attempt(str(other.folder))
    assert other.result.exists()
    assert list(other.finished_marker.parent.iterdir()) == []


def test_a_machine_without_torch_is_told_from_a_mistake(write_spec: Any, start: Start) -> None:
    paths = write_spec()
    worker = start(paths, before="import sys; sys.modules['torch'] = None")
    _, log = worker.communicate(timeout=PATIENCE_S)
    assert worker.returncode == 1
    kind, text = verdict(paths)
    assert kind == "environment"
    assert "torch" in text
    assert "ModuleNotFoundError" in log


@pytest.mark.parametrize(
    ("changes", "kind", "text"),
    [
        ({"parameters_expected": 7}, "invalid", "7 were expected"),
        ({"level": "e99"}, "invalid", "e99"),
        ({"config": CONFIG | {"n_state": 5}}, "invalid", "n_state=5"),
        ({"config": CONFIG | {"typo": 5}}, "invalid", "typo"),
        ({"seq_len": 10**6}, "invalid", "shorter than one window"),
    ],
)
def test_a_configuration_that_cannot_run_is_invalid(
    write_spec: Any, changes: dict[str, Any], kind: str, text: str
) -> None:
    paths = write_spec(**changes)
    with pytest.raises(Exception, match=text):
        evaluate_attempt(str(paths.folder))
    found = verdict(paths)
    assert found[0] == kind
    assert text in found[1]


def test_another_corpus_than_asked_for_is_the_environments_fault(
    write_spec: Any, corpus_file: Path
) -> None:
    paths = write_spec()
    corpus_file.write_bytes(b"x" * corpus_file.stat().st_size)
    with pytest.raises(EnvironmentNotReady, match="has sha256"):
        evaluate_attempt(str(paths.folder))
    assert verdict(paths)[0] == "environment"
    missing = write_spec("g000-e01")
    corpus_file.unlink()
    with pytest.raises(EnvironmentNotReady, match="missing"):
        evaluate_attempt(str(missing.folder))
    assert verdict(missing)[0] == "environment"


def test_a_damaged_spec_is_invalid(write_spec: Any) -> None:
    paths = write_spec()
    paths.spec.write_text("{")
    with pytest.raises(InvalidConfiguration):
        evaluate_attempt(str(paths.folder))
    assert verdict(paths)[0] == "invalid"


def test_an_exception_in_the_training_keeps_the_numbers_reached(
    write_spec: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    paths = write_spec()

    def fail_at_third(self: Any) -> Any:
        return original(self) if self.steps < 2 else [][0]

    original = TrainingLoop._batch
    monkeypatch.setattr(TrainingLoop, "_batch", fail_at_third)
    with pytest.raises(IndexError):
        evaluate_attempt(str(paths.folder))
    kind, text = verdict(paths)
    assert kind == "python_error"
    assert text.startswith("IndexError: list index out of range (test_evaluation.py line ")
    result = read(paths.result)
    assert (result["steps"], result["tokens"]) == (2, 128)
    assert result["last_loss"] == metrics(paths.metrics)[-1]["loss"]
    assert read(paths.heartbeat)["phase"] == "training"


def test_an_interruption_from_the_keyboard_leaves_no_result(
    write_spec: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    def interrupt(self: Any) -> Any:
        raise KeyboardInterrupt

    monkeypatch.setattr(TrainingLoop, "_batch", interrupt)
    paths = write_spec()
    with pytest.raises(KeyboardInterrupt):
        evaluate_attempt(str(paths.folder))
    assert not paths.result.exists()


def test_library_that_ends_the_program_leaves_a_result(
    write_spec: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    def end(self: Any) -> Any:
        raise SystemExit("no GPU, no training")

    monkeypatch.setattr(TrainingLoop, "_batch", end)
    paths = write_spec()
    with pytest.raises(SystemExit):
        evaluate_attempt(str(paths.folder))
    assert verdict(paths)[0] == "python_error"
    assert verdict(paths)[1].startswith("SystemExit: no GPU, no training (test_evaluation.py")


def test_signal_handlers_come_back_and_the_one_for_the_keyboard_stays(write_spec: Any) -> None:
    def submitit_would(number: int, frame: object) -> None:
        raise AssertionError

    kept = signal.getsignal(signal.SIGINT)
    before = {number: signal.signal(number, submitit_would) for number in (10, 12, 15)}
    try:
        paths = write_spec()
        evaluate_attempt(str(paths.folder))
        assert all(signal.getsignal(number) is submitit_would for number in before)
        assert signal.getsignal(signal.SIGINT) is kept
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def test_the_callable_is_pickled_by_reference_and_runs_the_attempt(write_spec: Any) -> None:
    paths = write_spec()
    data = pickle.dumps(EvaluateAttempt(str(paths.folder)))
    assert b"elmanctl.jobs.evaluation" in data
    assert len(data) < 400 + len(str(paths.folder))
    assert pickle.loads(data)()["verdict"]["kind"] == "completed"


def test_the_controller_can_import_the_callable_without_heavy_modules() -> None:
    heavy = "{'torch', 'numpy', 'submitit', 'schedulefree'}"
    code = "import sys, elmanctl.jobs.evaluation, elmanctl.run.spec, elmanctl.jobs.failure; "
    code += f"sys.exit(str({heavy} & set(sys.modules)) if {heavy} & set(sys.modules) else 0)"
    subprocess.run([sys.executable, "-c", code], cwd=CHECKOUT, check=True)


@pytest.mark.parametrize(("interval_s", "lines"), [(10.0, 1), (0.0, 8)])
def test_a_worker_logs_a_step_when_the_interval_has_passed(
    write_spec: Any,
    caplog: pytest.LogCaptureFixture,
    monkeypatch: pytest.MonkeyPatch,
    interval_s: float,
    lines: int,
) -> None:
    monkeypatch.setattr(evaluation, "LOG_INTERVAL_S", interval_s)
    with caplog.at_level(logging.INFO, "elmanctl"):
        evaluate_attempt(str(write_spec(steps=8).folder))
    steps = [record.message for record in caplog.records if record.message.startswith("step ")]
    assert len(steps) == lines
