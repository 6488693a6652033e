"""`elmanctl replay` on a run and on a file, from the ledger to the table."""

import json
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest

from elmanctl.errors import UsageError
from elmanctl.ledger.run_state import RunState
from elmanctl.replay.recorded_objective import fit_objective
from elmanctl.replay.recording import Recorded, Recording, recording_of
from elmanctl.space.axis import Axis
from tests.command_line import QuickCommandLine
from tests.search.scripted import Runs

SMALL = ("--optimizer", "cma", "--budget", "8,16", "--seeds", "2", "--processes", "1", "--json")


@pytest.fixture
def state(runs: Runs) -> RunState:
    """A run of a few generations, with confirmations."""
    run = runs.new(
        # Points around the middle, near enough to each other for a surrogate of sixteen losses.
        name="earlier-search",
        optimizer="cma",
        generations=4,
        confirm_top=2,
        confirm_seeds=2,
    )
    return run.drive()


def test_objective_of_a_run_is_what_its_search_saw(state: RunState) -> None:
    recording = recording_of(state)
    objective, fit = fit_objective(
        recording, surrogate="gp", noise=None, failure_share=None, run=state
    )
    assert fit.losses == len(recording.losses) and fit.explained > 0.5 and fit.degrees >= 4
    assert objective.best < objective.typical
    # 16 heads of 8 rows each are what the search takes; a point outside is none of it.
    assert objective.surface.is_valid(recording.losses[0][0])
    best = min(recording.losses, key=lambda pair: pair[1])
    value = float(objective.surface.values(np.array([best[0]]))[0])
    assert value == pytest.approx(best[1], abs=0.1)


def test_refused_configurations_on_record_are_refused_again() -> None:
    axis = Axis(name="depth", kind="int", low=0, high=39)
    evaluations = [
        Recorded(point=(float(x),), loss=None, is_invalid=True)
        if x >= 30
        else Recorded(point=(float(x),), loss=abs(x - 20) / 10)
        for x in range(40)
    ]
    recording = Recording(name="made up", axes=(axis,), evaluations=tuple(evaluations))
    objective, _ = fit_objective(recording, surrogate="trees", noise=0.1, failure_share=0.0)
    valid = [objective.surface.is_valid((float(x),)) for x in range(40)]
    assert valid[:28] == [True] * 28 and valid[32:] == [False] * 8
    with pytest.raises(UsageError, match="no configuration of `made up` was trained twice"):
        fit_objective(recording, surrogate="trees", noise=None, failure_share=0.0)


def replayed(
    quick: QuickCommandLine, *arguments: str, **variables: str
) -> tuple[Sequence[str], str]:
    """Return the objectives of the rows of a replay, and what it said."""
    done = quick("replay", *arguments, *SMALL, **variables)
    assert done.returncode == 0, done.stderr
    return [row["source"] for row in json.loads(done.stdout)["rows"]], done.stderr


def test_run_is_replayed(quick: QuickCommandLine, state: RunState, tmp_path: Path) -> None:
    assert state.run["name"] == "earlier-search"
    objectives, said = replayed(quick, "earlier", ELMAN_PATHS_RUNS=str(tmp_path / "runs"))
    assert objectives == ["earlier-search"] * 2
    assert "in five folds; noise sd" in said


def test_file_is_replayed(quick: QuickCommandLine) -> None:
    lines: list[dict[str, object]] = [{"axes": {"depth": {"kind": "int", "low": 1, "high": 30}}}]
    lines += [{"values": {"depth": d}, "loss": 1 + (d - 9) ** 2 / 100} for d in range(1, 31)]
    path = Path(quick.folder) / "earlier.jsonl"
    path.write_text("".join(f"{json.dumps(line)}\n" for line in lines), encoding="utf-8")
    objectives, said = replayed(quick, "--file", "earlier.jsonl", "--noise", "0.01")
    assert objectives == ["earlier", "earlier"]
    assert said.startswith("earlier: 30 losses, of whose variance extra trees predict")
    assert "noise sd 0.01 as given, failures 0.0%" in said
