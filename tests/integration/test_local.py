"""Searches on this machine, disturbed and not."""

import os
import signal
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest

from elmanctl.ledger.records import RunStatus, State
from elmanctl.ledger.run_state import RunState
from elmanctl.run.paths import RunPaths
from tests.command_line import CommandLine
from tests.integration.runs import (
    KILLED_AT,
    assert_same_search,
    load,
    losses,
    points,
    search_arguments,
    trained_attempts,
    wait_for,
    with_standins,
)
from tests.patience import PATIENCE_S

pytestmark = pytest.mark.slow


def test_soft_limit_on_cpu_time_is_not_the_controllers(elmanctl: CommandLine, corpus: Path) -> None:
    shell = ("bash", "-c", 'ulimit -St 1000 && exec "$@"', "bash")
    search = (sys.executable, "-m", "elmanctl", *search_arguments(corpus), "--local")
    ledger = elmanctl.folder / "runs" / "run" / "ledger.jsonl"
    with subprocess.Popen(
        [*shell, *search], cwd=elmanctl.folder, env=elmanctl.environment, stderr=subprocess.DEVNULL
    ) as controller:
        wait_for(lambda: ledger.exists() and "points_asked" in ledger.read_text(), "a controller")
        limits = Path(f"/proc/{controller.pid}/limits").read_text(encoding="utf-8")
        assert elmanctl("cancel", "--all", "--yes").returncode == 0
    (line,) = (line for line in limits.splitlines() if line.startswith("Max cpu time"))
    soft, hard, _ = line.removeprefix("Max cpu time").split()
    assert soft == hard


KILLS = [
    ("after", "points_asked", 1),
    ("after", "submission_intended", 1),
    # The worker runs, nobody knows its process.
    ("before", "submission_accepted", 1),
    ("after", "attempt_started", 1),
    ("before", "generation_told", 1),
    ("after", "generation_told", 1),
]


def test_undisturbed_search_completes_every_evaluation(undisturbed: RunState) -> None:
    assert undisturbed.status is RunStatus.FINISHED
    assert len(undisturbed.evaluations) == 8
    assert {e.state for e in undisturbed.evaluations.values()} == {State.COMPLETED}


def test_controller_killed_again_and_again_loses_and_repeats_nothing(
    elmanctl: CommandLine, corpus: Path, undisturbed_standins: RunState
) -> None:
    user = with_standins(elmanctl)
    folder = user.folder / "runs" / "run"
    arguments = [*search_arguments(corpus), "--local"]
    for moment, kind, count in KILLS:
        killed = user.start([moment, kind, str(count), *arguments], program=(KILLED_AT,))
        output, _ = killed.communicate(timeout=PATIENCE_S)
        assert killed.returncode == -9, (moment, kind, output)
        arguments = ["resume"]
    resumed = user("resume")
    assert resumed.returncode == 0, resumed.stderr
    state = assert_same_search(folder, undisturbed_standins)
    assert {len(e.attempts) for e in state.evaluations.values()} == {1}


def test_asynchronous_controller_killed_again_and_again_goes_on_by_its_ledger(
    elmanctl: CommandLine, corpus: Path
) -> None:
    user = with_standins(elmanctl)
    user = replace(user, environment={**user.environment, "STANDIN_SECONDS": "0.2,1.5"})
    folder = user.folder / "runs" / "run"
    arguments = [*search_arguments(corpus), "--local", "--asynchronous", "--workers", "3"]
    asked: dict[str, tuple[float, ...]] = {}
    for moment, kind, count in (
        ("after", "points_asked", 1),
        ("before", "submission_accepted", 1),
        ("before", "value_reported", 2),
        ("after", "value_reported", 1),
        ("after", "points_asked", 2),
        ("before", "generation_told", 1),
        ("after", "generation_told", 1),
    ):
        killed = user.start([moment, kind, str(count), *arguments], program=(KILLED_AT,))
        output, _ = killed.communicate(timeout=PATIENCE_S)
        assert killed.returncode == -9, (moment, kind, output)
        arguments = ["resume"]
        # Nothing that was asked before is asked in another way.
        assert asked.items() <= points(load(folder)).items()
        asked = points(load(folder))
    resumed = user("resume")
    assert resumed.returncode == 0, resumed.stderr
    state = load(folder)
    assert state.status is RunStatus.FINISHED and len(state.evaluations) == 8
    assert state.reported == losses(state)
    assert {len(e.attempts) for e in state.evaluations.values()} == {1}
    assert len(trained_attempts(folder)) == 8


def test_controller_killed_while_it_confirms_trains_each_confirmation_once(
    elmanctl: CommandLine, corpus: Path
) -> None:
    user = with_standins(elmanctl)
    folder = user.folder / "runs" / "run"
    arguments = [
        *(*search_arguments(corpus), "--local", "--generations", "1"),
        *("--set", "search.confirm_top=1", "--set", "search.confirm_seeds=2"),
    ]
    for moment, kind in (
        ("before", "confirmation_asked"),
        ("after", "confirmation_asked"),
        ("after", "submission_intended"),
        ("after", "attempt_started"),
        ("before", "evaluation_closed"),
    ):
        killed = user.start([moment, kind, "1", *arguments], program=(KILLED_AT,))
        output, _ = killed.communicate(timeout=PATIENCE_S)
        assert killed.returncode == -9, (moment, kind, output)
        arguments = ["resume"]
        if kind == "confirmation_asked":
            # The generation was done before that.
            assert load(folder).told
    resumed = user("resume")
    assert resumed.returncode == 0, resumed.stderr
    state = load(folder)
    best = state.best()
    assert state.status is RunStatus.FINISHED and best is not None
    again = [e for e in state.evaluations.values() if e.confirms]
    assert [(e.id, e.confirms, e.seed) for e in again] == [
        ("c000-e00", best.id, 1_000_042),
        ("c000-e01", best.id, 1_000_043),
    ]
    assert {len(e.attempts) for e in state.evaluations.values()} == {1}
    assert len(trained_attempts(folder)) == len(state.evaluations) == 6
    assert "confirmed" in resumed.stdout


def test_interrupted_controller_leaves_its_workers_running(
    elmanctl: CommandLine, corpus: Path, undisturbed_standins: RunState
) -> None:
    folder = elmanctl.folder / "runs" / "run"
    # Workers that are still there when the controller has ended.
    controller = with_standins(elmanctl, 8.0).start([*search_arguments(corpus), "--local"])

    def worker() -> int | None:
        """Return the process of a worker that has begun."""
        if (folder / "ledger.jsonl").exists():
            for evaluation, attempt in load(folder).live_attempts():
                claim = RunPaths(folder).attempt(evaluation.id, attempt.number).claim
                process = RunPaths(folder).submission(attempt.submission) / "process"
                if claim.exists() and process.exists():
                    return int(process.read_text(encoding="utf-8").split()[0])
        return None

    supervisor = wait_for(worker, "a worker to begin")
    # Ctrl-C reaches the whole process group of the terminal.
    os.killpg(controller.pid, signal.SIGINT)
    output, _ = controller.communicate(timeout=PATIENCE_S)
    assert controller.returncode == 130, output
    assert "elmanctl resume run" in output
    os.kill(supervisor, 0)
    assert load(folder).status is RunStatus.INTERRUPTED
    resumed = with_standins(elmanctl, 0.0)("resume")
    assert resumed.returncode == 0, resumed.stderr
    state = assert_same_search(folder, undisturbed_standins)
    assert {len(e.attempts) for e in state.evaluations.values()} == {1}
