"""The search from end to end, with workers that need no time."""

import os
import random
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest

from elmanctl.cli import remote
from elmanctl.errors import (
    ConfigError,
    EnvironmentNotReady,
    LedgerCorrupt,
    NotFound,
    SearchPaused,
    SubmissionError,
    UsageError,
)
from elmanctl.jobs.executor import SubmissionUnknown
from elmanctl.ledger.disk import measure
from elmanctl.ledger.records import RunStatus, State, SubmissionState, VerdictKind
from elmanctl.ledger.requests import leave_request
from elmanctl.ledger.run_state import RunState
from elmanctl.ledger.state import load_run
from elmanctl.search import dispatch
from elmanctl.search.session import Session
from tests.integration.runs import losses, points
from tests.search.scripted import Run, Runs, ScriptedExecutor, World


@pytest.fixture(autouse=True)
def no_power_failures(monkeypatch: pytest.MonkeyPatch) -> None:
    """Nothing here pulls the plug, and waiting for the disk would be most of the time."""
    monkeypatch.setattr(os, "fsync", lambda descriptor: None)


def verdicts(state: RunState, evaluation: str) -> list[str]:
    """Return the verdicts of an evaluation's attempts."""
    attempts = state.evaluations[evaluation].attempts
    return [attempt.verdict.kind.value for attempt in attempts if attempt.verdict is not None]


def test_three_generations_find_better_models_and_take_no_time_of_their_own(runs: Runs) -> None:
    run = runs.new(generations=3, population=6)
    began = time.monotonic()
    state = run.drive()
    assert time.monotonic() - began < 5
    assert state.status is RunStatus.FINISHED
    best = [min(value for _, value in state.told[generation]) for generation in range(3)]
    assert best[2] < best[0]
    best_found = state.best()
    assert best_found is not None and best_found.loss == min(best)
    assert best_found.loss < 2.1
    assert {e.state for e in state.evaluations.values()} == {State.COMPLETED}
    assert run.view.generations == [0, 1, 2]
    assert len(run.view.verdicts) == 18


def test_one_axis_alone_is_searched(runs: Runs) -> None:
    axes = {"n_heads": {"kind": "int", "low": 1, "high": 16}}
    model = {"dim": 32, "depth": 1, "n_state": 8, "lr": 1e-2}
    state = runs.new(axes=axes, model=model, generations=5).drive()
    assert state.status is RunStatus.FINISHED
    assert all(len(e.point) == 1 for e in state.evaluations.values())
    best = state.best()
    assert best is not None and best.config["n_heads"] in (4, 5, 6)


def test_all_of_a_generation_is_one_submission(runs: Runs) -> None:
    run = runs.new()
    executor = ScriptedExecutor(run.world)
    run.drive(executor=executor)
    assert [len(submission.tasks) for submission in executor.submitted] == [4, 4]


def test_no_more_jobs_run_at_a_time_than_there_are_slots(runs: Runs) -> None:
    run = runs.new(generations=1, population=5)
    executor = ScriptedExecutor(run.world, slots=2)
    most = 0

    def count(session: Session) -> None:
        nonlocal most
        most = max(most, len(session.state.live_attempts()))

    run.view.every_turn = count
    state = run.drive(executor=executor)
    assert most == 2
    assert len(state.told[0]) == 5


def test_same_seed_asks_the_same_points_and_another_seed_others(runs: Runs) -> None:
    assert points(runs.new().drive()) == points(runs.new().drive())
    assert points(runs.new().drive()) != points(runs.new(seed=4).drive())


def test_failure_of_the_cluster_is_tried_again_with_the_same_point(runs: Runs) -> None:
    run = runs.new(generations=1)
    run.world.script = {"g000-e01": ["node_failure", "node_failure"]}
    state = run.drive()
    assert verdicts(state, "g000-e01") == ["node_failure", "node_failure", "completed"]
    assert state.evaluations["g000-e01"].state is State.COMPLETED
    assert len(state.evaluations) == 4


def test_failed_evaluation_is_replaced_and_never_told(runs: Runs) -> None:
    run = runs.new(generations=1)
    run.world.script = {"g000-e01": ["python_error"], "g000-e04": ["python_error"]}
    state = run.drive()
    assert {e.id: e.replaces for e in state.evaluations.values() if e.replaces} == {
        "g000-e04": "g000-e01",
        "g000-e05": "g000-e04",
    }
    assert [name for name, _ in state.told[0]] == ["g000-e00", "g000-e02", "g000-e03", "g000-e05"]


