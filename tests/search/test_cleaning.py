"""Cleaning removes exactly its plan, and nothing outside the run."""

import itertools
import os
import threading
import time
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from elmanctl.ledger.disk import measure
from elmanctl.ledger.records import State
from elmanctl.search.cleaning import (
    plan_cleaning,
    remove_file,
    remove_planned,
)
from elmanctl.search.file_owners import (
    OwnedFile,
    attempt_sizes,
    scan,
)
from elmanctl.search.session import Session
from elmanctl.settings import DiskSettings
from tests.search.scripted import Run, Runs

pytestmark = pytest.mark.usefixtures("no_power_failures")

EVERYTHING = DiskSettings(keep_best=0, keep_last=0, keep_failed_logs=False)


def finished(runs: Runs, **changes: Any) -> Run:
    run = runs.new(**changes)
    run.world.script = {"g000-e01": ["node_failure"]}
    run.leave_files(run.drive())
    os.sync()
    return run


def names(run: Run, plan: list[OwnedFile]) -> set[str]:
    return {item.name for item in plan}


def test_policy_keeps_the_best_the_newest_and_the_logs_of_failures(runs: Runs) -> None:
    run = finished(runs, generations=4)
    with Session.open(run.folder) as session:
        state = session.state
        policy = DiskSettings(keep_best=2, keep_last=1, keep_failed_logs=True)
        plan = plan_cleaning(run.paths, state, policy)
        best = {e.id for e in state.ranked()[:2]}
        touched = {item.evaluation for item in plan if item.evaluation}
        newest = {e.id for e in state.evaluations.values() if e.generation == 3}
        assert touched and not touched & (best | newest)
        (failed,) = [a for a in state.evaluations["g000-e01"].attempts if a.state is State.FAILED]
        log = f"submissions/{failed.submission}/{failed.job_id}_0_log.out"
        assert log not in names(run, plan)
        assert log in names(run, plan_cleaning(run.paths, state, EVERYTHING))


def test_list_is_what_is_removed_and_the_bytes_are_those_of_the_disk(runs: Runs) -> None:
    run = finished(runs, generations=3)
    run.paths.optimizer.mkdir()
    (run.paths.optimizer / "g000-00-lease1.pickle").write_bytes(b"x" * 5_000)
    with Session.open(run.folder) as session:
        plan = plan_cleaning(run.paths, session.state, EVERYTHING)
        before, there = measure(run.paths.evaluations), files_below(run.folder)
        of_evaluations = [i for i in plan if i.name.startswith("evaluations/")]
        freed = remove_planned(session, plan)
        gone = there - files_below(run.folder)
        assert gone == {run.folder / item.name for item in plan}
        assert sum(freed) == sum(item.size_bytes for item in plan)
        shrunk = before - measure(run.paths.evaluations)
        # A folder may shrink with its entries.
        assert 0 <= shrunk - sum(i.size_bytes for i in of_evaluations) < 64_000
        assert session.state.freed_bytes[""] > 0, "optimizer states belong to no evaluation"
        assert plan_cleaning(run.paths, session.state, EVERYTHING) == []


def test_files_for_tensorboard_and_wandb_are_metrics(runs: Runs) -> None:
    run = finished(runs, generations=1)
    attempt = run.paths.attempt("g000-e00", 1)
    inner = attempt.wandb / "offline-run-1"
    inner.mkdir(parents=True)
    files = [attempt.folder / "events.out.tfevents.1.node.2", inner / "run-1.wandb"]
    for path in files:
        path.write_bytes(b"x" * 5000)
    latest = attempt.wandb / "latest-run"
    latest.symlink_to(inner)
    with Session.open(run.folder) as session:
        (evaluation,) = (e for e in session.state.evaluations.values() if e.id == "g000-e00")
        sizes = attempt_sizes(run.paths, "g000-e00", evaluation.attempts[0])
        assert sizes["metrics"] >= 10_000 + attempt.metrics.stat().st_size
        plan = plan_cleaning(run.paths, session.state, EVERYTHING, kinds=["metrics"])
        of_attempt = {run.folder / i.name for i in plan if i.evaluation == "g000-e00"}
        assert of_attempt == {*files, latest, attempt.metrics}
        remove_planned(session, plan)
    assert not any(path.exists() for path in (*files, attempt.metrics))


