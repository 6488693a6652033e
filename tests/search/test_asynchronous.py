"""The asynchronous search, with workers that end in any order."""

import random
from pathlib import Path
from typing import Any

import pytest

from elmanctl.constants import ASYNCHRONOUS, CMA_GP, LHS_CMA, OPTIMIZERS, STUDY
from elmanctl.errors import ConfigError, SearchPaused
from elmanctl.ledger.payloads import EvaluationReopened, Payload
from elmanctl.ledger.records import RunStatus, State, VerdictKind
from elmanctl.ledger.run_state import RunState
from elmanctl.ledger.state import load_run
from elmanctl.search.session import Session
from tests.integration.runs import losses, points
from tests.search.one_by_one import OneByOne, OrderedWorld
from tests.search.optimizers.packages import need_packages_of
from tests.search.scripted import Run, Runs, verdicts

pytestmark = pytest.mark.usefixtures("no_power_failures")

SLOTS = 4

# A point that is asked again, one that is tried again, and one that is ranked last.
TROUBLES = {
    "g000-e01": ["python_error"],
    "g001-e00": ["node_failure"],
    "g002-e02": ["diverged"],
}


def new_run(runs: Runs, **changes: Any) -> Run:
    run = runs.new(**{"mode": ASYNCHRONOUS, "generations": 4, **changes})
    run.world = OrderedWorld(run.folder)
    return run


def drive(run: Run) -> RunState:
    return run.drive(executor=OneByOne(run.world, slots=SLOTS))


def drive_and_copy(
    run: Run, folder: Path, monkeypatch: pytest.MonkeyPatch, share: float = 1.0
) -> tuple[RunState, dict[str, Run]]:
    """Drive a run; return its state, and what a kill before each event would have left.

    With a `share` it is that of the events.
    """
    chance = random.Random(folder.name)
    left: dict[str, Run] = {}
    record = Session.record

    def recorded(self: Session, event: Payload) -> None:
        if chance.random() < share:
            where = f"before event {self.state.seq + 1}, {event.event_kind()}"
            left[where] = run.copy(folder / f"b{len(left)}")
        record(self, event)

    with monkeypatch.context() as patch:
        patch.setattr(Session, "record", recorded)
        whole = drive(run)
    return whole, left


def assert_goes_on(killed: Run, whole: RunState, where: str) -> None:
    """Let a killed run go on, and compare it with one that nothing disturbed."""
    state = drive(killed)
    assert state.status is RunStatus.FINISHED, where
    assert told(state) == told(whole), where
    assert points(state) == points(whole), where
    assert losses(state) == losses(whole), where
    assert state.reported == whole.reported, where
    assert set(killed.world.trained.values()) == {1}, where


def told(state: RunState) -> list[tuple[str, ...]]:
    """Return what was asked and reported, in order."""
    return [
        each.asked if each.told is None else tuple(name for name, _ in each.told)
        for each in state.exchanges
    ]


def test_slot_that_is_free_gets_the_next_point_before_the_others_have_ended(runs: Runs) -> None:
    run = new_run(runs)
    at_work: list[int] = []
    run.view.every_turn = lambda session: at_work.append(len(session.state.live_attempts()))
    state = drive(run)
    assert state.status is RunStatus.FINISHED
    assert len(state.evaluations) == 16 and sorted(state.told) == [0, 1, 2, 3]
    assert {len(values) for values in state.told.values()} == {4}
    # All slots are busy from the first turn on, until nothing is left to ask.
    asked = state.exchanges[0]
    assert len(asked.asked) == SLOTS
    first_short = next(turn for turn, live in enumerate(at_work) if live < SLOTS)
    assert set(at_work[:first_short]) == {SLOTS} and first_short > 8
    # So some are asked while older ones still run.
    names = [name for each in state.exchanges if each.told is not None for name, _ in each.told]
    assert names != sorted(names)


def test_everything_is_reported_once_before_more_is_asked(runs: Runs) -> None:
    run = new_run(runs)
    run.world.script = dict(TROUBLES)
    state = drive(run)
    reported = [each for each in state.exchanges if each.told is not None]
    assert all(len(each.told or ()) == 1 for each in reported)
    names = [name for each in reported for name, _ in each.told or ()]
    assert len(set(names)) == len(names)
    assert set(names) == {e.id for e in state.evaluations.values()} - {"g000-e01"}
    # What failed and says nothing has its place asked again; what diverged comes last.
    (again,) = [e for e in state.evaluations.values() if e.replaces == "g000-e01"]
    assert again.state is State.COMPLETED
    assert state.reported["g002-e02"] > max(
        e.loss for e in state.evaluations.values() if e.loss is not None
    )


