"""A search that is killed or stopped at any instant goes on as if nothing had happened."""

import random
import shutil
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest

from elmanctl.errors import ConfigError, LeaseLost, UsageError
from elmanctl.ledger.payloads import ControllerStarted, Payload, PointsAsked
from elmanctl.ledger.records import RunStatus
from elmanctl.ledger.run_state import RunState
from elmanctl.ledger.state import load_run
from elmanctl.run.spec import AttemptSpec
from elmanctl.search.session import Session
from tests.integration.runs import losses, points
from tests.search.scripted import Run, Runs, World, verdicts

pytestmark = pytest.mark.usefixtures("no_power_failures")

# What happens to the search of the crash tests: an attempt that is tried again, one whose
# evaluation is replaced, and one that diverges.
SCRIPT = {
    "g000-e01": ["node_failure"],
    "g000-e02": ["python_error"],
    "g001-e00": ["diverged"],
}


def assert_same_search(state: RunState, undisturbed: RunState, world: World, where: str) -> None:
    """Assert that nothing was lost, repeated or asked otherwise."""
    assert state.status is RunStatus.FINISHED, where
    assert points(state) == points(undisturbed), where
    assert losses(state) == losses(undisturbed), where
    assert state.told == undisturbed.told, where
    for name, evaluation in undisturbed.evaluations.items():
        assert verdicts(state, name) == verdicts(undisturbed, name), where
        assert state.evaluations[name].state is evaluation.state, where
    assert set(world.trained.values()) == {1}, where
    # The ledger knows of every job that was ever submitted.
    known = {s.job_id for s in state.submissions.values() if s.job_id is not None}
    assert set(world.jobs.values()) == known, where