def test_no_more_points_are_asked_in_place_of_failed_ones_than_allowed(runs: Runs) -> None:
    run = runs.new(generations=2, retry={"replacements": 1})
    run.world.script = {"g000-e01": ["python_error"], "g000-e04": ["python_error"]}
    state = run.drive()
    assert [name for name, _ in state.told[0]] == ["g000-e00", "g000-e02", "g000-e03"]
    assert state.status is RunStatus.FINISHED


def test_diverged_evaluation_is_told_a_finite_value_behind_all_losses(runs: Runs) -> None:
    run = runs.new(generations=2)
    run.world.script = {"g000-e00": ["diverged"], "g000-e02": ["diverged"]}
    state = run.drive()
    told = dict(state.told[0])
    assert len(state.evaluations) == 8
    assert len(told) == 4
    worst = max(told["g000-e01"], told["g000-e03"])
    steps = {name: state.evaluations[name].attempts[0].result for name in ("g000-e00", "g000-e02")}
    later, earlier = sorted(steps, key=lambda name: -int(str((steps[name] or {})["steps"])))
    assert worst < told[later] < told[earlier] < 100


def test_generation_that_diverged_as_a_whole_is_told(runs: Runs) -> None:
    run = runs.new(generations=2)
    run.world.script = {f"g000-e0{index}": ["diverged"] for index in range(4)}
    state = run.drive()
    assert state.status is RunStatus.FINISHED
    assert sorted(value for _, value in state.told[0]) == [1.0, 2.0, 3.0, 4.0]


def test_search_whose_every_evaluation_fails_pauses_and_tells_nothing(runs: Runs) -> None:
    run = runs.new(retry={"breaker": 0, "killed": 0})
    run.world.everywhere = "killed"
    with pytest.raises(SearchPaused, match="only 0 of 4 evaluations") as told:
        run.drive()
    assert told.value.hint is not None and "requeue --failed" in told.value.hint
    state = load_run(run.folder).state
    assert state.told == {}
    # Four, and two in place of failed ones.
    assert Counter(e.state for e in state.evaluations.values()) == {State.FAILED: 6}


def test_failures_that_all_would_meet_stop_the_search_after_three(runs: Runs) -> None:
    run = runs.new(population=8)
    run.world.everywhere = "python_error"
    executor = ScriptedExecutor(run.world, slots=1)
    with pytest.raises(SearchPaused, match="the last 3 attempts ended as python_error"):
        run.drive(executor=executor)
    assert len(executor.submitted) == 3


def test_pause_counts_only_the_failures_that_caused_it(runs: Runs) -> None:
    run = runs.new(population=8)
    run.world.script = {"g000-e00": ["diverged"], "g000-e01": ["diverged"]}
    run.world.everywhere = "python_error"
    with pytest.raises(SearchPaused, match="the last 3 attempts ended as python_error"):
        run.drive(executor=ScriptedExecutor(run.world, slots=1))


def test_success_in_between_keeps_the_search_going(runs: Runs) -> None:
    run = runs.new(generations=1, population=8)
    run.world.script = {f"g000-e0{index}": ["python_error"] for index in (0, 1, 3, 4, 6)}
    state = run.drive(executor=ScriptedExecutor(run.world, slots=1))
    assert state.status is RunStatus.FINISHED


def test_full_disk_on_a_node_stops_the_search_at_once(runs: Runs) -> None:
    run = runs.new()
    run.world.script = {"g000-e00": ["disk_full"]}
    with pytest.raises(SearchPaused, match="full disk"):
        run.drive(executor=ScriptedExecutor(run.world, slots=1))


