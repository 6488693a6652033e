"""Attempt monitor: from reports of the scheduler to recorded verdicts, with grace periods."""

import json
import os
import time
from collections.abc import Iterator
from typing import Any

import pytest

from elmanctl.ledger.files import write_json
from elmanctl.ledger.payloads import EvaluationClosed
from elmanctl.ledger.records import State
from elmanctl.schedulers.executor import JobReport, JobState
from elmanctl.schedulers.scheduler_note import read_note
from elmanctl.search.attempt_monitor import RESULT_GRACE_S, Watcher
from elmanctl.search.poll import Poller, QueryPace
from elmanctl.search.session import Session
from elmanctl.verdicts.policy import FROM_OUTSIDE, rule_of
from tests.search.scripted import Run, Runs, ScriptedExecutor, write_result

pytestmark = pytest.mark.usefixtures("no_power_failures")


class Watched:
    """A run with one submission at work, a watcher, and a clock that a test moves."""

    def __init__(self, run: Run) -> None:
        run.world.held = {f"g000-e0{index}" for index in range(4)}
        run.view.every_turn = lambda session: (
            run.stop.set() if len(session.state.live_attempts()) == 4 else None
        )
        run.drive()
        self.run = run
        self.now = 1000.0
        self.session = Session.open(run.folder)
        executor = ScriptedExecutor(run.world)
        self.poller = Poller(self.session, executor, QueryPace(30.0, now=lambda: self.now))
        self.watcher = Watcher(self.session, executor, now=lambda: self.now)
        self.job = self.session.state.evaluations["g000-e01"].attempts[0].job_id or ""

    def report(self, state: JobState, raw: str = "", **details: Any) -> None:
        """Let the scheduler say this of the job from now on."""
        self.run.world.ended[self.job] = JobReport(state=state, raw=raw, **details)

    def look(self, after_s: float = 30.0) -> list[tuple[str, str]]:
        self.now += after_s
        return [(e.id, v.kind.value) for e, v in self.watcher.look(self.poller.poll())]

    def beat(self, age_s: float) -> None:
        """Leave a heartbeat of this age; `heartbeat_s` is 0.01."""
        path = self.run.paths.attempt("g000-e01", 1).heartbeat
        path.write_text('{"at": "x", "phase": "training", "step": 3, "host": "n7"}')
        os.utime(path, (time.time() - age_s, time.time() - age_s))


@pytest.fixture
def watched(runs: Runs) -> Iterator[Watched]:
    found = Watched(runs.new())
    yield found
    found.session.close()


def test_result_is_seen_without_asking_the_scheduler(watched: Watched) -> None:
    assert watched.look() == []
    write_result(watched.run.paths.attempt("g000-e01", 1), "completed")
    watched.run.world.silent = True
    assert watched.look(after_s=0.5) == [("g000-e01", "completed")]
    evaluation = watched.session.state.evaluations["g000-e01"]
    assert evaluation.loss is not None
    assert evaluation.attempts[0].node == "n1"


def test_scheduler_is_asked_no_more_often_than_allowed(watched: Watched) -> None:
    watched.look()
    watched.report(JobState.ENDED, "NODE_FAIL")
    assert watched.look(after_s=29.0) == []
    assert watched.look(after_s=1.0) == [("g000-e01", "node_failure")]


@pytest.mark.parametrize("raw", ["COMPLETED", "FAILED"])
def test_job_that_should_have_left_a_result_is_given_time_for_it(
    watched: Watched, raw: str
) -> None:
    """A shared file system shows what a node wrote only after a while."""
    watched.report(JobState.ENDED, raw, exit_code=0)
    assert watched.look() == []
    assert watched.look(after_s=RESULT_GRACE_S - 1) == []
    write_result(watched.run.paths.attempt("g000-e01", 1), "completed")
    assert watched.look(after_s=0.1) == [("g000-e01", "completed")]


