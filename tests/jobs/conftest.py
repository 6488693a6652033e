import hashlib
from pathlib import Path
from typing import Any

import pytest

from elmanctl.jobs import training_clock
from elmanctl.jobs.protocol import Budget
from elmanctl.jobs.spec import AttemptSpec, DataSpec

TEXT = b"the quick brown fox jumps over the lazy dog\n\x1e" * 400


@pytest.fixture(autouse=True)
def own_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A cache folder of the test's own, also for the processes it starts."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    return tmp_path / "cache" / "elmanctl"


class Clock:
    """The time of trainings, which passes when a test says so."""

    def __init__(self) -> None:
        self.now_s = 1000.0

    def monotonic(self) -> float:
        return self.now_s


@pytest.fixture
def training_time(monkeypatch: pytest.MonkeyPatch) -> Clock:
    """A clock of the test's own for every training in this process."""
    clock = Clock()
    monkeypatch.setattr(training_clock, "time", clock)
    return clock


@pytest.fixture
def corpus_file(tmp_path: Path) -> Path:
    path = tmp_path / "corpus.bytes"
    path.write_bytes(TEXT)
    return path


@pytest.fixture
def make_spec(corpus_file: Path) -> Any:
    """Make the spec of a tiny training run, with changes by keyword."""

    def make(**changes: Any) -> AttemptSpec:
        data = corpus_file.read_bytes()
        values: dict[str, Any] = {
            "run": "tiny",
            "evaluation": "g000-e00",
            "attempt": 1,
            "level": "e88",
            "config": {},
            "parameters_expected": 1,
            "seed": 3,
            "lr": 1e-2,
            "budget": Budget(kind="steps", amount=4),
            "batch": 4,
            "seq_len": 16,
            "warmup_steps": 1,
            "data": DataSpec(
                path=str(corpus_file),
                sha256=hashlib.sha256(data).hexdigest(),
                size_bytes=len(data),
            ),
            "device": "cpu",
            "threads": 1,
            "heartbeat_s": 0.2,
            "timeout_min": 5.0,
        }
        return AttemptSpec(**(values | changes))

    return make
