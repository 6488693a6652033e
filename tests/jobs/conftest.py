"""A cache, a clock and attempts of each test's own."""

import json
import math
import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest

from elmanctl.jobs import training_clock
from elmanctl.models.params import count_parameters
from elmanctl.run.corpus import describe
from elmanctl.run.paths import AttemptPaths, RunPaths
from elmanctl.run.spec import AttemptSpec, DataSpec
from tests.jobs.attempts import CHECKOUT, EVERY_STEP, MODELS, Write
from tests.jobs.forked_ranks import ForkedRanks
from tests.jobs.workers import CONFIG
from tests.specs import changed


@pytest.fixture(autouse=True)
def own_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A cache folder of the test's own, also for the processes it starts."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    return tmp_path / "cache" / "elmanctl"


@pytest.fixture(autouse=True)
def every_checkpoint(monkeypatch: pytest.MonkeyPatch) -> None:
    """Have every checkpoint that is due written, also where a busy machine takes long for one."""
    if find_spec("torch"):
        monkeypatch.setattr("elmanctl.jobs.checkpoints._SHORT_S", math.inf)


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
def documents(corpus: Path) -> DataSpec:
    """A corpus with documents enough to hold some out."""
    found = describe(corpus)
    return DataSpec(path=str(found.path), sha256=found.sha256, size_bytes=found.size_bytes)


@pytest.fixture
def write(make_spec: Callable[..., AttemptSpec], tmp_path: Path) -> Write:
    """Write the spec of an attempt and return its paths."""

    def write(number: int = 1, *, evaluation: str = "g000-e00", **changes: Any) -> AttemptPaths:
        paths = RunPaths(tmp_path / "run").attempt(evaluation, number)
        paths.folder.mkdir(parents=True)
        level = changes.get("level", "e88")
        config = changes.get("config") or MODELS[level]
        values = {
            "attempt": number,
            "level": level,
            "config": config,
            "parameters_expected": count_parameters(level, config),
            "steps": 12,
            "checkpoint_min": EVERY_STEP,
        }
        if number > 1:
            values["continues_from"] = ("attempt-1",)
        paths.spec.write_text(json.dumps(make_spec(**changed(values, changes)).encode()))
        return paths

    return write


@pytest.fixture(scope="session")
def forked_ranks(tmp_path_factory: pytest.TempPathFactory) -> Iterator[ForkedRanks]:
    """Runs attempts by several ranks."""
    with ForkedRanks(tmp_path_factory.mktemp("ranks")) as started:
        yield started


@pytest.fixture
def write_spec(make_spec: Callable[..., AttemptSpec], tmp_path: Path) -> Any:
    """Write a spec with changes into the folder of a fresh attempt and return its paths."""

    def write(name: str = "g000-e00", **changes: Any) -> AttemptPaths:
        paths = RunPaths(tmp_path / "run").attempt(name, 1)
        paths.folder.mkdir(parents=True)
        expected = {"config": CONFIG, "parameters_expected": count_parameters("e88", CONFIG)}
        spec = make_spec(**(expected | changes))
        paths.spec.write_text(json.dumps(spec.encode()))
        return paths

    return write


@pytest.fixture
def start(tmp_path: Path) -> Any:
    """Start workers as processes of their own; none outlives the test."""
    started = []

    def start(
        paths: AttemptPaths, *, before: str = "", prefix: Any = (), **environment: str
    ) -> Any:
        code = f"{before}\nfrom elmanctl.jobs.evaluation import evaluate_attempt\n"
        code += f"print(evaluate_attempt({str(paths.folder)!r}))"
        process = subprocess.Popen(
            [*prefix, sys.executable, "-W", "error", "-c", code],
            cwd="/",
            env={**os.environ, "PYTHONPATH": str(CHECKOUT), "OMP_NUM_THREADS": "1", **environment},
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        started.append(process)
        return process

    yield start
    for process in started:
        process.kill()
        process.communicate()
