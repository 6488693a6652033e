"""A cache and a Slurm of each test's own."""

from pathlib import Path

import pytest

from tests.schedulers.executor_setup import Setup
from tests.schedulers.slurm_tools import SlurmTools


@pytest.fixture(autouse=True)
def own_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A cache folder of the test's own, also for the processes it starts."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    return tmp_path / "cache" / "elmanctl"


@pytest.fixture
def slurm(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Setup:
    """An executor whose commands are small programs."""
    return Setup(tmp_path, SlurmTools(tmp_path / "bin", monkeypatch))
