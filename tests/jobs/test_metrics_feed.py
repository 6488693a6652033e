"""Metrics for TensorBoard and W&B: written by the real libraries, and never in the way."""

import json
import logging
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from elmanctl.errors import ConfigError, EnvironmentNotReady
from elmanctl.jobs import metrics_feed, metrics_process
from elmanctl.jobs.evaluation import evaluate_attempt
from elmanctl.jobs.metrics import StepRecord
from elmanctl.jobs.metrics_feed import MetricsFeed
from elmanctl.jobs.metrics_process import Destination
from elmanctl.run.metrics_settings import MetricsSettings
from elmanctl.run.paths import AttemptPaths
from elmanctl.run.spec import AttemptSpec, DataSpec
from elmanctl.search.plan import check_trainable
from elmanctl.settings import Settings
from tests.jobs.attempts import CHECKOUT, KILLED, Write, interrupted, metrics, read, run
from tests.jobs.metric_files import events, scalars, wandb_records
from tests.patience import PATIENCE_S

TENSORBOARD = MetricsSettings(tensorboard=True)
WANDB = MetricsSettings(wandb="lab/curves")
VALIDATED = {"objective": "val", "holdout": 0.1, "val_windows": 4, "val_every": 5}

needs_tensorboard = pytest.mark.usefixtures("tensorboard")
needs_wandb = pytest.mark.usefixtures("wandb")


@pytest.fixture
def tensorboard() -> None:
    pytest.importorskip("tensorboardX", reason="the extra `tensorboard` is not installed")


@pytest.fixture
def wandb() -> None:
    pytest.importorskip("wandb", reason="the extra `wandb` is not installed")


