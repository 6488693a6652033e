"""A cache and a clock of each test's own."""

from pathlib import Path

import pytest

from elmanctl.jobs import training_clock


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
