"""Attempts of tiny trainings: run, interrupted, killed, and what they left."""

import json
import os
import random
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

import elmanctl
from elmanctl.jobs.evaluation import evaluate_attempt
from elmanctl.jobs.metrics import MetricsLog, StepRecord
from elmanctl.run.paths import AttemptPaths

CHECKOUT = Path(elmanctl.__file__).parents[1]
MODELS = {
    "e88": {"dim": 16, "depth": 1, "n_heads": 2, "n_state": 4},
    "transformer": {"dim": 16, "depth": 1, "n_heads": 2},
}
# A worker that is killed some time after it reported a step, whatever it is doing then.
KILLED = """
import os, signal, sys, threading
from elmanctl.jobs.evaluation import evaluate_attempt
from elmanctl.jobs.metrics import MetricsLog
folder, step, delay_s = sys.argv[1], int(sys.argv[2]), float(sys.argv[3])
append = MetricsLog.append
def append_and_set_timer(log, record):
    append(log, record)
    if record.step == step:
        threading.Timer(delay_s, os.kill, (os.getpid(), signal.SIGKILL)).start()
MetricsLog.append = append_and_set_timer
evaluate_attempt(folder)
"""
EVERY_STEP = 1e-9
ON_DEMAND = 1e6

Write = Callable[..., AttemptPaths]


def read(path: Path) -> dict[str, Any]:
    content = json.loads(path.read_text())
    assert isinstance(content, dict)
    return content


def metrics(paths: AttemptPaths) -> list[dict[str, Any]]:
    return [json.loads(line) for line in paths.metrics.read_text().splitlines()]


def losses(paths: AttemptPaths) -> list[float]:
    return [record["loss"] for record in metrics(paths)]


def steps(paths: AttemptPaths) -> list[int]:
    return [record["step"] for record in metrics(paths)]


@contextmanager
def ended_before_step(step: int) -> Iterator[None]:
    """Let every worker end, without a result, when it reports this step."""
    append = MetricsLog.append

    def end(log: MetricsLog, record: StepRecord) -> None:
        if record.step == step:
            raise KeyboardInterrupt
        append(log, record)

    with pytest.MonkeyPatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(MetricsLog, "append", end)
        yield


def interrupted(paths: AttemptPaths, *, before_step: int) -> None:
    with ended_before_step(before_step):
        evaluate_attempt(str(paths.folder))
    assert not paths.result.exists()


def run(paths: AttemptPaths) -> dict[str, Any]:
    return evaluate_attempt(str(paths.folder))


def killed(paths: AttemptPaths) -> None:
    """Run an attempt in a process that is killed at a random moment after its second step."""
    step, delay_s = random.randrange(2, 30), random.uniform(0, 0.03)
    worker = subprocess.run(
        [sys.executable, "-c", KILLED, str(paths.folder), str(step), str(delay_s)],
        env={**os.environ, "PYTHONPATH": str(CHECKOUT), "OMP_NUM_THREADS": "1"},
        capture_output=True,
        check=False,
    )
    assert worker.returncode == -signal.SIGKILL, worker.stderr
    assert not paths.result.exists() and paths.checkpoint.exists()
