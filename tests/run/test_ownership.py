"""Folders of other users: what would be run from them is refused, what is only read is not."""

import os
from pathlib import Path

import pytest

from elmanctl.errors import ConfigError, ForeignFolder
from elmanctl.run.ownership import (
    refuse_foreign_files,
    refuse_foreign_run,
    refuse_open_parents,
)
from elmanctl.run.paths import RunPaths
from tests.users import NOBODY, as_root, give_away, nobody

INSIDE = (
    *("ledger.jsonl", "optimizer", "optimizer/g000-00.pickle", "code", "code/elmanctl"),
    *("code/elmanctl/jobs.py", "submissions", "evaluations", "requests"),
)


@pytest.fixture
def run(tmp_path: Path) -> RunPaths:
    folder = tmp_path / "runs" / "run"
    for name in INSIDE:
        path = folder / name
        if "." in path.name:
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text("x", encoding="utf-8")
        else:
            path.mkdir(parents=True, exist_ok=True)
    return RunPaths(folder)


def test_run_of_ones_own_is_accepted(run: RunPaths) -> None:
    refuse_foreign_run(run)


def test_run_that_its_group_may_write_to_is_accepted(run: RunPaths) -> None:
    for path in (run.folder, *run.folder.rglob("*")):
        path.chmod(0o775)
    refuse_foreign_run(run)


@pytest.mark.parametrize("name", ["", *INSIDE])
def test_part_that_everybody_may_write_to_is_refused_with_the_way_out(
    run: RunPaths, name: str
) -> None:
    path = run.folder / name
    path.chmod(path.stat().st_mode | 0o002)
    with pytest.raises(ForeignFolder, match="written by everybody") as raised:
        refuse_foreign_run(run)
    assert str(path) in raised.value.message
    assert raised.value.hint is not None and f"chmod o-w {path}" in raised.value.hint
    path.chmod(path.stat().st_mode & ~0o002)
    refuse_foreign_run(run)


@as_root
@pytest.mark.parametrize("name", ["", *INSIDE])
def test_part_that_belongs_to_somebody_else_is_refused_even_to_root(
    run: RunPaths, name: str
) -> None:
    os.chown(run.folder / name, NOBODY, NOBODY)
    with pytest.raises(ForeignFolder, match="belongs to `nobody`"):
        refuse_foreign_run(run)


@as_root
def test_own_link_to_a_folder_of_somebody_else_is_refused(run: RunPaths, tmp_path: Path) -> None:
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir()
    run.evaluations.rmdir()
    run.evaluations.symlink_to(elsewhere)
    refuse_foreign_run(run)
    os.chown(elsewhere, NOBODY, NOBODY)
    with pytest.raises(ForeignFolder, match="evaluations belongs to `nobody`"):
        refuse_foreign_run(run)


@as_root
def test_link_of_somebody_else_is_refused_whatever_it_leads_to(tmp_path: Path) -> None:
    link = tmp_path / "link"
    link.symlink_to(tmp_path)
    os.chown(link, NOBODY, NOBODY, follow_symlinks=False)
    with pytest.raises(ForeignFolder):
        refuse_foreign_files([link], why="")


@as_root
def test_user_without_rights_works_in_own_folders_and_in_roots_and_in_no_others(
    run: RunPaths, tmp_path: Path
) -> None:
    for folder in (tmp_path, *tmp_path.parents[:3]):
        folder.chmod(0o755)
    with nobody():
        refuse_foreign_run(run)
    give_away(run.folder)
    with nobody():
        refuse_foreign_run(run)
    give_away(run.folder, NOBODY - 1)
    with nobody(), pytest.raises(ForeignFolder, match=f"belongs to user {NOBODY - 1}"):
        refuse_foreign_run(run)


def test_run_that_anybody_could_replace_is_refused(run: RunPaths) -> None:
    runs = run.folder.parent
    runs.chmod(0o777)
    with pytest.raises(ForeignFolder, match="everybody may replace"):
        refuse_foreign_run(run)
    with pytest.raises(ForeignFolder):
        refuse_open_parents(runs / "not" / "there")
    runs.chmod(0o1777)
    refuse_foreign_run(run)


def test_user_who_says_so_is_believed(run: RunPaths, monkeypatch: pytest.MonkeyPatch) -> None:
    run.folder.chmod(0o777)
    monkeypatch.setenv("ELMAN_TRUST_OWNER", "1")
    refuse_foreign_run(run)
    monkeypatch.setenv("ELMAN_TRUST_OWNER", "0")
    with pytest.raises(ForeignFolder):
        refuse_foreign_run(run)
    monkeypatch.setenv("ELMAN_TRUST_OWNER", "alice")
    with pytest.raises(ConfigError, match="ELMAN_TRUST_OWNER is 1 or not set"):
        refuse_foreign_run(run)


def test_folder_that_a_link_leads_to_must_not_be_replaceable_either(
    run: RunPaths, tmp_path: Path
) -> None:
    """By no link on the way: paths are used as they are written."""
    moved = tmp_path / "open" / "between" / "runs"
    moved.parent.mkdir(parents=True)
    run.folder.parent.rename(moved)
    (tmp_path / "hops").mkdir()
    (tmp_path / "hops" / "far").symlink_to(moved)
    run.folder.parent.symlink_to("hops/far")
    refuse_foreign_run(run)
    for folder in (tmp_path / "hops", tmp_path / "open", moved.parent):
        folder.chmod(0o777)
        with pytest.raises(ForeignFolder, match="everybody may replace") as raised:
            refuse_open_parents(run.folder)
        assert str(folder) in raised.value.message
        folder.chmod(0o755)
    refuse_open_parents(run.folder)


@as_root
def test_link_of_somebody_else_in_the_path_is_refused(run: RunPaths, tmp_path: Path) -> None:
    link = tmp_path / "link"
    link.symlink_to(run.folder.parent)
    refuse_open_parents(link / "run")
    os.lchown(link, NOBODY, NOBODY)
    with pytest.raises(ForeignFolder, match="is a link that belongs to"):
        refuse_open_parents(link / "run")


def test_link_that_leads_to_itself_is_refused(tmp_path: Path) -> None:
    (tmp_path / "a").symlink_to("b")
    (tmp_path / "b").symlink_to("a")
    with pytest.raises(ForeignFolder, match="leads to itself"):
        refuse_open_parents(tmp_path / "a" / "run")