def test_job_that_never_leaves_its_result_is_judged_without_it(watched: Watched) -> None:
    watched.report(JobState.ENDED, "COMPLETED", exit_code=0)
    assert watched.look() == []
    # Not at the next poll, which may be a minute away.
    assert watched.look(after_s=RESULT_GRACE_S) == [("g000-e01", "undetermined")]


def test_attempt_that_a_job_out_of_sight_works_on_is_waited_for(watched: Watched) -> None:
    """As after a controller that was paused before sbatch: our own job has found the claim."""
    claim = watched.run.paths.attempt("g000-e01", 1).claim
    claim.write_text('{"job_id": "77_0", "restart": 0}', encoding="utf-8")
    watched.report(JobState.ENDED, "COMPLETED", exit_code=0)
    for _ in range(5):
        watched.beat(age_s=-60.0)
        assert watched.look() == []
    watched.beat(age_s=5.0)
    assert watched.look() == [("g000-e01", "undetermined")]


@pytest.mark.parametrize(
    "report",
    [
        JobReport(state=JobState.ENDED, raw="FAILED", exit_code=1, signal=9),
        JobReport(state=JobState.ENDED, raw="TIMEOUT"),
        JobReport(state=JobState.ENDED, raw="CANCELLED by 0"),
    ],
    ids=lambda report: report.raw,
)
def test_job_that_had_no_time_for_a_result_is_judged_at_once(
    watched: Watched, report: JobReport
) -> None:
    watched.run.world.ended[watched.job] = report
    assert len(watched.look()) == 1


def test_job_that_vanished_is_lost_only_when_it_is_missed_twice(watched: Watched) -> None:
    watched.report(JobState.VANISHED)
    assert watched.look() == []
    assert watched.look() == [("g000-e01", "lost")]


def test_job_that_comes_back_is_not_lost(watched: Watched) -> None:
    watched.report(JobState.VANISHED)
    assert watched.look() == []
    watched.report(JobState.RUNNING, "RUNNING")
    assert watched.look() == []
    watched.report(JobState.VANISHED)
    assert watched.look() == []


def test_job_that_vanished_and_yet_gives_signs_of_life_is_waited_for(watched: Watched) -> None:
    watched.report(JobState.VANISHED)
    for _ in range(5):
        # Not yet due: however slow this machine is, the beat is fresh.
        watched.beat(age_s=-60.0)
        assert watched.look() == []
    watched.beat(age_s=5.0)
    assert watched.look() == [("g000-e01", "lost")]
    attempt = watched.session.state.evaluations["g000-e01"].attempts[0]
    # The scheduler never named a node, and the worker did.
    assert attempt.node == "n7"


def test_silence_is_not_the_end_of_anything_and_its_reason_is_known(watched: Watched) -> None:
    watched.run.world.silent = True
    for _ in range(5):
        assert watched.look() == []
    assert watched.poller.silent_reason == "`squeue` did not answer; asking again in 2m"
    assert len(watched.session.state.live_attempts()) == 4
    watched.run.world.silent = False
    watched.look(after_s=120.0)
    assert watched.poller.silent_reason is None


def test_job_that_vanished_while_accounting_is_silent_is_given_more_time(watched: Watched) -> None:
    """Accounting may yet tell how it ended."""
    watched.report(JobState.VANISHED, reason="`sacct` failed: Connection refused")
    for _ in range(4):
        assert watched.look() == []
    assert watched.look() == [("g000-e01", "lost")]


def test_job_that_only_accounting_takes_for_alive_is_never_run_again(watched: Watched) -> None:
    """As after slurmctld lost its state: accounting never hears of the end."""
    # The poller leaves a note for `status` where Slurm is asked.
    options: Any = watched.session.state.run
    options["executor"] = "slurm"
    watched.report(JobState.RUNNING, "RUNNING", node="n1", is_unlisted=True)
    watched.beat(age_s=7200.0)
    for _ in range(10):
        assert watched.look() == []
    assert len(watched.session.state.evaluations["g000-e01"].attempts) == 1
    note = read_note(watched.run.paths.scheduler)
    assert note is not None
    assert note.unlisted[watched.job] == (
        "sacct says RUNNING, squeue does not know it; last sign of life 2h ago; "
        "if it is gone, cancel and requeue it"
    )


