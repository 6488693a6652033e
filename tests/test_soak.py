"""What benchmarks/soak.py measures and how it judges, without a run of it."""

import importlib
import subprocess
import sys
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

BENCHMARKS = Path(__file__).parents[1] / "benchmarks"


@pytest.fixture
def modules(monkeypatch: pytest.MonkeyPatch) -> Any:
    """Import a module of the campaign for one test."""
    monkeypatch.syspath_prepend(str(BENCHMARKS))
    return lambda name: importlib.import_module(f"campaign.{name}")


def test_queries_are_counted_and_answered(
    modules: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    real = tmp_path / "bin"
    real.mkdir()
    (real / "squeue").write_text('#!/bin/sh\necho "rows for $*"; exit 3\n', encoding="utf-8")
    (real / "squeue").chmod(0o755)
    monkeypatch.setenv("PATH", f"{real}:/usr/bin:/bin")
    counters = modules("counting").Counters(tmp_path)
    for _ in range(3):
        done = subprocess.run(
            ["squeue", "--me"],
            env=counters.environment,
            capture_output=True,
            text=True,
            check=False,
        )
        assert (done.stdout, done.returncode) == ("rows for --me\n", 3)
    counted = counters.read()
    assert counted.by_command == {"squeue": 3}
    assert counted.most_in_a_minute == 3
    assert modules("counting").per_minute(counted, 120) == 1.5


def test_most_queries_in_a_minute_are_of_any_minute(modules: Any) -> None:
    counted = modules("counting").Counted(times_s=(0, 50, 59, 61, 70, 130), by_command={})
    assert counted.most_in_a_minute == 4


def test_memory_is_compared_with_that_of_a_controller_that_has_begun(
    modules: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    soak = modules("soak")
    clock = [0.0]
    monkeypatch.setattr(soak.time, "monotonic", lambda: clock[0])
    program = "import time; print(flush=True); time.sleep(60)"
    with subprocess.Popen(
        [sys.executable, "-c", program, "resume"], stdout=subprocess.PIPE
    ) as child:
        assert child.stdout is not None
        child.stdout.read(1)
        memory = soak.Memory(settled=100)
        memory.note(child.pid, 150)
        assert memory.settled_mb == {}
        clock[0] = 60.0
        memory.note(child.pid, 90)
        assert memory.settled_mb == {}
        memory.note(child.pid, 100)
        assert 1 < memory.settled_mb["resume"] < 100
        assert memory.encode()["growth"] == 1.0
        child.kill()


def _plan(soak: ModuleType) -> Any:
    return soak.Plan(
        evaluations=4, population=4, submit_limit=4, restart_s=60, node_s=60, node_back_s=10,
        renew_s=60, poll_s=60, seconds=(0.0, 0.1), settled=1,
    )  # fmt: skip


@pytest.mark.timeout(120)
def test_every_broken_promise_is_named(modules: Any, tmp_path: Path) -> None:
    soak, judge = modules("soak"), modules("soak_judge")
    search = modules("search").Search(
        tmp_path,
        modules("search").Shape(population=4, generations=1, seed=1, seconds=(0.0, 0.1)),
        "local",
    )
    search.finish()
    seen = {
        "seconds": 60, "growth": 1.1, "queries_a_minute": 1.9, "unplanned_ends": [],
    }  # fmt: skip
    assert judge.judge(search, _plan(soak), seen)["broken"] == []

    with search.log.open("a", encoding="utf-8") as log:
        log.write("g000-e00 1 j start\ng000-e00 1 j end completed\n")
    bad = {"seconds": 60, "growth": 1.2, "queries_a_minute": 2.1, "unplanned_ends": ["srun: 4"]}
    broken = "\n".join(judge.judge(search, _plan(soak), bad)["broken"])
    for words in ("trained twice: ['g000-e00']", "begun twice", "1.2 times", "2.1 queries", "srun"):
        assert words in broken
    search.log.write_text("", encoding="utf-8")
    broken = "\n".join(judge.judge(search, _plan(soak), seen)["broken"])
    assert "without a result: ['c000-e00', " in broken and "'g000-e00', " in broken
    assert "by the ledger, not by a worker" in broken
