"""Identity of a run: copies and changed code are refused."""

import shutil
from pathlib import Path

import pytest

from elmanctl.errors import LedgerCorrupt, UsageError
from elmanctl.ledger.state import load_run
from elmanctl.run.paths import RunPaths
from elmanctl.search.run_identity import refuse_changed_code, refuse_copy, refuse_other_clusters
from tests.search.scripted import Run, Runs

pytestmark = pytest.mark.usefixtures("no_power_failures")


@pytest.fixture
def run(runs: Runs) -> Run:
    run = runs.new(name="e88", generations=1)
    run.drive()
    return run


def check(folder: Path) -> None:
    refuse_copy(RunPaths(folder), load_run(folder).state)


def test_copy_is_refused_beside_the_run_and_elsewhere_and_the_run_itself_is_not(
    run: Run, tmp_path: Path
) -> None:
    (tmp_path / "other").mkdir()
    for copy in (tmp_path / "e88-copy", tmp_path / "other" / "e88"):
        shutil.copytree(run.folder, copy, symlinks=True)
        with pytest.raises(UsageError, match="is a copy of the run in") as caught:
            check(copy)
        assert caught.value.hint is not None and str(run.folder) in caught.value.hint
    check(run.folder)


def test_moved_run_goes_on_and_so_does_a_copy_whose_original_is_gone(
    run: Run, tmp_path: Path
) -> None:
    moved = run.folder.rename(tmp_path / "renamed")
    check(moved)
    with_link = tmp_path / "link"
    with_link.symlink_to(moved)
    check(with_link)


def test_other_run_in_the_old_place_makes_no_copy(run: Run, runs: Runs, tmp_path: Path) -> None:
    moved = run.folder.rename(tmp_path / "renamed")
    other = runs.new(generations=3).folder
    other.rename(run.folder)
    check(moved)
    RunPaths(run.folder).ledger.write_bytes(b"\xff\x00 no ledger\n")
    check(moved)


def test_run_of_which_no_controller_told_its_place_is_accepted(runs: Runs, tmp_path: Path) -> None:
    run = runs.new()
    shutil.copytree(run.folder, tmp_path / "copy", symlinks=True)
    check(tmp_path / "copy")


@pytest.mark.parametrize(
    ("began", "way_out"),
    [
        ({"SLURM_CLUSTERS": "north"}, "`export SLURM_CLUSTERS=north`"),
        ({}, "`unset SLURM_CLUSTERS`"),
    ],
)
def test_run_with_jobs_goes_on_with_the_clusters_it_has_them_on(
    runs: Runs, monkeypatch: pytest.MonkeyPatch, began: dict[str, str], way_out: str
) -> None:
    """Of another cluster one would hear that the jobs are gone."""
    run = runs.new(slurm={})
    monkeypatch.delenv("SLURM_CLUSTERS", raising=False)
    for name, value in began.items():
        monkeypatch.setenv(name, value)
    run.view.every_turn = lambda session: run.stop.set()
    run.drive()
    state = load_run(run.folder).state
    assert state.live_attempts()
    refuse_other_clusters(state, began)
    south = {"SLURM_CLUSTERS": "south"}
    with pytest.raises(UsageError, match="be asked about the cluster `south`") as caught:
        refuse_other_clusters(state, south)
    assert caught.value.hint == way_out
    monkeypatch.setenv("SLURM_CLUSTERS", "south")
    run.view.every_turn = lambda session: None
    run.stop.clear()
    run.drive()
    refuse_other_clusters(load_run(run.folder).state, {})


def test_frozen_code_is_compared_with_what_the_run_began_with(run: Run, tmp_path: Path) -> None:
    paths, record = RunPaths(run.folder), load_run(run.folder).state.run
    refuse_changed_code(paths, record)
    own = tmp_path / "code"
    shutil.copytree(paths.code, own)
    paths.code.unlink()
    with pytest.raises(LedgerCorrupt, match="frozen code is missing"):
        refuse_changed_code(paths, record)
    own.rename(paths.code)
    (paths.code / "elmanctl" / "__pycache__").mkdir(exist_ok=True)
    (paths.code / "elmanctl" / "__pycache__" / "x.pyc").touch()
    refuse_changed_code(paths, record)
    with (paths.code / "elmanctl" / "clock.py").open("a", encoding="utf-8") as file:
        file.write("# changed\n")
    with pytest.raises(LedgerCorrupt, match="not what it was"):
        refuse_changed_code(paths, record)
