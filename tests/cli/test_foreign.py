"""Folders, names and files that are not what a command needs: one plain line, and nothing done."""

import json
import os
import shutil
from pathlib import Path
from typing import Any

import pytest

from elmanctl.search.plan import SearchPlan, plan_search
from elmanctl.search.selection import find_run
from tests.cli.conftest import Snapshot
from tests.cli.test_bad_input import assert_refused
from tests.command_line import CommandLine, QuickCommandLine
from tests.users import NOBODY, as_root, nobody

SEARCH = ("search", "e88", "--local", "--preset", "tiny", "--yes")


@pytest.fixture
def tiny(corpus: Path) -> tuple[str, ...]:
    """A search that is refused, or started, within a moment."""
    return (*SEARCH, "--data", str(corpus), "--generations", "1")


@pytest.fixture
def started(monkeypatch: pytest.MonkeyPatch) -> list[Path]:
    """Takes down which runs would be driven, in place of driving them."""
    folders: list[Path] = []

    def drive(paths: Any, **options: Any) -> None:
        folders.append(paths.folder)

    monkeypatch.setattr("elmanctl.cli.search.drive", drive)
    monkeypatch.setattr("elmanctl.cli.resume.drive", drive)
    return folders


@pytest.mark.torch
@as_root
def test_search_with_settings_that_somebody_else_wrote_needs_them_named(
    quick: QuickCommandLine, tiny: tuple[str, ...], started: list[Path]
) -> None:
    settings = quick.folder / "elman.toml"
    settings.write_text("[slurm]\nsetup = ['touch canary']\n", encoding="utf-8")
    os.chown(settings, NOBODY, NOBODY)
    done = quick(*tiny)
    assert_refused(done, 4, "elman.toml belongs to `nobody`", "ELMAN_TRUST_OWNER=1")
    assert "`--config`" in done.stderr
    assert quick("status").returncode == 0
    assert quick("--config", "elman.toml", *tiny).returncode == 0
    assert [folder.name for folder in started] == ["e88-tiny"]


@as_root
def test_run_of_somebody_else_is_shown_and_not_changed(
    quick_with_runs: QuickCommandLine, snapshot: Snapshot
) -> None:
    run = quick_with_runs.folder / "runs" / "interrupted-search"
    os.chown(run / "ledger.jsonl", NOBODY, NOBODY)
    before = snapshot()
    for look in (("status", run.name), ("show", run.name, "best"), ("status", "--json")):
        assert quick_with_runs(*look).returncode == 0
    for words in (
        ("resume", run.name),
        ("requeue", "--failed", "--run", run.name, "--yes"),
        ("cancel", "g001-e00", "--run", run.name),
        ("clean", run.name, "--yes"),
    ):
        done = quick_with_runs(*words)
        assert_refused(done, 4, "ledger.jsonl belongs to `nobody`", "ELMAN_TRUST_OWNER=1")
    assert snapshot() == before


def test_copied_run_is_not_resumed(quick_with_runs: QuickCommandLine, snapshot: Snapshot) -> None:
    runs = quick_with_runs.folder / "runs"
    first = quick_with_runs("resume", "finished")
    assert first.returncode == 0, first.stderr
    shutil.copytree(runs / "finished", runs / "twin", symlinks=True)
    before = snapshot()
    assert_refused(quick_with_runs("resume", "twin"), 2, "twin is a copy of the run in", "remove")
    assert_refused(quick_with_runs("clean", "twin", "--yes"), 2, "is a copy of the run in", None)
    after = {k: v for k, v in snapshot().items() if not k.endswith("lease.json")}
    assert after == before
    assert quick_with_runs("resume", "finished").returncode == 0