def test_kill_around_any_event_loses_and_repeats_nothing(
    runs: Runs, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What a kill just before and just after every single event would leave is resumed."""
    run = runs.new()
    run.world.script = dict(SCRIPT)
    left: dict[str, Run] = {}
    record = Session.record

    def leave(moment: str, session: Session, kind: str) -> None:
        where = f"{moment} event {session.state.seq + (moment == 'before')}, {kind}"
        left[where] = run.copy(tmp_path / f"kill-{len(left)}")

    def recorded(self: Session, event: Payload) -> None:
        leave("before", self, event.event_kind())
        record(self, event)
        leave("after", self, event.event_kind())

    monkeypatch.setattr(Session, "record", recorded)
    undisturbed = run.drive()
    monkeypatch.setattr(Session, "record", record)
    assert_same_search(undisturbed, undisturbed, run.world, "undisturbed")
    kinds = {where.rpartition(" ")[2] for where in left}
    assert kinds == {
        *("controller_started", "points_asked", "submission_intended", "submission_accepted"),
        *("attempt_started", "attempt_finished", "evaluation_closed", "generation_told"),
        *("cleaned", "run_finished"),
    }
    assert len(left) > 80
    for where, killed in left.items():
        assert_same_search(killed.drive(), undisturbed, killed.world, where)


@pytest.mark.parametrize("seed", [1, 2, 3])
def test_controller_killed_again_and_again_still_comes_to_the_same_end(
    runs: Runs, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, seed: int
) -> None:
    """Around every third event, by chance, the controller dies."""
    run = runs.new()
    run.world.script = dict(SCRIPT)
    undisturbed = run.copy(tmp_path / "undisturbed").drive()
    record = Session.record
    chance = random.Random(seed)

    class Killed(BaseException):
        pass

    def recorded(self: Session, event: Payload) -> None:
        if not isinstance(event, ControllerStarted) and chance.random() < 1 / 6:
            raise Killed
        record(self, event)
        if not isinstance(event, ControllerStarted) and chance.random() < 1 / 6:
            raise Killed

    monkeypatch.setattr(Session, "record", recorded)
    lives = 0
    while load_run(run.folder).state.status is not RunStatus.FINISHED:
        lives += 1
        with suppress(Killed):
            run.drive()
    assert lives > 8
    assert_same_search(load_run(run.folder).state, undisturbed, run.world, f"{lives} lives")


def test_stopped_search_goes_on_where_it_was(runs: Runs, tmp_path: Path) -> None:
    run = runs.new()
    undisturbed = run.copy(tmp_path / "undisturbed").drive()
    run.view.every_turn = lambda session: run.stop.set()
    stops = 0
    while (state := run.drive()).status is RunStatus.INTERRUPTED:
        stops += 1
        run.stop.clear()
        assert stops < 50
    assert stops > 1
    assert_same_search(state, undisturbed, run.world, "stopped")


def test_paused_controller_that_wakes_leaves_its_successors_events_alone(
    runs: Runs, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It sleeps between asking the second generation and recording its points."""
    run = runs.new()
    undisturbed = run.copy(tmp_path / "undisturbed").drive(generations=3)
    record = Session.record
    asked = 0

    def recorded(session: Session, event: Payload) -> None:
        nonlocal asked
        asked += isinstance(event, PointsAsked)
        if asked == 2 and isinstance(event, PointsAsked):
            (run.folder / "lease.json").unlink()
            run.drive()
        record(session, event)

    monkeypatch.setattr(Session, "record", recorded)
    with pytest.raises(LeaseLost):
        run.drive()
    assert_same_search(run.drive(generations=3), undisturbed, run.world, "woken")


def test_search_whose_ledger_was_cut_takes_no_submission_for_an_earlier_one(
    runs: Runs, tmp_path: Path
) -> None:
    run = runs.new()
    undisturbed = run.copy(tmp_path / "undisturbed").drive()
    run.drive()
    ledger = run.paths.ledger.read_bytes()
    intended = ledger.rindex(b"\n", 0, ledger.rindex(b"submission_intended")) + 1
    run.paths.ledger.write_bytes(ledger[:intended])
    state = run.drive()
    assert list(state.submissions) == ["s0001", "s0003"]
    assert (points(state), losses(state)) == (points(undisturbed), losses(undisturbed))
    assert set(run.world.trained.values()) == {1}


def test_extended_search_asks_what_a_longer_one_would_have_asked(runs: Runs) -> None:
    longer = runs.new(generations=4).drive()
    run = runs.new(generations=2)
    run.drive()
    state = run.drive(generations=4)
    assert state.generations == 4
    assert_same_search(state, longer, run.world, "extended")


def test_search_cannot_be_extended_to_fewer_generations(runs: Runs) -> None:
    run = runs.new()
    with pytest.raises(UsageError, match="2 generations"):
        run.drive(generations=2)


def test_finished_search_that_is_resumed_asks_nothing_more(runs: Runs) -> None:
    run = runs.new()
    before = run.drive()
    again = run.drive()
    assert points(again) == points(before)
    assert again.status is RunStatus.FINISHED


def test_changed_settings_hold_for_every_later_controller(runs: Runs) -> None:
    run = runs.new(retry={"replacements": 0})
    run.view.every_turn = lambda session: run.stop.set()
    run.drive()
    run.view.every_turn = lambda session: None
    run.stop.clear()
    with Session.open(run.folder) as session:
        session.change_settings({"local.timeout_min": 33, "retry.python_error": 1})
        assert session.settings.local.timeout_min == 33
    run.world.script = {"g001-e01": ["python_error"]}
    state = run.drive()
    asked = [s.resources.timeout_min for s in state.submissions.values()]
    assert asked == [60, 33, 33]
    assert verdicts(state, "g001-e01") == ["python_error", "completed"]


def test_change_of_metrics_is_in_the_specs_from_then_on(runs: Runs) -> None:
    run = runs.new(generations=1)
    run.drive()
    with Session.open(run.folder) as session:
        session.change_settings({"metrics.wandb": "curves"})
        session.extend(2)
    run.drive()
    specs = {path.parts[-3]: AttemptSpec.read(path) for path in run.folder.rglob("spec.json")}
    asked = {name: spec.metrics.asked for name, spec in specs.items()}
    assert asked == {name: () if name.startswith("g000") else ("wandb",) for name in specs}


def test_metrics_of_a_run_whose_code_is_older_stay_as_they_are(runs: Runs) -> None:
    run = runs.new()
    frozen = run.paths.code.resolve()
    run.paths.code.unlink()
    shutil.copytree(frozen, run.paths.code)
    spec = run.paths.code / "elmanctl" / "run" / "spec.py"
    text = spec.read_text(encoding="utf-8")
    spec.write_text(text.replace("\n    metrics: ", "\n    numbers: "), encoding="utf-8")
    with (
        Session.open(run.folder) as session,
        pytest.raises(UsageError, match="code of its workers is older"),
    ):
        session.change_settings({"metrics.wandb": "curves"})


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"train.lr": 1.0}, "stays as it is"),
        ({"search.seed": 1}, "stays as it is"),
        ({"local.workers": 0}, "at least 1"),
        ({"local.workers": "two"}, "whole number"),
        ({"local.timeout_min": 1, "train.minutes": 5.0}, "stays as it is"),
        ({"local.workres": 2}, "unknown key"),
    ],
)
def test_change_that_cannot_be_made_leaves_the_run_as_it_was(
    runs: Runs, changes: dict[str, Any], message: str
) -> None:
    run = runs.new()
    with Session.open(run.folder) as session:
        before = session.settings
        with pytest.raises((UsageError, ConfigError), match=message):
            session.change_settings(changes)
        assert session.settings == before
        assert session.state.changes == {}
