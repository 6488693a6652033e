"""Refusals by the scheduler: the search copes with fewer accepted jobs, or none."""

from collections.abc import Callable
from pathlib import Path

import pytest

from elmanctl.errors import SubmissionError
from elmanctl.ledger.records import RunStatus
from elmanctl.ledger.run_state import RunState
from elmanctl.ledger.state import load_run
from elmanctl.ledger.submissions import Submission, SubmissionState
from elmanctl.schedulers.executor import (
    LiveJob,
    PollResult,
    SubmissionDeferred,
    SubmissionUnknown,
)
from elmanctl.schedulers.scheduler_note import read_note
from elmanctl.search.session import Session
from tests.search.scripted import Run, Runs, ScriptedExecutor

HINT = "set search.max_jobs"
LIMIT = "sbatch: error: AssocMaxSubmitJobLimit"


class LimitedExecutor(ScriptedExecutor):
    """A scheduler that holds so many jobs at one time, those of others included."""

    limit = 3
    others = 0

    def submit(self, submission: Submission, folder: Path) -> str:
        folder.mkdir(parents=True)
        (folder / "submission.sh").write_text("#!/bin/sh", encoding="utf-8")
        here = len(self.world.tasks) - len(self.world.ended)
        if here + len(submission.tasks) + self.others > self.limit:
            raise SubmissionDeferred(LIMIT, hint=HINT, is_limit=True)
        return super().submit(submission, folder)


class Clock:
    """A clock that goes on by so much a turn of the loop."""

    def __init__(
        self, run: Run, every_turn: Callable[[Session], None] | None = None, turn_s: float = 1.0
    ) -> None:
        self.now = 1000.0
        self._turn_s = turn_s
        self._run = run
        self._every_turn = every_turn
        run.view.every_turn = self._turn

    def __call__(self) -> float:
        return self.now

    def _turn(self, session: Session) -> None:
        self.now += self._turn_s
        if self._every_turn is not None:
            self._every_turn(session)


def states(state: RunState) -> list[tuple[int, str]]:
    return [(len(one.tasks), one.state.value) for one in state.submissions.values()]


def refused(state: RunState) -> int:
    return sum(one.state is SubmissionState.REFUSED for one in state.submissions.values())


@pytest.mark.parametrize("limit", [1, 3, 5])
def test_search_finishes_under_any_limit_on_submitted_jobs(runs: Runs, limit: int) -> None:
    run = runs.new(generations=3)
    executor = LimitedExecutor(run.world)
    executor.limit = limit
    state = run.drive(executor=executor, now=Clock(run, turn_s=4.0))
    assert state.status is RunStatus.FINISHED
    assert set(run.world.trained.values()) == {1}
    assert {len(e.attempts) for e in state.evaluations.values()} == {1}
    assert refused(state) <= 3 + 3 * 3


def test_limit_is_found_by_halves_and_said_once_in_one_wording(runs: Runs) -> None:
    run = runs.new(generations=1)
    state = run.drive(executor=LimitedExecutor(run.world), now=Clock(run))
    assert states(state)[:4] == [
        *((4, "refused"), (2, "accepted"), (1, "accepted"), (1, "accepted"))
    ]
    told = {text for text in run.view.troubles if text}
    (words,) = told
    assert "takes no more jobs for now: AssocMaxSubmitJobLimit" in words
    assert HINT in words
    # Not said any more once everything was taken.
    assert run.view.troubles[-1] is None


def test_limit_that_others_use_up_is_waited_out_without_filling_the_ledger(runs: Runs) -> None:
    run = runs.new(generations=1)
    executor = LimitedExecutor(run.world)
    executor.others = 3

    def every_turn(session: Session) -> None:
        if clock.now >= 1000.0 + 6 * 3600:
            executor.others = 0

    clock = Clock(run, every_turn, turn_s=20.0)
    state = run.drive(executor=executor, now=clock)
    assert state.status is RunStatus.FINISHED
    # Six hours.
    assert refused(state) <= 6 * 12 + 12
    left = [folder.name for folder in (run.folder / "submissions").iterdir()]
    accepted = [one.id for one in state.submissions.values() if one.job_id is not None]
    assert sorted(left) == sorted(accepted)


def test_controller_that_waits_stops_when_it_is_asked_to_and_another_goes_on(runs: Runs) -> None:
    run = runs.new(generations=1)
    executor = LimitedExecutor(run.world)
    executor.others = 3

    def stop_soon(session: Session) -> None:
        if clock.now >= 1100.0:
            run.stop.set()

    clock = Clock(run, stop_soon)
    assert run.drive(executor=executor, now=clock).status is RunStatus.INTERRUPTED
    # And one that is killed while it waits leaves nothing that the next one could stumble over.
    copied = run.copy(run.folder.with_name("killed"))
    executor.others = 0
    for each in (run, copied):
        each.stop.clear()
        state = each.drive(executor=LimitedExecutor(each.world), now=Clock(each))
        assert state.status is RunStatus.FINISHED
        assert set(each.world.trained.values()) == {1}


