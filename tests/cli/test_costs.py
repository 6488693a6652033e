"""What the command line says of costs, budgets and repeats."""

import json
import os
import shutil
from collections.abc import Iterator
from itertools import count
from pathlib import Path

import pytest

from elmanctl.cli import controller
from elmanctl.cli.costs import format_hours
from elmanctl.ledger.records import RunStatus
from elmanctl.ledger.state import load_run
from tests.cli.test_status import table
from tests.command_line import CommandLine, QuickCommandLine
from tests.search.scripted import Run, Runs, ScriptedExecutor
from tests.search.test_early_stopping import Trainings

AXES = {
    "n_heads": {"kind": "int", "low": 1, "high": 4},
    "depth": {"kind": "int", "low": 1, "high": 2},
}
SEARCH = {"axes": AXES, "model": {"dim": 32, "n_state": 8, "lr": 1e-2}, "generations": 4}


@pytest.fixture(scope="module")
def repeated(tmp_path_factory: pytest.TempPathFactory, corpus: Path) -> Iterator[Path]:
    """Runs in which points repeat: one answered them, one gave them other seeds."""
    root = tmp_path_factory.mktemp("repeated")
    (root / "templates").mkdir()
    runs = Runs(root / "runs", corpus, root / "templates")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(os, "fsync", lambda descriptor: None)
        patch.setenv("XDG_CACHE_HOME", str(root / "cache"))
        answered = runs.new(name="answered", budget={"gpu_hours": 9.0, "failures": 5}, **SEARCH)
        answered.world.script = {"g000-e00": ["node_failure"]}
        assert answered.drive().status is RunStatus.FINISHED
        assert runs.new(name="reseeded", repeats="reseed", **SEARCH).drive().repeats
    yield root / "runs"


@pytest.fixture
def user(elmanctl: CommandLine, repeated: Path, quick: QuickCommandLine) -> QuickCommandLine:
    """The command line in a folder with these runs."""
    shutil.copytree(repeated, elmanctl.folder / "runs")
    return quick


def test_status_marks_answered_repeats_and_counts_what_they_saved(user: QuickCommandLine) -> None:
    done = user("status", "answered", "--all")
    state = load_run(user.folder / "runs" / "answered").state
    rows = {row["EVAL"]: row for row in table(done.stdout)}
    for name, evaluation in state.evaluations.items():
        by = evaluation.answer.by if evaluation.answer else None
        assert rows[name]["REASON"] == (f"as {by}" if by else "")
        assert rows[name]["LOSS"] == str(evaluation.loss)
    assert state.answered > 3
    assert f"{state.answered} repeats deduplicated, " in done.stderr
    assert "gave no loss: node_failure " in done.stderr
    assert "  budget  9 of 9 job-hours left, 4 of 5 failed attempts left" in done.stderr


def test_costs_and_noise_are_in_the_json(user: QuickCommandLine) -> None:
    answered = json.loads(user("status", "answered", "--all", "--json").stdout)
    cost = answered["run"]["cost"]
    assert (cost["unit"], cost["evaluations_left"], cost["failures"]) == ("job-hours", 0, 1)
    assert cost["forecast_gpu_hours"] == cost["gpu_hours"]
    assert cost["answered"] == answered["run"]["answered"] > 3
    assert set(cost["waste"]) == {"node_failure"}
    assert cost["attempts"]["completed"] + cost["answered"] == 16
    assert cost["budgets"]["failures"] == {"limit": 5.0, "used": 1.0, "left": 4.0}
    assert answered["noise"] == []
    reseeded = json.loads(user("status", "reseeded", "--all", "--json").stdout)
    noise = reseeded["noise"]
    assert noise
    assert {"evaluation", "n", "mean", "sd"} == set(noise[0])
    assert reseeded["run"]["cost"]["answered"] == 0
    estimate = reseeded["run"]["estimate"]
    assert estimate["n"] >= 1 and estimate["se"] is not None
    head = user("status", "reseeded").stderr
    assert f"  best    {estimate['evaluation']}, mean {estimate['mean']:.4f} ± " in head
    assert "  noise   sd 0.0000 between seeds (" in head


def test_one_evaluation_shows_which_it_repeats(user: QuickCommandLine) -> None:
    state = load_run(user.folder / "runs" / "answered").state
    name = next(e.id for e in state.evaluations.values() if e.answer is not None)
    by = state.evaluations[name].repeats
    assert f"  repeats     {by}: same" in user("show", "answered", name).stdout
    shown = json.loads(user("show", "answered", name, "--json").stdout)
    assert (shown["repeats"], shown["answered_by"], shown["noise"]) == (by, by, None)
    done = user("logs", "answered", name)
    assert done.returncode == 3
    assert f"it repeats {by} and had no job" in done.stderr
    assert f"`elmanctl logs answered {by}`" in done.stderr