def test_job_that_only_accounting_takes_for_alive_ends_when_it_is_cancelled(
    watched: Watched,
) -> None:
    watched.report(JobState.RUNNING, "RUNNING", is_unlisted=True)
    watched.session.record(EvaluationClosed(evaluation="g000-e01", state=State.CANCELLED))
    watched.beat(age_s=-60.0)
    # It gives signs of life: accounting is right.
    assert [watched.look() for _ in range(3)] == [[]] * 3
    watched.beat(age_s=5.0)
    assert watched.look() == [("g000-e01", "cancelled")]


def test_result_of_a_job_that_only_accounting_takes_for_alive_counts(watched: Watched) -> None:
    watched.report(JobState.RUNNING, "RUNNING", is_unlisted=True)
    write_result(watched.run.paths.attempt("g000-e01", 1), "completed")
    (watched.run.paths.finished / "g000-e01-1").unlink()
    assert watched.look() == [("g000-e01", "completed")]


def test_task_that_was_taken_back_before_it_began_is_not_run_again(watched: Watched) -> None:
    watched.report(JobState.VANISHED, has_siblings=True)
    assert watched.look() == []
    assert watched.look() == [("g000-e01", "cancelled")]
    evaluation = watched.session.state.evaluations["g000-e01"]
    assert evaluation.attempts[0].verdict is not None
    assert rule_of(evaluation.attempts[0].verdict).case == FROM_OUTSIDE


def test_marker_alone_tells_of_a_result_and_goes_when_it_is_on_record(watched: Watched) -> None:
    write_result(watched.run.paths.attempt("g000-e01", 1), "completed")
    marker = watched.run.paths.finished / "g000-e01-1"
    assert marker.exists()
    assert watched.look(after_s=0.0) == [("g000-e01", "completed")]
    assert not marker.exists()
    # Left over where a controller was killed before it removed it.
    marker.touch()
    assert watched.look(after_s=0.0) == []
    assert not marker.exists()


def test_marker_that_is_seen_before_its_result_is_kept(watched: Watched) -> None:
    marker = watched.run.paths.finished / "g000-e01-1"
    marker.touch()
    assert watched.look(after_s=0.0) == []
    assert marker.exists()


def test_files_that_are_no_markers_are_left_alone(watched: Watched) -> None:
    names = ["note.txt", "g000-e01", "g000-e01-9", "g999-e99-1", "-", "g000-e01-1x"]
    for name in names:
        (watched.run.paths.finished / name).touch()
    assert watched.look(after_s=0.0) == []
    assert sorted(p.name for p in watched.run.paths.finished.iterdir()) == sorted(names)


def test_result_without_its_marker_is_found_by_the_end_of_its_job(watched: Watched) -> None:
    """The worker was killed between the two."""
    write_result(watched.run.paths.attempt("g000-e01", 1), "completed")
    (watched.run.paths.finished / "g000-e01-1").unlink()
    assert watched.look(after_s=0.0) == []
    watched.report(JobState.ENDED, "COMPLETED", exit_code=0)
    assert watched.look() == [("g000-e01", "completed")]


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("evaluation", "g000-e02"),
        ("attempt", 2),
        ("attempt", "1"),
        ("parameters_expected", 7),
        ("parameters", 7),
    ],
)
def test_result_of_another_attempt_is_no_result(watched: Watched, key: str, value: object) -> None:
    paths = watched.run.paths.attempt("g000-e01", 1)
    write_result(paths, "completed")
    write_json(paths.result, {**json.loads(paths.result.read_text(encoding="utf-8")), key: value})
    assert watched.look(after_s=0.0) == [("g000-e01", "undetermined")]
    attempt = watched.session.state.evaluations["g000-e01"].attempts[0]
    assert attempt.result is None and attempt.verdict is not None
    (quote,) = attempt.verdict.evidence
    assert key in quote.text and repr(value) in quote.text
    assert quote.file == "evaluations/g000-e01/attempt-1/result.json"


