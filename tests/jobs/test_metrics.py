import errno
import json
from pathlib import Path

import pytest

from elmanctl.jobs.metrics import MetricsLog, StepRecord


def record(step: int, loss: float = 2.5, grad_norm: float = 0.5) -> StepRecord:
    return StepRecord(
        step=step, loss=loss, grad_norm=grad_norm, tokens=step * 64, elapsed_s=step / 3
    )


def test_each_step_is_in_the_file_as_soon_as_it_is_appended(tmp_path: Path) -> None:
    path = tmp_path / "metrics.jsonl"
    with MetricsLog(path) as metrics:
        metrics.append(record(1))
        assert json.loads(path.read_text()) == {
            "step": 1,
            "loss": 2.5,
            "grad_norm": 0.5,
            "tokens": 64,
            "elapsed_s": 0.333,
            "update_norm": None,
        }
        metrics.append(record(2))
        assert len(path.read_text().splitlines()) == 2


def test_a_number_that_is_not_finite_is_written_as_null(tmp_path: Path) -> None:
    path = tmp_path / "metrics.jsonl"
    with MetricsLog(path) as metrics:
        metrics.append(record(1, loss=float("nan"), grad_norm=float("inf")))
    line = json.loads(path.read_text())
    assert (line["loss"], line["grad_norm"]) == (None, None)


def test_a_loss_keeps_every_bit(tmp_path: Path) -> None:
    path = tmp_path / "metrics.jsonl"
    with MetricsLog(path) as metrics:
        metrics.append(record(1, loss=0.1 + 0.2))
    assert json.loads(path.read_text())["loss"] == 0.1 + 0.2


def test_a_full_disk_is_not_kept_quiet() -> None:
    with MetricsLog(Path("/dev/full")) as metrics, pytest.raises(OSError) as caught:
        metrics.append(record(1))
    assert caught.value.errno == errno.ENOSPC