@pytest.mark.torch
def test_name_that_another_search_takes_meanwhile_gives_way_to_the_next(
    quick: QuickCommandLine,
    tiny: tuple[str, ...],
    started: list[Path],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def outrun(*words: Any, **options: Any) -> SearchPlan:
        plan = plan_search(*words, **options)
        plan.folder.mkdir(parents=True)
        return plan

    monkeypatch.setattr("elmanctl.cli.search.plan_search", outrun)
    done = quick(*tiny)
    assert done.returncode == 0, done.stderr
    assert "`e88-tiny` was just taken; this run is named `e88-tiny-2`" in done.stderr
    assert [folder.name for folder in started] == ["e88-tiny-2"]
    assert (quick.folder / "runs" / "e88-tiny-2" / "ledger.jsonl").is_file()
    named = quick(*tiny, "--name", "mine")
    assert named.returncode == 2 and "another command has just created it" in named.stderr


def test_variable_that_means_nothing_is_told_with_the_nearest(
    quick: QuickCommandLine, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("ELMAN_SERACH_SEED", "3")
    monkeypatch.setenv("ELMAN_TRUST_OWNER", "1")
    done = quick("status")
    assert done.returncode == 0
    assert done.stderr.count("ELMAN_SERACH_SEED means nothing here") == 1
    assert "did you mean `ELMAN_SEARCH_SEED`?" in done.stderr
    assert "ELMAN_TRUST_OWNER" not in done.stderr


@pytest.mark.parametrize(
    ("runs", "code", "message"),
    [
        ("file", 4, "is a file"),
        ("file/below", 4, "is a file"),
        ("100%", 2, "holds `%`"),
        ("a:b", 2, "holds `:`"),
    ],
)
def test_place_where_no_run_can_be_kept_is_found_first(
    quick: QuickCommandLine, tiny: tuple[str, ...], runs: str, code: int, message: str
) -> None:
    (quick.folder / "file").touch()
    (quick.folder / "elman.toml").write_text(f'[paths]\nruns = "{runs}"\n', encoding="utf-8")
    assert_refused(quick(*tiny), code, message)


@pytest.mark.torch
@as_root
def test_folder_that_cannot_be_written_is_found_first(
    quick: QuickCommandLine, tiny: tuple[str, ...], monkeypatch: pytest.MonkeyPatch
) -> None:
    for folder in (quick.folder, *quick.folder.parents[:3], Path(tiny[7]).parent):
        folder.chmod(0o755)
    for name in ("XDG_CACHE_HOME", "XDG_CONFIG_HOME"):
        monkeypatch.setenv(name, "/nowhere")
    # What is imported late must be there: nobody may not read where Python lies.
    assert quick(*tiny, "--dry-run").returncode == 0
    with nobody():
        done = quick(*tiny)
    assert done.returncode == 4, done.stderr
    assert "cannot be written by you" in done.stderr


def test_name_that_is_too_long_is_refused(quick: QuickCommandLine, tiny: tuple[str, ...]) -> None:
    assert_refused(
        quick(*tiny, "--name", "x" * 101), 2, "101 characters is too long", "at most 100"
    )


def test_file_in_the_way_is_named_and_is_no_internal_error(quick: QuickCommandLine) -> None:
    (quick.folder / "file").touch()
    assert_refused(quick("init", "file"), 4, "file: File exists")
    assert_refused(quick("init", "file/below"), 4, "file/below: Not a directory")


def test_text_that_lies_in_two_folders_is_packed_once(quick: QuickCommandLine) -> None:
    (quick.folder / "texts" / "deep").mkdir(parents=True)
    for name in ("a.txt", "deep/b.txt"):
        (quick.folder / "texts" / name).write_text(name, encoding="utf-8")
    once = quick("data", "pack", "texts", "-o", "once")
    assert "two of the folders" not in once.stderr
    done = quick("data", "pack", "texts", "texts/deep", "texts", "-o", "twice")
    assert "3 files are in two of the folders, and once in the corpus" in done.stderr
    assert (quick.folder / "twice").read_bytes() == (quick.folder / "once").read_bytes()


def test_list_of_runs_says_where_single_evaluations_are(
    quick_with_runs: QuickCommandLine,
) -> None:
    assert "`elmanctl eval`" not in quick_with_runs("status").stderr
    folder = quick_with_runs.folder / "runs" / "eval-e88-20260101-000000"
    folder.mkdir()
    (folder / "spec.json").touch()
    assert f"see result.json in {folder.name}, the newest" in quick_with_runs("status").stderr


def test_axis_of_a_billion_values_takes_no_memory(
    quick: QuickCommandLine, tiny: tuple[str, ...]
) -> None:
    path = quick.folder / "elman.toml"
    table = '[search.axes]\nn_heads = {{ kind = "int", low = 1, high = {} }}\n'
    path.write_text(table.format(10**9), encoding="utf-8")
    done = quick(*tiny)
    assert done.returncode == 2 and "n_heads" in done.stderr
    path.write_text(table.format(10**18), encoding="utf-8")
    assert_refused(quick(*tiny), 2, "axis `n_heads` has more than 1,000,000,000 values")


def test_run_is_listed_by_the_name_that_finds_it_even_where_that_is_no_text(
    with_runs: CommandLine,
) -> None:
    runs = with_runs.folder / "runs"
    (runs / "finished").rename(runs / "renamed")
    (runs / "interrupted-search").rename(runs / os.fsdecode(b"\xff"))
    user = CommandLine(with_runs.folder, {**with_runs.environment, "PYTHONIOENCODING": "utf-8"})
    names = {row["run"] for row in json.loads(user("status", "--json").stdout)["runs"]}
    assert names == {"renamed", "\udcff"}
    assert all(find_run(runs, name).name == name for name in names)
    assert "\\udcff\t" in user("status").stdout