def test_result_of_an_older_worker_that_does_not_say_whose_it_is_counts(watched: Watched) -> None:
    paths = watched.run.paths.attempt("g000-e01", 1)
    write_result(paths, "completed")
    told = json.loads(paths.result.read_text(encoding="utf-8"))
    for key in ("evaluation", "attempt", "parameters_expected"):
        del told[key]
    write_json(paths.result, told)
    assert watched.look(after_s=0.0) == [("g000-e01", "completed")]


def test_ended_duplicate_is_not_judged_while_the_job_with_the_claim_trains(
    watched: Watched,
) -> None:
    paths = watched.run.paths.attempt("g000-e01", 1)
    write_json(paths.claim, {"job_id": "another_0", "restart": 0})
    watched.report(JobState.ENDED, "COMPLETED", exit_code=0)
    for _ in range(3):
        watched.beat(age_s=-60.0)
        assert watched.look() == []
    write_result(paths, "completed")
    assert watched.look(after_s=0.0) == [("g000-e01", "completed")]


def test_ended_duplicate_is_judged_when_the_job_with_the_claim_is_dead_too(
    watched: Watched,
) -> None:
    paths = watched.run.paths.attempt("g000-e01", 1)
    write_json(paths.claim, {"job_id": "another_0", "restart": 0})
    watched.report(JobState.ENDED, "COMPLETED", exit_code=0)
    watched.beat(age_s=-60.0)
    assert watched.look() == []
    watched.beat(age_s=5.0)
    assert watched.look(after_s=RESULT_GRACE_S) == [("g000-e01", "undetermined")]


def test_start_of_a_job_is_recorded_once_with_its_node(watched: Watched) -> None:
    before = watched.session.state.seq
    watched.report(JobState.RUNNING, "RUNNING", node="gpu-03")
    watched.look()
    attempt = watched.session.state.evaluations["g000-e01"].attempts[0]
    assert (attempt.state, attempt.node) == (State.RUNNING, "gpu-03")
    seq = watched.session.state.seq
    assert seq > before
    watched.look()
    assert watched.session.state.seq == seq


def test_what_an_attempt_left_on_disk_is_measured(watched: Watched) -> None:
    paths = watched.run.paths.attempt("g000-e01", 1)
    paths.metrics.write_bytes(b"x" * 100_000)
    watched.report(JobState.ENDED, "TIMEOUT")
    watched.look()
    attempt = watched.session.state.evaluations["g000-e01"].attempts[0]
    assert attempt.size_bytes is not None and attempt.size_bytes >= 100_000


@pytest.mark.parametrize("by", ["lost", "failed"])
def test_node_of_the_rank_that_ended_is_the_one_on_record(watched: Watched, by: str) -> None:
    paths = watched.run.paths.attempt("g000-e01", 1)
    watched.report(JobState.RUNNING, "RUNNING", node="n[1-2]")
    assert watched.look() == []
    if by == "lost":
        lost = {"rank": 1, "count": 2, "node": "n2", "how": "ended without a word"}
        paths.heartbeat.write_text(json.dumps({"host": "n1", "lost_rank": lost}))
        watched.report(JobState.ENDED, "NODE_FAIL", node="n[1-2]", exit_code=1)
    else:
        write_result(paths, "environment")
        result = json.loads(paths.result.read_text())
        paths.result.write_text(json.dumps({**result, "failed_rank": 1, "failed_on": "n2"}))
        watched.report(JobState.ENDED, "FAILED", node="n[1-2]", exit_code=1)
    kind = "node_failure" if by == "lost" else "environment"
    assert watched.look() == [("g000-e01", kind)]
    assert watched.session.state.evaluations["g000-e01"].attempts[0].node == "n2"