def test_one_evaluation_shows_the_noise_of_its_configuration(user: QuickCommandLine) -> None:
    state = load_run(user.folder / "runs" / "reseeded").state
    first, others = next(iter(state.repeats.items()))
    n = 1 + len(others)
    shown = user("show", "reseeded", first).stdout
    assert f", sd 0.0000 of {n} seeds" in shown
    assert "  protocol    sd 0.0000 between seeds (" in shown
    shown = user("show", "reseeded", others[0]).stdout
    assert f"  repeats     {first}: same" in shown
    assert f"of {n} seeds" in shown


@pytest.mark.torch
def test_what_was_stopped_early_is_shown_with_what_it_saved(
    elmanctl: CommandLine, quick: QuickCommandLine, corpus: Path, tmp_path: Path
) -> None:
    runs = Runs(elmanctl.folder / "runs", corpus, tmp_path / "templates")
    (tmp_path / "templates").mkdir()
    run = runs.new(name="early", generations=2, population=6, stopping={"rule": "curve"})
    run.world = Trainings(run.folder)
    ticks = count(1000)
    run.drive(now=lambda: float(next(ticks)))
    status = quick("status", "early", "--all", "--json")
    shown = json.loads(status.stdout)
    names = [row["evaluation"] for row in shown["evaluations"] if row["state"] == "stopped"]
    assert names
    cost = shown["run"]["cost"]
    assert (shown["run"]["stopped_early"], cost["stopped_early"]) == (len(names), len(names))
    assert cost["spared_gpu_hours"] > 0 and not cost["waste"] and not cost["failures"]
    text = quick("status", "early").stderr
    assert f"{len(names)} stopped early" in text and "saved" in text
    (row,) = [row for row in shown["evaluations"] if row["evaluation"] == names[0]]
    assert row["loss"] is None and row["reason"].startswith("stopped at ")
    one = quick("show", "early", names[0]).stdout
    assert f"{names[0]} of early: stopped" in one
    for words in ("of the budget: training loss", "to the optimizer, by its prediction"):
        assert words in one
    assert "saved       about" in one
    best = quick("show", "early", "best", "--json").stdout
    assert json.loads(best)["state"] == "completed"


@pytest.mark.torch
def test_plan_says_the_most_it_can_cost_and_what_the_budget_makes_of_it(
    quick: QuickCommandLine, corpus: Path
) -> None:
    quick_search = ("search", "e88", "--preset", "tiny", "--data", str(corpus), "--dry-run")
    done = quick(*quick_search, "--local", "--generations", "5")
    assert "20 evaluations of 300 steps, then the best 2 again on 2 fresh seeds; " in done.stderr
    assert "at most 24 job-hours (24 x 60 min), plus retries; no budget set" in done.stderr
    plain = (*quick_search, "--set", "search.confirm_top=0", "--train-minutes", "5")
    done = quick(*plain, "--gpu-hours", "1.5", "--wall-hours", "5")
    assert "fresh seed" not in done.stderr
    assert "at most 2 GPU-hours (12 x 10 min)" in done.stderr
    assert "the budget may end it after 1.5 GPU-hours, may end it after 5 h of work" in done.stderr
    done = quick(*plain, "--gpu-hours", "0.5", "--json")
    cost = json.loads(done.stdout)["cost"]
    assert (cost["expected_gpu_hours"], cost["most_gpu_hours"]) == (1.0, 2.0)
    assert cost["stop"] == "ends it after 0.5 GPU-hours"


def test_used_up_budget_ends_with_its_own_exit_code_and_the_command_that_goes_on(
    elmanctl: CommandLine,
    quick: QuickCommandLine,
    corpus: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    runs = Runs(elmanctl.folder / "runs", corpus, tmp_path)
    run: Run = runs.new(name="short", budget={"evaluations": 5}, generations=2)
    monkeypatch.setattr(controller, "make_executor", lambda *_: ScriptedExecutor(run.world))
    monkeypatch.setattr(controller, "_LOCAL_TICK_S", 0.0)
    monkeypatch.setattr(controller, "_TICK_S", 0.0)
    monkeypatch.setattr(ScriptedExecutor, "name", "local")
    done = quick("resume", "short")
    assert done.returncode == 6, done.stderr
    assert "error: `budget.evaluations` is used up: 5 evaluations were trained" in done.stderr
    assert "`elmanctl resume short --set budget.evaluations=8` goes on" in done.stderr
    told = quick("status", "short").stderr.splitlines()
    assert told[0].startswith("short: paused, generation 2 of 2, 5 of 8 done")
    assert told[1].startswith("  reason  `budget.evaluations` is used up")
    assert told[2] == "  next    `elmanctl resume short --set budget.evaluations=8` goes on"
    done = quick("resume", "short", "--set", "budget.evaluations=8")
    assert done.returncode == 0, done.stderr
    assert "short finished: 8 completed" in done.stdout


@pytest.mark.parametrize(
    ("hours", "text"),
    [(0.0, "0"), (0.0123, "0.012"), (0.5, "0.5"), (1.0, "1"), (12.34, "12.3"), (1234.0, "1234")],
)
def test_hours_are_short(hours: float, text: str) -> None:
    assert format_hours(hours) == text
