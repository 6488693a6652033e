"""Selection of runs and evaluations by name."""

import os
from pathlib import Path

import pytest

from elmanctl.errors import EnvironmentNotReady, NotFound, UsageError
from elmanctl.ledger.run_state import RunState
from elmanctl.search.requeue import select_requeueable
from elmanctl.search.selection import (
    find_evaluation,
    find_run,
    find_run_to_change,
    list_runs,
    list_single_evaluations,
    select_named,
)
from tests.search.scripted import Runs
from tests.users import as_root, nobody

pytestmark = pytest.mark.usefixtures("no_power_failures")


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Three runs, the last of which was written to most recently, and what is none."""
    for age, name in enumerate(["e88-480m-2", "other", "e88-480m"]):
        (tmp_path / name).mkdir()
        (tmp_path / name / "ledger.jsonl").touch()
        os.utime(tmp_path / name / "ledger.jsonl", (1e9 + age, 1e9 + age))
    (tmp_path / "eval-e88").mkdir()
    (tmp_path / "notes.txt").touch()
    return tmp_path


def test_runs_are_listed_in_order_of_their_last_event(folder: Path) -> None:
    assert [path.name for path in list_runs(folder)] == ["e88-480m-2", "other", "e88-480m"]
    assert list_runs(folder / "nowhere") == []


def test_run_is_found_by_its_name_by_its_beginning_or_as_the_newest(folder: Path) -> None:
    assert find_run(folder, None).name == "e88-480m"
    assert find_run(folder, "ot").name == "other"
    # A whole name is no beginning of another one.
    assert find_run(folder, "e88-480m").name == "e88-480m"


def test_beginning_of_several_runs_is_refused_with_their_names(folder: Path) -> None:
    with pytest.raises(UsageError, match="the beginning of 2 runs") as caught:
        find_run(folder, "e88")
    assert caught.value.hint == "name one: e88-480m-2, e88-480m"


def test_unknown_run_is_answered_with_the_nearest(folder: Path) -> None:
    with pytest.raises(NotFound, match="no run named `othre`") as caught:
        find_run(folder, "othre")
    assert caught.value.hint is not None and "did you mean `other`?" in caught.value.hint


def test_run_to_change_is_the_only_open_one_and_never_a_guess(runs: Runs, tmp_path: Path) -> None:
    with pytest.raises(NotFound, match="no runs"):
        find_run_to_change(tmp_path, None)
    runs.new(name="first").drive()
    assert find_run_to_change(tmp_path, None).name == "first"
    runs.new(name="second")
    assert find_run_to_change(tmp_path, None).name == "second"
    runs.new(name="third")
    with pytest.raises(UsageError, match="2 runs are not finished") as caught:
        find_run_to_change(tmp_path, None)
    assert caught.value.hint == "name one: third, second"
    # What cannot be read may be the one that is meant.
    (tmp_path / "third" / "ledger.jsonl").write_bytes(b"{}\n{}\n")
    with pytest.raises(UsageError, match="2 runs are not finished"):
        find_run_to_change(tmp_path, None)


def test_one_of_several_finished_runs_is_to_be_named(runs: Runs, tmp_path: Path) -> None:
    for name in ("one", "two"):
        runs.new(name=name, generations=1).drive()
    with pytest.raises(UsageError, match="2 runs are finished or cancelled"):
        find_run_to_change(tmp_path, None)
    assert find_run_to_change(tmp_path, "tw").name == "two"


def test_whole_name_is_asked_for_where_a_beginning_is_too_little(folder: Path) -> None:
    with pytest.raises(UsageError, match="only the beginning") as caught:
        find_run_to_change(folder, "oth", whole_name=True)
    assert caught.value.hint == "write the whole name: other"
    assert find_run_to_change(folder, "other", whole_name=True).name == "other"


def test_file_in_place_of_the_runs_is_said_to_be_one(folder: Path) -> None:
    with pytest.raises(NotFound, match="is no folder") as caught:
        list_runs(folder / "notes.txt")
    assert caught.value.hint == "change `paths.runs`"


def test_single_evaluations_are_found_among_the_runs(folder: Path) -> None:
    assert list_single_evaluations(folder) == []
    (folder / "eval-e88" / "spec.json").touch()
    assert [path.name for path in list_single_evaluations(folder)] == ["eval-e88"]


@as_root
def test_runs_that_cannot_be_looked_into_are_listed_and_a_closed_folder_is_an_error(
    folder: Path,
) -> None:
    for above in (folder, *folder.parents[:3]):
        above.chmod(0o755)
    (folder / "other").chmod(0o700)
    with nobody():
        assert {path.name for path in list_runs(folder)} == {"other", "e88-480m", "e88-480m-2"}
    folder.chmod(0o700)
    with nobody(), pytest.raises(EnvironmentNotReady, match="cannot read the runs"):
        list_runs(folder)


def test_folder_without_runs_names_the_first_thing_to_do(tmp_path: Path) -> None:
    with pytest.raises(NotFound, match="no runs") as caught:
        find_run(tmp_path, None)
    assert caught.value.hint is not None and "elmanctl search" in caught.value.hint


@pytest.fixture
def state(runs: Runs) -> RunState:
    run = runs.new(retry={"replacements": 0, "killed": 0})
    run.world.script = {"g000-e01": ["python_error"], "g001-e02": ["killed"]}
    return run.drive()


def test_evaluation_is_found_by_each_of_its_names(state: RunState) -> None:
    best = state.best()
    assert best is not None
    job_id = state.evaluations["g001-e03"].attempts[0].job_id
    assert job_id is not None
    names = ["g001-e03", "1.3", "001.03", job_id]
    assert {find_evaluation(state, name).id for name in names} == {"g001-e03"}
    assert find_evaluation(state, "best") is best


@pytest.mark.parametrize("name", ["g009-e00", "9.0", "1.x", "", "99999_0", "worst"])
def test_evaluation_that_is_not_there_is_not_found(state: RunState, name: str) -> None:
    with pytest.raises(NotFound, match="no evaluation"):
        find_evaluation(state, name)


def test_there_is_no_best_before_anything_completed(state: RunState) -> None:
    with pytest.raises(NotFound, match="no evaluation is completed yet"):
        find_evaluation(RunState(run=state.run), "best")


def test_evaluation_that_is_named_twice_is_selected_once(state: RunState) -> None:
    chosen = select_named(state, ["g001-e03", "0.1", "1.3"])
    assert [evaluation.id for evaluation in chosen] == ["g001-e03", "g000-e01"]


def test_failed_evaluations_are_selected_by_their_last_verdict(state: RunState) -> None:
    def selected(*kinds: str) -> list[str]:
        return [evaluation.id for evaluation in select_requeueable(state, kinds=kinds)]

    assert selected() == ["g000-e01", "g001-e02"]
    assert selected("killed") == ["g001-e02"]
    assert selected("killed", "python_error") == ["g000-e01", "g001-e02"]
    assert selected("oom") == []
    with pytest.raises(UsageError, match="no verdict named `kiled`") as caught:
        selected("kiled")
    assert caught.value.hint == "did you mean `killed`?"
