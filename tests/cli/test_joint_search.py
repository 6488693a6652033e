"""One command that searches several models: one plan, runs of their own, equal progress."""

import json
import signal
import subprocess
from pathlib import Path
from typing import Any

import pytest

from elmanctl.cli import search as searching
from elmanctl.errors import EnvironmentNotReady
from elmanctl.ledger.records import RunStatus, State
from elmanctl.ledger.run_state import RunState
from elmanctl.run.paths import RunPaths
from elmanctl.search.plan import SearchPlan
from elmanctl.search.run_creation import create_run
from elmanctl.search.session import Session
from tests.cli.conftest import Snapshot
from tests.command_line import CommandLine, QuickCommandLine
from tests.integration.runs import load, trained_attempts, wait_for, with_standins
from tests.schedulers.slurm_tools import SlurmTools
from tests.search.scripted import Runs

MODELS = ("e88", "mingru", "gru")
TINY = ("--local", "--preset", "tiny", "--generations", "1", "--train-steps", "8", "--yes")
UNCONFIRMED = ("--set", "search.confirm_top=0")

REFUSED = {
    "no model": (("n_heads=2",), 2, "no model is named", "elmanctl models"),
    "one model twice": (("e88", "E88"), 2, "`e88` is named twice", "`--seed`"),
    "unknown model": (("e88", "mingur"), 3, "there is no model `mingur`", "mingru"),
    "field of some": (
        ("e88", "mingru", "gru", "n_state=8"),
        *(2, "`n_state` is no field of mingru, gru", "`e88.n_state=VALUE`"),
    ),
    "field of none": (("e88", "mingru", "heads=8"), 2, "mingru has no setting `heads`", None),
    "field of another model": (
        ("e88", "mingru", "gru.dim=8"),
        *(2, "`gru.dim=8` is of a model that is not searched", "e88, mingru"),
    ),
    "invalid field of one": (
        ("e88", "mingru", "mingru.use_conv=perhaps"),
        *(2, "`use_conv`", None),
    ),
    "space of some": (("e88", "mingru", "--space", "sweep"), 2, "sweep` for mingru", None),
    "corpus": (("e88", "mingru", "--data", "absent"), 3, "no such corpus file", "data pack"),
    "name": (("e88", "mingru", "--name", "a b"), 2, "cannot be named `a b-e88`", "letters"),
}


@pytest.mark.torch
@pytest.mark.parametrize("case", REFUSED)
def test_search_of_models_that_do_not_go_together_writes_nothing(
    case: str, quick: QuickCommandLine, corpus: Path, snapshot: Snapshot
) -> None:
    words, code, message, hint = REFUSED[case]
    data = () if "--data" in words else ("--data", str(corpus))
    done = quick("search", *words, *TINY, *data)
    assert (done.returncode, message in done.stderr) == (code, True), done.stderr
    assert done.stderr.count("error: ") == 1 and "Traceback" not in done.stderr
    assert hint is None or hint in done.stderr.partition("hint:")[2]
    assert snapshot() == {}


@pytest.mark.torch
def test_dry_run_shows_every_plan_and_the_cost_of_all(
    quick: QuickCommandLine, corpus: Path, snapshot: Snapshot
) -> None:
    words = ("search", *MODELS, "depth=2", "e88.n_state=8", *TINY, "--data", str(corpus))
    found = json.loads(quick(*words, "--dry-run", "--json", "--name", "fair").stdout)
    assert [plan["run"] for plan in found["searches"]] == ["fair-e88", "fair-mingru", "fair-gru"]
    assert (found["evaluations"], found["confirmations"]) == (12, 12)
    each = [plan["cost"]["most_gpu_hours"] for plan in found["searches"]]
    assert found["cost"]["most_gpu_hours"] == sum(each) > 0
    fixed = [plan["space"]["fixed"] for plan in found["searches"]]
    assert [(each["depth"], each.get("n_state")) for each in fixed] == [
        (2, 8),
        (2, None),
        (2, None),
    ]

    told = quick(*words, "--dry-run").stderr
    assert all(f"{model}-tiny: 1 generation" in told for model in MODELS)
    assert "in all: 3 searches, 12 evaluations and 12 confirmations; at most 24 job-hours" in told
    assert snapshot() == {}


def test_scripts_of_a_dry_run_differ_in_their_names_alone(
    quick: QuickCommandLine, corpus: Path
) -> None:
    words = ("search", "e88", "mingru", "--preset", "tiny", "--data", str(corpus), "--dry-run")
    found = json.loads(quick(*words, "--json").stdout)
    first, second = (plan["script"] for plan in found["searches"])
    assert first != second == first.replace("e88-tiny", "mingru-tiny")
    assert quick(*words).stdout.count("#!/bin/") == 2