def test_status_file_tells_of_the_refusal_until_it_is_over(runs: Runs) -> None:
    run = runs.new(generations=1, slurm={})
    executor = LimitedExecutor(run.world)
    executor.others = 3
    seen = []

    def every_turn(session: Session) -> None:
        seen.append(read_note(run.paths.scheduler))
        if clock.now >= 1500.0:
            executor.others = 0

    clock = Clock(run, every_turn)
    run.drive(executor=executor, now=clock)
    note = seen[200]
    assert note is not None and note.refusal is not None
    assert (note.refusal.words, note.refusal.hint) == ("AssocMaxSubmitJobLimit", HINT)
    # The next question is not due before this, so that the note is not stale.
    assert note.next_s > 60
    last = read_note(run.paths.scheduler)
    assert last is not None and last.refusal is None


def test_refusal_for_good_ends_the_search_at_once_and_never_while_jobs_run(runs: Runs) -> None:
    run = runs.new(generations=1)
    executor = ScriptedExecutor(run.world, slots=2)
    run.world.held = {"g000-e00", "g000-e01"}

    def every_turn(session: Session) -> None:
        executor.refusals = [SubmissionError("Invalid account") for _ in range(99)]
        executor.slots = 4
        if clock.now >= 2000.0:
            run.world.held = set()

    clock = Clock(run, every_turn)
    with pytest.raises(SubmissionError, match="Invalid account"):
        run.drive(executor=executor, now=clock)
    state = load_run(run.folder).state
    assert refused(state) <= 6
    # What ran has its result.
    assert sum(run.world.trained.values()) == 2
    assert state.live_attempts() == []


class ForgetfulExecutor(ScriptedExecutor):
    """A scheduler that takes a submission, loses the answer, and lists the job late."""

    late_looks = 1

    def poll(self, jobs: list[LiveJob], intended: list[Submission]) -> PollResult:  # type: ignore[override]
        polled = super().poll(jobs, intended)
        if intended and self.late_looks > 0:
            self.late_looks -= 1
            return PollResult(reports=polled.reports, found=dict.fromkeys(polled.found))
        return polled


def test_job_that_is_listed_late_is_found_and_not_submitted_again(runs: Runs) -> None:
    run = runs.new(generations=1)
    executor = ForgetfulExecutor(run.world)
    executor.refusals = [SubmissionUnknown("Zero Bytes were transmitted or received")]
    executor.accepts_before_refusal = True
    state = run.drive(executor=executor, now=Clock(run))
    assert states(state) == [(4, "accepted")]
    assert set(run.world.trained.values()) == {1}


class Killed(Exception):
    """The end of a controller amid a call."""


def test_job_of_a_dead_controller_that_is_listed_late_is_found(runs: Runs) -> None:
    """It was killed with its sbatch, of which the scheduler had heard."""
    run = runs.new(generations=1)
    executor = ForgetfulExecutor(run.world)
    executor.refusals = [Killed("inside sbatch")]
    executor.accepts_before_refusal = True
    with pytest.raises(Killed):
        run.drive(executor=executor, now=Clock(run))
    state = run.drive(executor=executor, now=Clock(run))
    assert states(state) == [(4, "accepted")]
    assert set(run.world.trained.values()) == {1}


def test_job_that_is_listed_by_no_look_is_submitted_again(runs: Runs) -> None:
    run = runs.new(generations=1)
    executor = ScriptedExecutor(run.world)
    executor.refusals = [SubmissionUnknown("Zero Bytes were transmitted or received")]
    state = run.drive(executor=executor, now=Clock(run))
    assert states(state) == [(4, "abandoned"), (4, "accepted")]


def test_answers_that_are_lost_for_hours_do_not_fill_the_ledger(runs: Runs) -> None:
    run = runs.new(generations=1)
    executor = ScriptedExecutor(run.world)

    def every_turn(session: Session) -> None:
        lost = clock.now < 1000.0 + 4 * 3600
        executor.refusals = [SubmissionUnknown("exit code 0", is_taken=True)] if lost else []

    clock = Clock(run, every_turn, turn_s=20.0)
    every_turn(None)  # type: ignore[arg-type]
    state = run.drive(executor=executor, now=clock)
    assert state.status is RunStatus.FINISHED
    assert len(state.submissions) <= 4 * 12 + 12


def test_where_there_are_no_arrays_each_attempt_is_a_job_of_its_own(runs: Runs) -> None:
    run = runs.new(generations=1)

    class NoArrays(ScriptedExecutor):
        has_arrays = False
        tasks_per_submission = 1

    # The scripted world names jobs as arrays do.
    accept = run.world.accept

    def accept_one(submission: Submission) -> str:
        job_id = accept(submission)
        run.world.tasks[job_id] = run.world.tasks.pop(f"{job_id}_0")
        return job_id

    run.world.accept = accept_one  # type: ignore[method-assign]
    state = run.drive(executor=NoArrays(run.world), now=Clock(run))
    assert state.status is RunStatus.FINISHED
    assert {one.is_array for one in state.submissions.values()} == {False}
    jobs = [e.attempts[0].job_id for e in state.evaluations.values()]
    assert jobs == [one.job_id for one in state.submissions.values()]
    # What is on record says so to whoever reads it next.
    assert load_run(run.folder).state.submissions == state.submissions