@pytest.mark.parametrize("name", [name for name in OPTIMIZERS if name != STUDY])
def test_search_killed_at_any_event_goes_on_with_the_same_points(
    runs: Runs, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    need_packages_of(name)
    changes: dict[str, Any] = {"optimizer": name}
    if name == LHS_CMA:
        changes |= {"lhs_points": 6, "lhs_starts": 2}
    run = new_run(runs, **changes)
    run.world.script = dict(TROUBLES)
    # A sample: many for the default, some for the others.
    whole, left = drive_and_copy(run, tmp_path, monkeypatch, 0.3 if name == CMA_GP else 0.04)
    assert whole.status is RunStatus.FINISHED and len(whole.evaluations) >= 17
    kinds = {where.rpartition(" ")[2] for where in left}
    some = {"points_asked", "value_reported", "submission_accepted"}
    assert name != CMA_GP or some <= kinds
    for where, killed in left.items():
        assert_goes_on(killed, whole, where)


FEW = {
    "n_heads": {"kind": "int", "low": 3, "high": 5},
    "lr": {"kind": "choice", "values": [1e-3, 1e-2, 3e-2]},
}

# Searches in which the end, or the next point, follows from what was recorded just before.
CASES: dict[str, dict[str, Any]] = {
    "patience": {"patience": 1, "generations": 6},
    "a small space, of which most points are known": {
        "axes": FEW,
        "generations": 8,
    },
    "most evaluations": {"evaluations": 8, "generations": 6, "axes": FEW},
    "branches that stop": {
        "sweep": {"n_state": [4, 8]},
        "model": {"dim": 32, "depth": 1},
        "patience": 1,
        "generations": 9,
    },
    "confirmations": {"confirm_top": 2, "confirm_seeds": 1, "generations": 2},
    "repeats on other seeds": {
        "repeats": "reseed",
        "axes": FEW,
        "min_improvement_sd": 1.0,
        "patience": 2,
        "generations": 7,
    },
}


@pytest.mark.parametrize("case", CASES)
def test_every_decision_follows_from_the_ledger_alone(
    runs: Runs, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, case: str
) -> None:
    run = new_run(runs, optimizer="random", **CASES[case])
    run.world.script = dict(TROUBLES)
    whole, left = drive_and_copy(run, tmp_path, monkeypatch, 0.08)
    assert whole.status is RunStatus.FINISHED
    is_ended = not {"patience", "evaluations"}.isdisjoint(CASES[case])
    assert (whole.ended_by is not None) == is_ended
    has_repeats = any(e.repeats for e in whole.evaluations.values())
    assert has_repeats == ("axes" in CASES[case])
    assert bool(whole.answered) == (has_repeats and "repeats" not in CASES[case])
    for where, killed in left.items():
        assert_goes_on(killed, whole, where)


def test_result_that_comes_after_its_place_was_asked_again_is_reported_with_its_own_point(
    runs: Runs, tmp_path: Path
) -> None:
    run = new_run(runs)
    run.world.script = {"g000-e01": ["python_error", "completed"], "g000-e02": ["diverged"]}
    left = run.killed_at(60, tmp_path / "left")
    state = load_run(left.folder).state
    assert "g000-e01" not in state.reported and "g000-e02" in state.reported
    assert any(e.replaces == "g000-e01" for e in state.evaluations.values())
    first_report = state.reported["g000-e02"]
    with Session.open(left.folder) as session:
        for name in ("g000-e01", "g000-e02"):
            session.record(
                EvaluationReopened(evaluation=name, changes={"since_attempt": 1}, by="me")
            )
    left.world.script["g000-e02"] = ["diverged", "completed"]
    state = drive(left)
    assert state.status is RunStatus.FINISHED
    late = state.evaluations["g000-e01"]
    assert state.reported["g000-e01"] == late.loss
    # The first report stands, though the ledger knows better now.
    again = state.evaluations["g000-e02"]
    assert again.state is State.COMPLETED and again.verdict_kind is VerdictKind.COMPLETED
    assert state.reported["g000-e02"] == first_report != again.loss
    assert verdicts(state, "g000-e02") == ["diverged", "completed"]


def test_failures_without_end_pause_the_search(runs: Runs) -> None:
    run = new_run(runs, retry={"breaker": 0})
    run.world.everywhere = "python_error"
    with pytest.raises(SearchPaused):
        drive(run)
    state = load_run(run.folder).state
    assert state.status is RunStatus.PAUSED and not state.reported
    # Two replacements a generation, and only what was asked before the first of them was over.
    assert len(state.evaluations) <= 3 * (4 + 2)


def test_evaluations_end_the_search_amid_a_generation(runs: Runs) -> None:
    state = drive(new_run(runs, evaluations=10))
    assert state.status is RunStatus.FINISHED
    assert len(state.evaluations) == 10 == len(state.reported)
    assert state.ended_by is not None and not state.open


def test_search_that_was_ended_goes_on_when_it_is_extended(runs: Runs) -> None:
    run = new_run(runs, evaluations=10)
    drive(run)
    with Session.open(run.folder) as session:
        session.change_settings({"search.evaluations": 15})
        session.extend(5)
    state = drive(run)
    assert state.status is RunStatus.FINISHED and len(state.evaluations) == 15
    assert sorted(state.told) == [0, 1, 2, 3, 4]


def test_best_are_confirmed_when_all_is_done(runs: Runs) -> None:
    run = new_run(runs, confirm_top=2, confirm_seeds=2)
    state = drive(run)
    assert state.status is RunStatus.FINISHED
    assert len(state.confirmed) == 2
    assert len(state.evaluations) == 16 + 4


def test_branches_of_a_sweep_share_the_places(runs: Runs) -> None:
    run = new_run(runs, sweep={"n_state": [4, 8]}, model={"dim": 32, "depth": 1})
    state = drive(run)
    assert state.status is RunStatus.FINISHED
    assert [state.turns.get(generation, 0) for generation in range(4)] == [0, 1, 0, 1]
    for evaluation in state.evaluations.values():
        branch = state.turns.get(evaluation.generation, 0)
        assert evaluation.config["n_state"] == [4, 8][branch]


@pytest.mark.parametrize(
    ("changes", "words"),
    [({"optimizer": STUDY}, "whole generations"), ({"reevaluate": 0.3}, "search.reevaluate")],
)
def test_what_needs_whole_generations_is_refused(
    runs: Runs, changes: dict[str, Any], words: str
) -> None:
    with pytest.raises(ConfigError, match=words):
        new_run(runs, **changes)


def test_best_so_far_are_confirmed_before_the_search_goes_on(runs: Runs) -> None:
    run = new_run(runs, confirm_top=1, confirm_seeds=2)

    def stop_in_time(session: Session) -> None:
        if len(session.state.reported) == 6:
            run.stop.set()

    run.view.every_turn = stop_in_time
    assert drive(run).status is RunStatus.INTERRUPTED
    run.view.every_turn = lambda session: None
    run.stop.clear()
    state = run.drive(executor=OneByOne(run.world, slots=SLOTS), confirms_now=True)
    # What ran has ended and was reported, and no point was asked for its slots.
    assert (state.status, len(state.reported)) == (RunStatus.PAUSED, 6 + SLOTS)
    assert state.counts()[State.COMPLETED] == 6 + SLOTS + 2
    assert len(state.confirmations) == 1
    state = drive(run)
    assert state.status is RunStatus.FINISHED and len(state.reported) == 16


def test_budget_pauses_the_search_and_a_larger_one_goes_on(runs: Runs) -> None:
    run = new_run(runs, budget={"evaluations": 9})
    with pytest.raises(SearchPaused, match="budget"):
        drive(run)
    paused = load_run(run.folder).state
    # What was asked for slots that became free waits, and no more is asked than there are slots.
    assert len(paused.reported) == 9 and len(paused.evaluations) == 9 + SLOTS
    with Session.open(run.folder) as session:
        session.change_settings({"budget.evaluations": 30})
    state = drive(run)
    assert state.status is RunStatus.FINISHED and len(state.reported) == 16
    assert told(state)[: len(told(paused))] == told(paused)