def test_nothing_is_submitted_below_the_floor_of_free_space(
    runs: Runs, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = runs.new()
    executor = ScriptedExecutor(run.world)
    monkeypatch.setattr(dispatch, "free_bytes", lambda path: 999_000_000)
    with pytest.raises(SearchPaused, match=r"1\.00 GB are free, under the floor of 1 GB"):
        run.drive(executor=executor)
    assert executor.submitted == []
    assert load_run(run.folder).state.submissions == {}
    monkeypatch.undo()
    assert run.drive(executor=executor).status is RunStatus.FINISHED


def test_scheduler_that_refuses_everything_ends_the_controller_with_its_words(runs: Runs) -> None:
    run = runs.new()
    executor = ScriptedExecutor(run.world)
    executor.refusals = [SubmissionError("sbatch: error: Invalid account")]
    with pytest.raises(SubmissionError, match="Invalid account"):
        run.drive(executor=executor)
    (submission,) = load_run(run.folder).state.submissions.values()
    assert submission.state is SubmissionState.REFUSED
    assert submission.error == "sbatch: error: Invalid account"
    assert run.drive(executor=executor).status is RunStatus.FINISHED


def test_scheduler_that_refuses_more_while_jobs_run_is_left_in_peace(runs: Runs) -> None:
    run = runs.new(population=6, generations=1)
    executor = ScriptedExecutor(run.world, slots=3)
    run.world.held = {"g000-e01", "g000-e02"}
    turns = 0

    def look_on(session: Session) -> None:
        nonlocal turns
        turns += 1
        if turns == 1:
            executor.refusals = [SubmissionError("QOSMaxSubmitJobLimit") for _ in range(99)]
        if turns == 50:
            run.stop.set()

    run.view.every_turn = look_on
    state = run.drive(executor=executor)
    refused = [s for s in state.submissions.values() if s.state is SubmissionState.REFUSED]
    assert len(refused) == 1
    assert state.status is RunStatus.INTERRUPTED


@pytest.mark.parametrize("accepted", [True, False])
def test_submission_without_an_answer_is_settled_by_its_name(runs: Runs, accepted: bool) -> None:
    run = runs.new(generations=1)
    executor = ScriptedExecutor(run.world)
    executor.refusals = [SubmissionUnknown("Socket timed out on send/recv operation")]
    executor.accepts_before_refusal = accepted
    state = run.drive(executor=executor)
    first, *rest = state.submissions.values()
    assert first.state is (SubmissionState.ACCEPTED if accepted else SubmissionState.ABANDONED)
    assert len(rest) == (0 if accepted else 1)
    assert set(run.world.trained.values()) == {1}
    assert {len(e.attempts) for e in state.evaluations.values()} == {1}


def test_silent_scheduler_is_waited_for_and_the_reason_is_shown(runs: Runs) -> None:
    run = runs.new(generations=1)
    turns = 0

    def fall_silent(session: Session) -> None:
        nonlocal turns
        turns += 1
        run.world.silent = 1 < turns < 10

    run.view.every_turn = fall_silent
    state = run.drive()
    assert turns > 10
    assert state.status is RunStatus.FINISHED
    assert set(run.world.trained.values()) == {1}


def test_controller_does_not_start_while_it_cannot_know_what_was_submitted(runs: Runs) -> None:
    run = runs.new(generations=1)
    executor = ScriptedExecutor(run.world)
    executor.refusals = [SubmissionUnknown("Socket timed out")]
    executor.accepts_before_refusal = True
    run.view.every_turn = lambda session: run.stop.set()
    run.drive(executor=executor)
    run.stop.clear()
    run.view.every_turn = lambda session: None
    before = len(load_run(run.folder).state.submissions)
    run.world.silent = True
    with pytest.raises(EnvironmentNotReady):
        run.drive()
    assert len(load_run(run.folder).state.submissions) == before
    run.world.silent = False
    assert run.drive().status is RunStatus.FINISHED
    assert set(run.world.trained.values()) == {1}


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

    def recorded(self: Session, kind: str, /, **data: Any) -> None:
        leave("before", self, kind)
        record(self, kind, **data)
        leave("after", self, kind)

    monkeypatch.setattr(Session, "record", recorded)
    undisturbed = run.drive()
    monkeypatch.setattr(Session, "record", record)
    assert_same_search(undisturbed, undisturbed, run.world, "undisturbed")
    kinds = {where.rpartition(" ")[2] for where in left}
    assert kinds == {
        *("controller_started", "points_asked", "submission_intended", "submission_accepted"),
        *("attempt_started", "attempt_finished", "evaluation_closed", "generation_told"),
        "run_finished",
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

    def recorded(self: Session, kind: str, /, **data: Any) -> None:
        if kind != "controller_started" and chance.random() < 1 / 6:
            raise Killed
        record(self, kind, **data)
        if kind != "controller_started" and chance.random() < 1 / 6:
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
    assert stops > 3
    assert_same_search(state, undisturbed, run.world, "stopped")


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


@pytest.mark.parametrize("damage", [b"", b"garbage", None])
def test_damaged_state_of_the_optimizer_is_named_and_nothing_is_asked(
    runs: Runs, damage: bytes | None
) -> None:
    run = runs.new()
    run.drive()
    (path,) = run.paths.optimizer.glob("g001-*.pickle")
    if damage is None:
        path.unlink()
    else:
        path.write_bytes(damage)
    with pytest.raises(LedgerCorrupt, match="optimizer's state") as told:
        run.drive(generations=3)
    assert str(path) in told.value.message
    assert len(load_run(run.folder).state.evaluations) == 8


class Commands:
    """Commands against a run, by another process' way: under the lease, or by request."""

    def __init__(self, run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
        self._run = run
        self.executor = ScriptedExecutor(run.world)
        monkeypatch.setattr(remote, "make_executor", lambda *_: self.executor)

    def __call__(self, command: str, **arguments: Any) -> dict[str, Any]:
        return remote.act_on_run(self._run.paths, command, arguments)


@pytest.fixture
def with_commands(monkeypatch: pytest.MonkeyPatch) -> Callable[[Run], Commands]:
    return lambda run: Commands(run, monkeypatch)


class Driven:
    """A controller at work in a thread."""

    def __init__(self, run: Run) -> None:
        self.run = run
        self.ended: RunState | None = None
        self.error: BaseException | None = None
        self._thread = threading.Thread(target=self._drive)
        self._thread.start()

    def _drive(self) -> None:
        try:
            self.ended = self.run.drive()
        except BaseException as exc:
            self.error = exc

    def wait_for(self, holds: Callable[[RunState], bool]) -> None:
        """Wait until the run's ledger says something."""
        end = time.monotonic() + 20
        while time.monotonic() < end:
            state = load_run(self.run.folder).state
            if holds(state):
                return
            time.sleep(0.01)
        raise AssertionError("the run did not get there")

    def join(self) -> RunState:
        """Wait for the controller's end."""
        self._thread.join(timeout=20)
        assert not self._thread.is_alive()
        if self.error is not None:
            raise self.error
        assert self.ended is not None
        return self.ended

    def close(self) -> None:
        self.run.stop.set()
        self._thread.join(timeout=20)


@pytest.fixture
def start() -> Iterator[Callable[[Run], Driven]]:
    """Start controllers; all end with the test."""
    started: list[Driven] = []

    def begin(run: Run) -> Driven:
        started.append(Driven(run))
        return started[-1]

    yield begin
    for driven in started:
        driven.close()


WithCommands = Callable[[Run], Commands]
Start = Callable[[Run], Driven]


def has_failed(name: str) -> Callable[[RunState], bool]:
    return lambda state: name in state.evaluations and state.evaluations[name].state is State.FAILED


def is_running(name: str) -> Callable[[RunState], bool]:
    return lambda state: (
        name in state.evaluations and state.evaluations[name].state is State.RUNNING
    )


def test_requeued_evaluation_is_run_again_by_the_controller_at_work(
    runs: Runs, with_commands: WithCommands, start: Start
) -> None:
    run = runs.new(generations=1, retry={"replacements": 0})
    run.world.script = {"g000-e01": ["python_error"]}
    run.world.held = {"g000-e00"}
    driven = start(run)
    driven.wait_for(has_failed("g000-e01"))
    answer = with_commands(run)("requeue", evaluations=["g000-e01"])
    assert answer == {
        "requeued": [{"evaluation": "g000-e01", "was": "python_error", "attempt": 2}],
        "by_controller": True,
    }
    run.world.held.clear()
    state = driven.join()
    assert verdicts(state, "g000-e01") == ["python_error", "completed"]
    assert len(state.told[0]) == 4


def test_requeue_that_cannot_be_is_answered_with_the_reason(
    runs: Runs, with_commands: WithCommands, start: Start
) -> None:
    run = runs.new(generations=1)
    run.world.held = {"g000-e00"}
    driven = start(run)
    driven.wait_for(is_running("g000-e00"))
    with pytest.raises(Exception, match="g000-e00 is running: only failed") as told:
        with_commands(run)("requeue", evaluations=["g000-e00"])
    assert getattr(told.value, "exit_code", None) == UsageError.exit_code
    run.world.held.clear()
    assert driven.join().status is RunStatus.FINISHED


def test_cancelled_evaluation_is_ended_by_the_controller_and_not_told(
    runs: Runs, with_commands: WithCommands, start: Start
) -> None:
    run = runs.new(generations=1)
    run.world.held = {"g000-e00", "g000-e01"}
    driven = start(run)
    driven.wait_for(is_running("g000-e01"))
    answer = with_commands(run)("cancel", all=False, evaluations=["g000-e01"])
    assert [row["result"] for row in answer["cancelled"]] == ["cancelled"]
    run.world.held.clear()
    state = driven.join()
    assert state.evaluations["g000-e01"].state is State.CANCELLED
    assert verdicts(state, "g000-e01") == ["cancelled"]
    assert [name for name, _ in state.told[0]] == ["g000-e00", "g000-e02", "g000-e03"]


def test_cancelled_run_ends_its_controller_and_every_job_is_on_record(
    runs: Runs, with_commands: WithCommands, start: Start
) -> None:
    run = runs.new()
    run.world.held = {f"g000-e0{index}" for index in range(4)}
    driven = start(run)
    driven.wait_for(is_running("g000-e03"))
    with_commands(run)("cancel", all=True, evaluations=[])
    state = driven.join()
    assert state.status is RunStatus.CANCELLED
    assert state.live_attempts() == []
    assert len(run.world.cancelled) == 4
    with pytest.raises(UsageError, match="was cancelled"), Session.open(run.folder) as session:
        session.refuse_cancelled()


def test_cancelling_with_no_controller_ends_jobs_and_records_their_end(
    runs: Runs, with_commands: WithCommands
) -> None:
    run = runs.new(generations=1)
    run.world.held = {"g000-e01"}
    run.view.every_turn = lambda session: (
        run.stop.set() if is_running("g000-e01")(session.state) else None
    )
    run.drive()
    answer = with_commands(run)("cancel", all=False, evaluations=["g000-e01", "g000-e00"])
    assert answer["error"] is None
    state = load_run(run.folder).state
    assert state.evaluations["g000-e01"].state is State.CANCELLED
    assert verdicts(state, "g000-e01") == ["cancelled"]


def test_job_whose_scheduler_was_silent_when_it_was_cancelled_is_ended_later(
    runs: Runs, with_commands: WithCommands, start: Start
) -> None:
    run = runs.new(generations=1)
    run.world.held = {"g000-e01"}
    driven = start(run)
    driven.wait_for(is_running("g000-e01"))
    run.world.silent = True
    answer = with_commands(run)("cancel", all=False, evaluations=["g000-e01"])
    assert answer["error"] == "`scancel` did not answer"
    run.world.silent = False
    state = driven.join()
    assert verdicts(state, "g000-e01") == ["cancelled"]
    assert len(set(run.world.cancelled)) == 1


def test_requeue_with_no_controller_submits_and_resume_collects(
    runs: Runs, with_commands: WithCommands
) -> None:
    run = runs.new(generations=1, retry={"replacements": 0})
    run.world.script = {"g000-e01": ["python_error"]}
    before = run.drive()
    assert len(before.told[0]) == 3
    answer = with_commands(run)("requeue", evaluations=["g000-e01"])
    (row,) = answer["requeued"]
    assert (row["was"], row["attempt"]) == ("python_error", 2)
    assert row["job"] in run.world.tasks
    state = run.drive()
    assert verdicts(state, "g000-e01") == ["python_error", "completed"]
    assert state.status is RunStatus.FINISHED


def test_requeued_evaluation_of_a_generation_already_told_is_not_told_again(
    runs: Runs, with_commands: WithCommands, tmp_path: Path
) -> None:
    run = runs.new(generations=2, retry={"replacements": 0})
    run.world.script = {"g000-e01": ["python_error"]}
    run.drive()
    undisturbed = run.copy(tmp_path / "undisturbed").drive(generations=4)
    with_commands(run)("requeue", evaluations=["g000-e01"])
    state = run.drive(generations=4)
    assert state.evaluations["g000-e01"].state is State.COMPLETED
    assert "g000-e01" not in dict(state.told[0])
    # Its loss counts for the best, and the points that follow are the same.
    assert points(state) == points(undisturbed)
    assert "g000-e01" in [e.id for e in state.ranked()]


def test_evaluation_that_was_replaced_and_queued_again_is_told_beside_its_replacement(
    runs: Runs, with_commands: WithCommands, start: Start
) -> None:
    """The optimizer then learns from more points than a generation has."""
    run = runs.new(generations=2)
    run.world.script = {"g000-e01": ["python_error"]}
    run.world.held = {"g000-e04"}
    driven = start(run)
    driven.wait_for(is_running("g000-e04"))
    with_commands(run)("requeue", evaluations=["g000-e01"])
    driven.wait_for(lambda state: verdicts(state, "g000-e01") == ["python_error", "completed"])
    run.world.held.clear()
    state = driven.join()
    assert [name for name, _ in state.told[0]] == [f"g000-e0{index}" for index in range(5)]
    assert state.status is RunStatus.FINISHED


def test_requeued_evaluation_starts_its_count_of_retries_anew(
    runs: Runs, with_commands: WithCommands
) -> None:
    run = runs.new(generations=1, retry={"replacements": 0, "killed": 1})
    run.world.script = {"g000-e01": ["killed"] * 4}
    state = run.drive()
    assert verdicts(state, "g000-e01") == ["killed", "killed"]
    with_commands(run)("requeue", evaluations=["g000-e01"])
    state = run.drive()
    assert verdicts(state, "g000-e01") == ["killed"] * 4
    assert state.evaluations["g000-e01"].state is State.FAILED


def test_time_limit_of_a_requeue_is_that_of_the_new_attempt(
    runs: Runs, with_commands: WithCommands
) -> None:
    run = runs.new(generations=1, retry={"replacements": 0})
    run.world.script = {"g000-e01": ["python_error"]}
    run.drive()
    with_commands(run)("requeue", evaluations=["g000-e01"], timeout_min=77)
    state = load_run(run.folder).state
    last = state.evaluations["g000-e01"].attempts[-1]
    assert state.submissions[last.submission].resources == {"timeout_min": 77}


def test_requeue_that_asks_for_what_cannot_be_changes_nothing(
    runs: Runs, with_commands: WithCommands
) -> None:
    run = runs.new(generations=1, retry={"replacements": 0})
    run.world.script = {"g000-e01": ["python_error"]}
    before = run.drive().seq
    with pytest.raises(ConfigError, match="no limit on memory"):
        with_commands(run)("requeue", evaluations=["g000-e01"], mem_gb=80.0)
    with pytest.raises(NotFound, match="no evaluation `g000-e99`"):
        with_commands(run)("requeue", evaluations=["g000-e01", "g000-e99"])
    with pytest.raises(UsageError, match="g000-e00 is completed"):
        with_commands(run)("requeue", evaluations=["g000-e01", "g000-e00"])
    assert load_run(run.folder).state.seq == before


def leave_files(run: Run, state: RunState) -> None:
    """Write what workers leave beside their results."""
    for evaluation in state.evaluations.values():
        for attempt in evaluation.attempts:
            paths = run.paths.attempt(evaluation.id, attempt.number)
            paths.metrics.write_text("{}\n" * 5000, encoding="utf-8")
            folder = run.paths.submission(attempt.submission)
            (folder / f"{attempt.job_id}_0_log.out").write_text("step\n" * 5000, encoding="utf-8")
            (folder / f"task-{attempt.task_index}.pkl").write_text("pickle", encoding="utf-8")


def test_cleaning_frees_what_it_says_and_keeps_the_best_and_all_results(
    runs: Runs, with_commands: WithCommands
) -> None:
    run = runs.new()
    state = run.drive()
    leave_files(run, state)
    before = measure(run.folder)
    answer = with_commands(run)("clean", keep_best=2, kinds=[])
    assert answer["files"] == 6 * 3
    assert before - measure(run.folder) >= answer["freed_bytes"] - 64_000
    state = load_run(run.folder).state
    assert sum(state.freed_bytes.values()) == answer["freed_bytes"]
    best = {e.id for e in state.ranked()[:2]}
    for evaluation in state.evaluations.values():
        paths = run.paths.attempt(evaluation.id, 1)
        assert paths.result.exists() and paths.spec.exists()
        assert paths.metrics.exists() is (evaluation.id in best)
    assert with_commands(run)("clean", keep_best=2, kinds=[]) == {"freed_bytes": 0, "files": 0}
    assert run.drive(generations=3).status is RunStatus.FINISHED


def test_cleaning_while_a_controller_runs_leaves_unfinished_evaluations_alone(
    runs: Runs, with_commands: WithCommands, start: Start
) -> None:
    run = runs.new(generations=1)
    run.world.held = {"g000-e01"}
    driven = start(run)
    driven.wait_for(lambda state: sum(e.state.is_finished for e in state.evaluations.values()) == 3)
    leave_files(run, load_run(run.folder).state)
    answer = with_commands(run)("clean", keep_best=0, kinds=["metrics"])
    assert (answer["files"], answer["by_controller"]) == (3, True)
    assert run.paths.attempt("g000-e01", 1).metrics.exists()
    run.world.held.clear()
    assert driven.join().status is RunStatus.FINISHED


def test_link_in_place_of_a_folder_is_never_followed_by_cleaning(
    runs: Runs, with_commands: WithCommands, tmp_path: Path
) -> None:
    run = runs.new(generations=1)
    leave_files(run, run.drive())
    precious = tmp_path / "precious"
    precious.mkdir()
    (precious / "metrics.jsonl").write_text("precious", encoding="utf-8")
    folder = run.paths.attempt("g000-e00", 1).folder
    folder.rename(tmp_path / "aside")
    folder.symlink_to(precious)
    answer = with_commands(run)("clean", keep_best=0, kinds=["metrics"])
    assert (precious / "metrics.jsonl").exists()
    assert answer["files"] == 3


def test_request_that_is_carried_out_and_not_answered_is_not_carried_out_twice(
    runs: Runs, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Killed around every event of a controller that applies a requeue."""
    run = runs.new(generations=1, retry={"replacements": 0})
    run.world.script = {"g000-e01": ["python_error"], "g000-e02": ["python_error"]}
    run.drive()
    request = leave_request(run.folder, "requeue", {"evaluations": ["g000-e01", "g000-e02"]})
    left: list[Run] = []
    record = Session.record

    def recorded(self: Session, kind: str, /, **data: Any) -> None:
        left.append(run.copy(tmp_path / f"kill-{len(left)}"))
        record(self, kind, **data)

    monkeypatch.setattr(Session, "record", recorded)
    run.drive()
    monkeypatch.setattr(Session, "record", record)
    assert len(left) > 8
    for killed in left:
        state = killed.drive()
        for name in ("g000-e01", "g000-e02"):
            assert verdicts(state, name) == ["python_error", "completed"]
        answer = state.applied_requests[request]["answer"]
        assert [row["evaluation"] for row in answer["requeued"]] == ["g000-e01", "g000-e02"]
        assert not (killed.folder / "requests" / f"{request}.json").exists()


def test_unknown_request_is_answered_and_disturbs_nothing(runs: Runs) -> None:
    run = runs.new(generations=1)
    request = leave_request(run.folder, "cancel", {"evaluations": ["nonsense"]})
    state = run.drive()
    assert state.status is RunStatus.FINISHED
    assert "no evaluation `nonsense`" in state.applied_requests[request]["answer"]["error"]


def test_worker_that_vanished_without_a_sign_of_life_is_lost_and_run_again(runs: Runs) -> None:
    run = runs.new(generations=1)
    vanished = ScriptedExecutor(run.world)

    def vanish(session: Session) -> None:
        from elmanctl.jobs.executor import JobReport, JobState

        for job_id, (evaluation, attempt) in run.world.tasks.items():
            if evaluation == "g000-e01" and attempt == 1:
                run.world.ended.setdefault(job_id, JobReport(state=JobState.VANISHED))

    run.view.every_turn = vanish
    state = run.drive(executor=vanished)
    assert verdicts(state, "g000-e01") == ["lost", "completed"]
    assert state.evaluations["g000-e01"].attempts[0].verdict.kind is VerdictKind.LOST