def test_optimizer_states_that_an_earlier_version_saved_may_go(runs: Runs) -> None:
    run = finished(runs, generations=1)
    saved = run.paths.optimizer / "g000-00-lease1.pickle"
    saved.parent.mkdir()
    saved.write_bytes(b"a state")
    with Session.open(run.folder) as session:
        remove_planned(session, plan_cleaning(run.paths, session.state, EVERYTHING))
    assert not saved.exists()
    assert run.drive(generations=2).generation == 1


def files_below(folder: Path) -> set[Path]:
    return {path for path in folder.rglob("*") if path.is_symlink() or not path.is_dir()}


# Files that another program may have put among those of an attempt.
FOLDERS = (
    *("evaluations/g000-e00/attempt-1", "evaluations/g000-e02", "evaluations/g999-e00/attempt-1"),
    *("evaluations/..x", "submissions/s0001", "optimizer", "."),
)
NAMES = (
    *("metrics-1.jsonl", "metrics-restart-1.jsonl", "100_0_0_log.out", "100_1_submitted.pkl"),
    *("task-0.pkl", "task-7.pkl", ".x.tmp", "checkpoint.pt", "g000-00-lease1.pickle", "...pkl"),
    *("result.jsonl", "spec.json.pkl", "-rf", "a\nb.pkl", "metrics\udcff.jsonl"),
)
THINGS = ("file", "link to file", "link to folder", "hard link", "fifo", "folder")
PIECES = st.lists(
    st.tuples(st.sampled_from(FOLDERS), st.sampled_from(NAMES), st.sampled_from(THINGS)),
    min_size=4,
    max_size=14,
)


def test_whatever_lies_in_a_run_nothing_outside_and_nothing_kept_is_removed(
    runs: Runs, tmp_path: Path
) -> None:
    template = finished(runs, generations=1)
    numbers = itertools.count()

    @given(pieces=PIECES)
    @settings(max_examples=20, deadline=None)
    def check(pieces: list[tuple[str, str, str]]) -> None:
        folder = tmp_path / f"example-{next(numbers)}"
        check_pieces(template.copy(folder / "run"), folder, pieces)

    check()


def check_pieces(run: Run, folder: Path, pieces: list[tuple[str, str, str]]) -> None:
    """Put pieces into a run, clean it of all it can be, and look at what is left."""
    outside = folder / "outside"
    outside.mkdir()
    precious = outside / "metrics.jsonl"
    precious.write_text("precious", encoding="utf-8")
    for where, name, what in pieces:
        path = run.folder / where / name
        path.parent.mkdir(parents=True, exist_ok=True)
        if not path.exists() and not path.is_symlink():
            make(path, what, precious)
    kept = {
        path: path.read_bytes()
        for path in (*run.folder.rglob("result.json"), *run.folder.rglob("spec.json"))
        if not path.is_symlink()
    }
    with Session.open(run.folder) as session:
        plan = plan_cleaning(run.paths, session.state, EVERYTHING)
        there = files_below(run.folder)
        remove_planned(session, plan)
        gone = there - files_below(run.folder)
    assert gone == {run.folder / item.name for item in plan}
    assert precious.read_text(encoding="utf-8") == "precious"
    assert list(outside.iterdir()) == [precious]
    assert all(path.read_bytes() == data for path, data in kept.items())
    assert run.paths.ledger.exists()
    assert not any("g999" in item.name for item in plan)