@pytest.mark.torch
def test_nothing_is_left_of_a_search_that_cannot_be_made_whole(
    quick: QuickCommandLine, corpus: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    made: list[Path] = []

    def fill_the_disk(plan: SearchPlan) -> Path:
        if len(made) == 2:
            raise EnvironmentNotReady("the run's folder cannot be made: no space left")
        made.append(create_run(plan))
        return made[-1]

    monkeypatch.setattr(searching, "create_run", fill_the_disk)
    done = quick("search", *MODELS, *TINY, "--data", str(corpus))
    assert done.returncode == 4 and "no space left" in done.stderr
    assert [folder.name for folder in made] == ["e88-tiny", "mingru-tiny"]
    assert not list((quick.folder / "runs").iterdir())


def _state(elmanctl: CommandLine, run: str) -> RunState:
    return load(RunPaths(elmanctl.folder / "runs" / run).folder)


@pytest.mark.slow
@pytest.mark.torch
def test_models_are_searched_side_by_side(elmanctl: CommandLine, corpus: Path) -> None:
    once = ("--set", "search.confirm_top=1", "--set", "search.confirm_seeds=2")
    words = ("search", *MODELS, *TINY, *once, "--data", str(corpus), "--workers", "2", "--json")
    done = elmanctl(*words)
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout)
    assert [run["run"] for run in found["runs"]] == [f"{model}-tiny" for model in MODELS]
    assert {run["status"] for run in found["runs"]} == {"finished"}
    # One after the other, so that none is two evaluations ahead.
    begun = [line.split()[0] for line in done.stderr.splitlines() if " completed: loss " in line]
    assert len(begun) == 18
    for end in range(1, 19):
        counts = [begun[:end].count(f"{model}-tiny") for model in MODELS]
        assert max(counts) - min(counts) <= 2
    # It ends with the comparison of the confirmed winners.
    (group,) = found["comparison"]["groups"]
    winners = {f"{run['run']}/{run['best']['evaluation']}" for run in found["runs"]}
    assert {row["item"] for row in group["rows"]} == winners
    again = json.loads(elmanctl("compare", *(run["run"] for run in found["runs"]), "--json").stdout)
    assert again["groups"] == found["comparison"]["groups"]


@pytest.mark.slow
@pytest.mark.torch
def test_searches_are_interrupted_killed_and_continued(elmanctl: CommandLine, corpus: Path) -> None:
    runs = [f"many-{model}" for model in MODELS]
    many = ("search", *MODELS, *TINY, *UNCONFIRMED, "--data", str(corpus), "--name", "many")

    def completed() -> int:
        return sum(len(trained_attempts(elmanctl.folder / "runs" / run)) for run in runs)

    user = with_standins(elmanctl, 1.0)
    search = user.start(many)
    wait_for(lambda: completed() >= 2, "two results")
    search.send_signal(signal.SIGINT)
    told, _ = search.communicate()
    assert search.returncode == 130, told
    assert f"continue with `elmanctl resume {' '.join(runs)}`" in told
    assert {_state(elmanctl, run).status for run in runs} == {RunStatus.INTERRUPTED}

    before = completed()
    resumed = user.start(["resume", *runs])
    wait_for(lambda: completed() >= before + 3, "three more results")
    resumed.kill()
    resumed.communicate()

    # One of them alone, then all: the one that is finished ends at once.
    alone = user("resume", runs[1])
    assert alone.returncode == 0, alone.stderr
    last = user("resume", *runs)
    assert last.returncode == 0, last.stderr
    assert all(f"{run} finished: 4 completed" in last.stdout for run in runs)
    assert "\n\nITEM\t" in last.stdout
    for run in runs:
        state = _state(elmanctl, run)
        assert state.counts()[State.COMPLETED] == 4
        assert len(trained_attempts(elmanctl.folder / "runs" / run)) == 4


@pytest.mark.slow
@pytest.mark.torch
def test_runs_that_pause_are_told_apart(elmanctl: CommandLine, corpus: Path) -> None:
    words = ("search", "mingru", "gru", *TINY, "--data", str(corpus))
    done = with_standins(elmanctl, 0.0)(*words, "--set", "budget.evaluations=1", "--json")
    assert done.returncode == 6, done.stderr
    found = json.loads(done.stdout)
    assert [run["status"] for run in found["runs"]] == ["paused", "paused"]
    assert found["comparison"] is None
    error = next(line for line in done.stderr.splitlines() if line.startswith("error: "))
    assert "mingru-tiny: " in error and "gru-tiny: " in error


def test_runs_that_cannot_be_continued_together_are_refused(
    with_runs: CommandLine, quick_with_runs: QuickCommandLine, snapshot: Snapshot
) -> None:
    before = snapshot()
    twice: subprocess.CompletedProcess[str] = quick_with_runs("resume", "finished", "finished")
    assert twice.returncode == 2 and "`finished` is named twice" in twice.stderr
    more = quick_with_runs("resume", "interrupted-search", "finished", "--generations", "1")
    assert more.returncode == 2 and "generations long already" in more.stderr
    missing = quick_with_runs("resume", "finished", "finishing")
    assert missing.returncode == 3 and "no run named `finishing`" in missing.stderr
    after = snapshot()
    ledgers = [name for name in before if name.endswith("ledger.jsonl")]
    assert len(ledgers) == 2
    assert [after[name] for name in ledgers] == [before[name] for name in ledgers]


@pytest.mark.parametrize(
    ("other", "message", "hint"),
    [
        ({"slurm": {"partition": "gpu"}}, "one runs on Slurm and one on this machine", "its own"),
        ({}, "have different `local.gpus`, `local.workers` or `train.gpus`", "`--set`"),
    ],
)
def test_runs_in_different_places_share_no_slots(
    quick: QuickCommandLine,
    corpus: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    other: dict[str, Any],
    message: str,
    hint: str,
) -> None:
    # As on a login node, where Slurm answers.
    tools = SlurmTools(tmp_path / "tools", monkeypatch)
    for command in ("sbatch", "squeue", "sacct", "scancel", "scontrol"):
        tools.answer(command)
    runs = Runs(quick.folder / "runs", corpus, tmp_path / "templates")
    one, two = runs.new(name="one"), runs.new(name="two", **other)
    if not other:
        with Session.open(two.folder) as session:
            session.change_settings({"local.workers": 3})
    before = [run.paths.ledger.read_bytes() for run in (one, two)]
    done = quick("resume", "one", "two", PATH=tools.path)
    assert done.returncode == 2 and message in done.stderr and hint in done.stderr
    assert [run.paths.ledger.read_bytes() for run in (one, two)] == before
