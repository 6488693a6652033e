"""The search from end to end, with workers that need no time."""

import time
from collections import Counter
from pathlib import Path

import pytest

from elmanctl.errors import (
    EnvironmentNotReady,
    SearchPaused,
    SubmissionError,
)
from elmanctl.ledger.disk import Space
from elmanctl.ledger.payloads import EvaluationReopened
from elmanctl.ledger.quota import Quota
from elmanctl.ledger.records import RunStatus, State, VerdictKind
from elmanctl.ledger.run_state import RunState
from elmanctl.ledger.state import load_run
from elmanctl.ledger.submissions import SubmissionState
from elmanctl.schedulers.executor import JobReport, JobState, SubmissionUnknown
from elmanctl.search import disk_admission
from elmanctl.search.session import Session
from elmanctl.verdicts.policy import Feedback
from tests.integration.runs import points
from tests.search.scripted import Runs, ScriptedExecutor, verdicts
from tests.search.test_fitness import change_feedback

pytestmark = pytest.mark.usefixtures("no_power_failures")


def test_three_generations_find_better_models_and_take_no_time_of_their_own(runs: Runs) -> None:
    run = runs.new(generations=3, population=6)
    began = time.monotonic()
    state = run.drive()
    assert time.monotonic() - began < 60
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


def test_changed_rule_of_the_policy_changes_the_search(
    runs: Runs, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A point that is ranked last has a fitness, and needs no replacement."""
    change_feedback(monkeypatch, VerdictKind.PYTHON_ERROR, None, Feedback.LAST)
    run = runs.new(generations=1)
    run.world.script = {"g000-e01": ["python_error"]}
    state = run.drive()
    told = dict(state.told[0])
    assert list(told) == list(state.evaluations) == [f"g000-e0{index}" for index in range(4)]
    assert told["g000-e01"] == max(told.values()) == told_losses(state)[-1] + 1


def told_losses(state: RunState) -> list[float]:
    """Return the losses of a run's completed evaluations, in order of size."""
    return sorted(e.loss for e in state.evaluations.values() if e.loss is not None)


def test_generation_that_diverged_as_a_whole_is_told(runs: Runs) -> None:
    run = runs.new(generations=2)
    run.world.script = {f"g000-e0{index}": ["diverged"] for index in range(4)}
    state = run.drive()
    assert state.status is RunStatus.FINISHED
    assert sorted(value for _, value in state.told[0]) == [1.0, 2.0, 3.0, 4.0]


def test_search_whose_every_evaluation_fails_pauses_and_tells_nothing(runs: Runs) -> None:
    run = runs.new(retry={"breaker": 0, "killed": 0})
    run.world.everywhere = "killed"
    with pytest.raises(SearchPaused, match="only 0 of 4 evaluations") as caught:
        run.drive()
    assert caught.value.hint is not None and " --failed`" in caught.value.hint
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


def test_full_disk_stops_the_search_though_others_completed_after_it(
    runs: Runs, tmp_path: Path
) -> None:
    """And what it ended is run again, no other point in its place."""
    run = runs.new(generations=2)
    undisturbed = run.copy(tmp_path / "undisturbed").drive()
    run.world.script = {"g000-e01": ["disk_full"]}
    with pytest.raises(SearchPaused, match="full disk"):
        run.drive()
    state = load_run(run.folder).state
    assert len([e for e in state.evaluations.values() if e.state is State.COMPLETED]) == 3
    with Session.open(run.folder) as session:
        changes = {"since_attempt": 1}
        session.record(EvaluationReopened(evaluation="g000-e01", changes=changes, by="me"))
    state = run.drive()
    assert points(state) == points(undisturbed)
    assert state.told == undisturbed.told


def test_nothing_is_submitted_below_the_floor_of_free_space(
    runs: Runs, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = runs.new()
    executor = ScriptedExecutor(run.world)
    space = Space(free_bytes=999_000_000, free_inodes=None, quota=Quota(note="none"))
    monkeypatch.setattr(disk_admission, "space_of", lambda path: space)
    with pytest.raises(SearchPaused, match=r"999\.00 MB are free, under the floor of 1 GB"):
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


def test_worker_that_vanished_without_a_sign_of_life_is_lost_and_run_again(runs: Runs) -> None:
    run = runs.new(generations=1)
    vanished = ScriptedExecutor(run.world)

    def vanish(session: Session) -> None:
        for job_id, (evaluation, attempt) in run.world.tasks.items():
            if evaluation == "g000-e01" and attempt == 1:
                run.world.ended.setdefault(job_id, JobReport(state=JobState.VANISHED))

    run.view.every_turn = vanish
    state = run.drive(executor=vanished)
    assert verdicts(state, "g000-e01") == ["lost", "completed"]
