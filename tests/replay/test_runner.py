"""The runner: resumable, the same in any number of processes, and no search twice."""

import os
import signal
import time
from dataclasses import replace
from pathlib import Path

import pytest

from elmanctl.errors import UsageError
from elmanctl.replay.functions import FunctionSource
from elmanctl.replay.objective import Objective
from elmanctl.replay.runner import Simulations, Task, run_tasks, tasks_of
from elmanctl.replay.simulation import Trace
from elmanctl.replay.trace_cache import TraceCache
from tests.command_line import CommandLine
from tests.patience import PATIENCE_S

SOURCES = {name: FunctionSource(name=name) for name in ("quadratic", "steps")}
SIMULATIONS = Simulations(sources=SOURCES, procedures={})


def tasks(*optimizers: str, seeds: int = 3) -> list[Task]:
    """Return some short searches."""
    return tasks_of(list(SOURCES), optimizers, seeds=seeds, budgets=[8, 16], population=8)


def done(cache: TraceCache, *, processes: int = 1) -> dict[Task, Trace]:
    """Return the traces of these searches, without their times."""
    found = run_tasks(SIMULATIONS, tasks("cma"), cache, processes=processes)
    return {task: replace(trace, cpu_ms=0.0) for task, trace in found}


def test_processes_give_what_one_gives() -> None:
    assert done(TraceCache(None), processes=2) == done(TraceCache(None))


def test_comparison_in_processes_is_stopped_by_ctrl_c_and_goes_on(elmanctl: CommandLine) -> None:
    # A program that runs whenever it is imported, as the processes must not.
    program = elmanctl.folder / "program.py"
    program.write_text("from elmanctl.__main__ import main\nmain()\n", encoding="utf-8")
    cache = elmanctl.folder / "cache.jsonl"
    command = ["replay", "--function", "cliff", "--optimizer", "cma", "--processes", "2"]
    command += ["--budget", "120", "--cache", str(cache), "--seeds"]
    process = elmanctl.start([*command, "400"], program=[str(program)])
    deadline = time.monotonic() + PATIENCE_S
    while not (cache.exists() and cache.read_bytes().count(b"\n") >= 4):
        assert time.monotonic() < deadline and process.poll() is None
        time.sleep(0.02)
    os.killpg(process.pid, signal.SIGINT)
    said, _ = process.communicate(timeout=PATIENCE_S)
    assert process.returncode == 130 and "Traceback" not in said
    kept = cache.read_bytes().count(b"\n")
    assert 4 <= kept < 400
    done = elmanctl(*command, "4", "--json")
    assert done.returncode == 0, done.stderr
    assert cache.read_bytes().count(b"\n") < kept + 4


def test_stopped_comparison_goes_on_behind_half_a_line(tmp_path: Path) -> None:
    path = tmp_path / "cache.jsonl"
    whole = done(TraceCache(path))
    lines = path.read_text(encoding="utf-8").splitlines(keepends=True)
    assert len(lines) == len(whole) == 12
    path.write_text("".join(lines[:7]) + lines[7][:40], encoding="utf-8")
    assert done(TraceCache(path)) == whole
    # What was kept is kept as it was, and the rest is there again.
    again = path.read_text(encoding="utf-8").splitlines(keepends=True)
    assert again[:7] == lines[:7] and len(again) == 12
    assert done(TraceCache(path)) == whole
    assert path.read_text(encoding="utf-8").splitlines(keepends=True) == again


def test_file_that_is_no_cache_is_refused_and_left_alone(tmp_path: Path) -> None:
    path = tmp_path / "notes.txt"
    path.write_text("remember the milk\n", encoding="utf-8")
    with pytest.raises(UsageError, match="line 1 is no trace of a simulated search"):
        TraceCache(path)
    assert path.read_text(encoding="utf-8") == "remember the milk\n"


def constant(value: float) -> Simulations:
    """Return a procedure of our own that hands over one value at once."""

    def procedure(task: Task, objective: Objective) -> Trace:
        if task.seed == 2:
            raise ZeroDivisionError("seed 2")
        return Trace(handed=((1, value),), trained=1, failed=0, generations=1, cpu_ms=0.0)

    return Simulations(sources=SOURCES, procedures={"own": procedure})


def test_optimizer_that_changed_is_simulated_again(tmp_path: Path) -> None:
    path = tmp_path / "cache.jsonl"
    for value in (1.0, 1.0, 2.0):
        found = dict(run_tasks(constant(value), tasks("own"), TraceCache(path), processes=1))
        assert {t.handed[0][1] for t in found.values() if t.error is None} == {value}


def test_failed_search_says_why_leaves_the_others_and_is_tried_again(tmp_path: Path) -> None:
    path = tmp_path / "cache.jsonl"
    found = dict(run_tasks(constant(1.0), tasks("own"), TraceCache(path), processes=1))
    failed = {task.seed: trace.error for task, trace in found.items() if trace.error}
    assert failed == {2: "ZeroDivisionError: seed 2"}
    assert len(found) == 12 and len(path.read_text(encoding="utf-8").splitlines()) == 8