def make(path: Path, what: str, target: Path) -> None:
    if what == "file":
        path.write_bytes(b"x" * 5000)
    elif what == "link to file":
        path.symlink_to(target)
    elif what == "link to folder":
        path.symlink_to(target.parent)
    elif what == "hard link":
        path.hardlink_to(target)
    elif what == "fifo":
        os.mkfifo(path)
    else:
        path.mkdir()


def test_folder_swapped_for_a_link_while_cleaning_is_never_followed(
    runs: Runs, tmp_path: Path
) -> None:
    run = finished(runs, generations=1)
    attempt = run.paths.attempt("g000-e00", 1)
    outside, aside = tmp_path / "outside", tmp_path / "aside"
    outside.mkdir()
    stop = threading.Event()

    def swap() -> None:
        while not stop.is_set():
            attempt.folder.rename(aside)
            attempt.folder.symlink_to(outside)
            attempt.folder.unlink()
            aside.rename(attempt.folder)

    with Session.open(run.folder) as session:
        plan = [
            item
            for item in plan_cleaning(run.paths, session.state, EVERYTHING)
            if run.folder / item.name == attempt.metrics
        ]
    (item,) = plan
    # The very inode, so that only the way to it can be what protects it.
    (outside / "metrics.jsonl").hardlink_to(attempt.metrics)
    swapper = threading.Thread(target=swap)
    swapper.start()
    try:
        end = time.monotonic() + 1.0
        while time.monotonic() < end:
            remove_file(run.folder, item)
    finally:
        stop.set()
        swapper.join()
    assert (outside / "metrics.jsonl").exists()


def test_file_swapped_since_the_plan_is_left(runs: Runs) -> None:
    run = finished(runs, generations=1)
    metrics = run.paths.attempt("g000-e00", 1).metrics
    with Session.open(run.folder) as session:
        plan = plan_cleaning(run.paths, session.state, EVERYTHING, kinds=["metrics"])
        metrics.rename(metrics.with_name("kept"))
        metrics.write_text("another file", encoding="utf-8")
        freed = remove_planned(session, plan)
    assert len(freed) == len(plan) - 1
    assert metrics.read_text(encoding="utf-8") == "another file"


def test_what_belongs_to_nobody_is_named_and_never_planned(runs: Runs) -> None:
    run = finished(runs, generations=1)
    run.drive()
    for name in (".lease.json.0a.tmp", "ledger.torn-20260501T000000Z-0a0b", "optimizer/.x.tmp"):
        path = run.folder / name
        path.parent.mkdir(exist_ok=True)
        path.write_text("x", encoding="utf-8")
    for folder in ("evaluations/g777-e00/attempt-1", "submissions/s0999"):
        (run.folder / folder).mkdir(parents=True)
        (run.folder / folder / "task-0.pkl").write_text("x", encoding="utf-8")
    with Session.open(run.folder) as session:
        state = session.state
    orphans = {item.name for item in scan(run.paths, state) if item.orphan}
    assert orphans == {
        ".lease.json.0a.tmp",
        "ledger.torn-20260501T000000Z-0a0b",
        "optimizer/.x.tmp",
        "evaluations/g777-e00",
        "evaluations/g777-e00/attempt-1",
        "evaluations/g777-e00/attempt-1/task-0.pkl",
        "submissions/s0999",
        "submissions/s0999/task-0.pkl",
    }
    assert not orphans & names(run, plan_cleaning(run.paths, state, EVERYTHING))


def test_plan_looks_at_ten_thousand_files_once(runs: Runs) -> None:
    run = finished(runs, generations=1)
    folder = run.paths.attempt("g000-e00", 1).folder
    for index in range(100):
        (folder / f"checkpoint-{index}").mkdir()
        for number in range(100):
            (folder / f"checkpoint-{index}" / f"part-{number}").touch()
    with Session.open(run.folder) as session:
        begin = time.process_time()
        plan = plan_cleaning(run.paths, session.state, EVERYTHING)
        elapsed_s = time.process_time() - begin
    assert len(plan) > 10_000
    # About 0.2 s; what looked at each for each other would take minutes.
    assert elapsed_s < 20