@pytest.fixture(autouse=True)
def offline(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Keep W&B from the network and from the user's own files."""
    monkeypatch.setenv("WANDB_MODE", "offline")
    for name in ("CACHE", "CONFIG", "DATA"):
        monkeypatch.setenv(f"WANDB_{name}_DIR", str(tmp_path / "wandb-home"))


@pytest.fixture
def fake_wandb(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[[str], None]:
    """Put a package named wandb with some source before the real one."""

    def fake(source: str) -> None:
        package = tmp_path / "fake" / "wandb.py"
        package.parent.mkdir()
        package.write_text(source)
        monkeypatch.setenv("PYTHONPATH", str(package.parent))

    return fake


def warnings(caplog: pytest.LogCaptureFixture) -> list[str]:
    return [record.message for record in caplog.records if record.levelno >= logging.WARNING]


def single(folder: Path, pattern: str) -> Path:
    (found,) = folder.glob(pattern)
    return found


def expected(paths: AttemptPaths) -> list[tuple[int, dict[str, float]]]:
    """Return the numbers of metrics.jsonl, those that exist, in single precision."""
    return [
        (line.pop("step"), {k: float(np.float32(v)) for k, v in line.items() if v is not None})
        for line in metrics(paths)
    ]


def without_time(numbers: dict[str, float]) -> dict[str, float]:
    return {name: value for name, value in numbers.items() if name != "elapsed_s"}


@needs_tensorboard
def test_event_file_has_every_step_and_validation(write: Write, documents: DataSpec) -> None:
    paths = write(metrics=TENSORBOARD, data=documents, **VALIDATED)
    result = run(paths)
    found = scalars(single(paths.folder, "events.out.tfevents.*"))
    steps = [(step, without_time(numbers)) for step, numbers in found if "loss" in numbers]
    assert steps == [(step, without_time(numbers)) for step, numbers in expected(paths)]
    validated = [(step, numbers["val_loss"]) for step, numbers in found if "val_loss" in numbers]
    assert [step for step, _ in validated] == [5, 10, 12]
    assert validated[-1][1] == np.float32(result["val_loss"])


@needs_tensorboard
def test_restart_hides_what_the_first_start_wrote_after_its_checkpoint(
    write: Write, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("SLURM_JOB_ID", "7")
    paths = write(metrics=TENSORBOARD)
    interrupted(paths, before_step=9)
    first = single(paths.folder, "events.out.tfevents.*")
    monkeypatch.setenv("SLURM_RESTART_COUNT", "1")
    result = run(paths)
    begin = result["continued_from"]["step"] + 1
    (second,) = {*paths.folder.glob("events.out.tfevents.*")} - {first}
    starts = [event.step for event in events(second) if event.HasField("session_log")]
    assert starts == [begin]
    assert [step for step, _ in scalars(second)] == [*range(begin, 13)]
    assert [step for step, _ in scalars(first)] == [*range(1, 9)]


@needs_tensorboard
def test_step_that_diverges_is_in_the_event_file(write: Write) -> None:
    paths = write(metrics=TENSORBOARD, lr=1e6, steps=1000)
    assert run(paths)["verdict"]["kind"] == "diverged"
    *_, (_, last) = scalars(single(paths.folder, "events.out.tfevents.*"))
    assert not np.isfinite([last["loss"], last["grad_norm"]]).all()


@needs_wandb
def test_wandb_run_has_the_spec_and_every_step_and_keeps_its_id_after_a_restart(
    write: Write, documents: DataSpec, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("SLURM_JOB_ID", "7")
    paths = write(metrics=WANDB, data=documents, **VALIDATED)
    interrupted(paths, before_step=9)
    (first,) = paths.wandb.glob("offline-run-*")
    first = first.rename(paths.folder / "first")
    monkeypatch.setenv("SLURM_RESTART_COUNT", "1")
    result = run(paths)
    begin = result["continued_from"]["step"] + 1
    runs = [first, single(paths.wandb, "offline-run-*")]
    by_kind: list[dict[str, list[Any]]] = []
    for folder in runs:
        by_kind.append({})
        for record in wandb_records(single(folder, "*.wandb")):
            kind = record.WhichOneof("record_type")
            by_kind[-1].setdefault(kind, []).append(getattr(record, kind))
    for kinds in by_kind:
        (about,) = kinds["run"]
        assert about.run_id == (paths.wandb / "run-id").read_text()
        assert (about.entity, about.project) == ("lab", "curves")
        assert about.run_group == AttemptSpec.read(paths.spec).run
        assert about.display_name == "g000-e00/attempt-1"
        config = {each.key: json.loads(each.value_json) for each in about.config.update}
        del config["_wandb"]
        assert config == read(paths.spec)
    assert [each["exit"][0].exit_code for each in by_kind] == [1, 0]
    histories = [[*map(history_of, kinds["history"])] for kinds in by_kind]
    losses = [[(row["step"], row["loss"]) for row in h if "loss" in row] for h in histories]
    assert [step for step, _ in losses[0]] == [*range(1, 9)]
    assert losses[1] == [(line["step"], line["loss"]) for line in metrics(paths)]
    assert losses[1][0][0] == begin
    validated = [row["step"] for row in histories[1] if "val_loss" in row]
    assert validated == [step for step in (5, 10, 12) if step >= begin]
    updates = [each for summary in by_kind[1]["summary"] for each in summary.update]
    told = {"/".join(each.nested_key) or each.key: each.value_json for each in updates}
    assert json.loads(told["verdict"]) == "completed"
    assert result["val_loss"] in json.loads(told["result"]).values()


def history_of(record: Any) -> dict[str, Any]:
    return {
        "/".join(item.nested_key) or item.key: json.loads(item.value_json) for item in record.item
    }


@needs_wandb
def test_killed_worker_leaves_every_step_and_a_wandb_run_that_failed(write: Write) -> None:
    paths = write(metrics=WANDB, steps=10**6)
    worker = subprocess.run(
        [sys.executable, "-c", KILLED, str(paths.folder), "40", "0.01"],
        env={**os.environ, "PYTHONPATH": str(CHECKOUT), "OMP_NUM_THREADS": "1"},
        capture_output=True,
        check=False,
    )
    assert worker.returncode == -signal.SIGKILL, worker.stderr
    deadline = time.monotonic() + PATIENCE_S
    ends: list[Any] = []
    while not ends:
        assert time.monotonic() < deadline, "nobody ends the W&B run"
        time.sleep(0.1)
        files = [*paths.wandb.glob("offline-run-*/*.wandb")]
        found = [*wandb_records(files[0])] if files and files[0].stat().st_size > 7 else []
        ends = [record.exit.exit_code for record in found if record.HasField("exit")]
    assert ends == [1]
    logged = [history_of(r.history)["step"] for r in found if r.HasField("history")]
    made = [line["step"] for line in metrics(paths)]
    # It may have been killed between the two.
    assert logged in (made, made[:-1])


@needs_wandb
def test_worker_that_is_asked_to_end_waits_for_its_metrics(write: Write) -> None:
    paths = write(metrics=WANDB, steps=10**6)
    worker = subprocess.Popen(
        [sys.executable, "-c", KILLED, str(paths.folder), "-1", "0"],
        env={**os.environ, "PYTHONPATH": str(CHECKOUT), "OMP_NUM_THREADS": "1"},
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
    try:
        deadline = time.monotonic() + PATIENCE_S
        while not [*paths.wandb.glob("offline-run-*/*.wandb")] or not metrics(paths):
            assert time.monotonic() < deadline, "no W&B run begins"
            time.sleep(0.05)
        worker.terminate()
        assert worker.wait(PATIENCE_S) == -signal.SIGTERM
    finally:
        worker.kill()
        worker.wait()
    # Now Slurm would kill what is left of the job.
    found = [*wandb_records(single(paths.wandb, "offline-run-*/*.wandb"))]
    assert [record.exit.exit_code for record in found if record.HasField("exit")] == [1]
    logged = [history_of(r.history)["step"] for r in found if r.HasField("history")]
    assert logged in ([line["step"] for line in metrics(paths)][:end] for end in (None, -1))


BROKEN = {
    "missing": ("raise ModuleNotFoundError(name='wandb')", "`wandb` is not installed on "),
    "no login": ("def init(**_): raise RuntimeError('no key\\nat all')\nSettings = dict", "no key"),
    "ends the program": ("import sys\nsys.exit('no licence')", "no licence"),
    "breaks later": (
        "class Run:\n"
        "    def define_metric(self, *_, **__): pass\n"
        "    def log(self, values):\n"
        "        if values['step'] == 5: raise OSError(28, 'No space left on device')\n"
        "def init(**_): return Run()\nSettings = dict",
        "No space left on device",
    ),
    "hangs": (
        "import time\ndef init(**_): time.sleep(1e6)\nSettings = dict",
        "the last metrics were not written within 1 s",
    ),
    "dies": ("import os\nos.abort()", "exit code -6"),
}


@needs_tensorboard
@pytest.mark.parametrize(("source", "reason"), BROKEN.values(), ids=BROKEN)
def test_broken_library_is_one_warning_and_changes_no_loss(
    write: Write,
    fake_wandb: Callable[[str], None],
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
    source: str,
    reason: str,
) -> None:
    plain = write()
    run(plain)
    fake_wandb(source)
    if source == BROKEN["hangs"][0]:
        monkeypatch.setattr(metrics_feed, "END_S", 1)
    both = MetricsSettings(tensorboard=True, wandb="curves")
    paths = write(evaluation="g000-e01", metrics=both)
    caplog.clear()
    assert run(paths)["verdict"]["kind"] == "completed"
    (warning,) = warnings(caplog)
    assert reason in warning and "at all" not in warning
    assert [line["loss"] for line in metrics(paths)] == [line["loss"] for line in metrics(plain)]
    if "exit code" not in warning and "within" not in warning:
        found = scalars(single(paths.folder, "events.out.tfevents.*"))
        assert [step for step, _ in found] == [*range(1, 13)]


def test_destination_that_is_too_slow_is_left_and_keeps_nobody_waiting(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(metrics_process, "MOST_WAITING", 10)
    is_free, said = threading.Event(), list[str]()

    def open_writer() -> Any:
        is_free.wait(PATIENCE_S)
        raise AssertionError("it is asked no more")

    destination = Destination("The attic", open_writer, said.append)
    for number in range(100):
        destination.put(b"%d" % number)
    destination.end()
    is_free.set()
    assert said == ["The attic gets no more metrics: 10 steps wait for it"]


def record(step: int) -> StepRecord:
    return StepRecord(step=step, loss=1.0, grad_norm=1.0, tokens=step, elapsed_s=0.0)


def test_process_that_takes_nothing_is_left_without_waiting(
    write: Write, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(metrics_feed, "END_S", 1)
    monkeypatch.setattr(metrics_feed, "_GRACE_S", 0.5)
    paths = write(metrics=TENSORBOARD)
    feed = MetricsFeed(paths.folder)
    feed._process.send_signal(signal.SIGSTOP)
    # Many times what the pipe holds: a call that waits for the process would wait for ever.
    for step in range(1, 50_000):
        feed.step(record(step))
    (warning,) = warnings(caplog)
    assert "no process takes them" in warning
    feed.close()
    assert warnings(caplog) == [warning]
    assert feed._process.returncode == -signal.SIGKILL


def test_process_that_was_killed_is_one_warning_at_once(
    write: Write, caplog: pytest.LogCaptureFixture
) -> None:
    feed = MetricsFeed(write(metrics=TENSORBOARD).folder)
    feed._process.kill()
    feed._process.wait(PATIENCE_S)
    feed.step(record(1))
    assert warnings(caplog) == ["the process that writes metrics ended with exit code -9"]
    feed.step(record(2))
    feed.close()
    assert len(warnings(caplog)) == 1


@needs_tensorboard
def test_signals_for_the_worker_do_not_end_the_process(write: Write) -> None:
    paths = write(metrics=TENSORBOARD)
    feed = MetricsFeed(paths.folder)
    for number in (signal.SIGTERM, signal.SIGUSR2, signal.SIGINT, signal.SIGHUP):
        feed._process.send_signal(number)
    feed.step(record(1))
    feed.close()
    assert feed._process.returncode == 0
    assert [step for step, _ in scalars(single(paths.folder, "events.*"))] == [1]
    assert signal.pthread_sigmask(signal.SIG_BLOCK, ()) == set()


def test_worker_that_is_not_asked_starts_no_process(
    write: Write, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*_: object, **__: object) -> None:
        raise AssertionError

    monkeypatch.setattr(metrics_feed, "MetricsFeed", refuse)
    paths = write()
    assert "metrics" not in read(paths.spec)
    assert evaluate_attempt(str(paths.folder))["verdict"]["kind"] == "completed"


@pytest.mark.parametrize(
    ("metrics", "package", "setting"),
    [(TENSORBOARD, "tensorboardX", "tensorboard"), (WANDB, "wandb", "wandb")],
)
def test_package_that_this_machine_lacks_is_told_before_a_training(
    monkeypatch: pytest.MonkeyPatch, metrics: MetricsSettings, package: str, setting: str
) -> None:
    monkeypatch.setitem(sys.modules, package, None)
    check_trainable(Settings())
    with pytest.raises(EnvironmentNotReady, match=f"`metrics.{setting}` needs it") as told:
        check_trainable(Settings(metrics=metrics))
    assert (told.value.hint or "").startswith(f"pip install '{package}>=")


@pytest.mark.parametrize("name", ["curves", "lab/curves", "my curves", "a-b_c.d"])
def test_names_of_projects_are_taken(name: str) -> None:
    MetricsSettings(wandb=name).check_together()


@pytest.mark.parametrize("name", ["a/b/c", "/curves", "lab/", "50%", "a:b", "x" * 129])
def test_what_names_no_project_is_refused(name: str) -> None:
    with pytest.raises(ConfigError, match="no name of a project"):
        MetricsSettings(wandb=name).check_together()
