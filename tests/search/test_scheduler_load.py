"""Load on the scheduler: real commands on PATH, and a clock that the test moves."""

import itertools
import random
from collections import Counter
from collections.abc import Callable, Iterator
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest

from elmanctl import clock
from elmanctl.errors import EnvironmentNotReady
from elmanctl.ledger.records import State, VerdictKind
from elmanctl.ledger.requests import leave_request
from elmanctl.ledger.run_state import RunState
from elmanctl.ledger.submissions import SubmissionState
from elmanctl.schedulers.slurm_executor import SlurmExecutor
from elmanctl.search import asynchronous, sharing
from elmanctl.search.fitness import worst_reported
from elmanctl.search.loop import Controller
from elmanctl.search.poll import QueryPace
from elmanctl.search.session import Session
from tests.schedulers.slurm_tools import SlurmTools
from tests.search.scripted import Run, Runs, write_result

pytestmark = pytest.mark.usefixtures("no_power_failures")

POLL_S = 60.0
TURN_S = 5.0
QUERIES = ("squeue", "sacct", "scontrol")
LOST_ANSWER = "sbatch: error: Batch job submission failed: Socket timed out on send/recv operation"
TOO_LARGE = "sbatch: error: Batch job submission failed: Invalid job array specification"


class Cluster:
    """Slurm's commands for one run, and the controller that calls them.

    `unlisted` are evaluations whose jobs squeue never lists; `lists_intended` says whether a
    submission whose answer was lost was accepted all the same.
    """

    def __init__(self, run: Run, tools: SlurmTools, max_jobs: int) -> None:
        self.run = run
        self.tools = tools
        self.now = 0.0
        self.asked: list[tuple[float, str]] = []
        self.unlisted: set[str] = set()
        self.lists_intended = True
        self.every_turn: Callable[[Session], None] = lambda session: None
        self._seen = 0
        self._max_jobs = max_jobs
        (tools.folder / "count").write_text("100\n", encoding="utf-8")
        self.accept()
        tools.answer("sacct")
        tools.answer("squeue")
        tools.answer("scancel")
        tools.answer("scontrol", "MaxArraySize            = 4\n")

    def accept(self) -> None:
        """Let sbatch take what it gets."""
        count = "read -r n < count; n=$((n + 1)); echo $n > count; echo $n"
        self.tools.answer("sbatch", does=count)

    def refuse(self, words: str) -> None:
        """Let sbatch answer with an error."""
        self.tools.answer("sbatch", stderr=words + "\n", code=1)

    def drive(self, minutes: float) -> RunState:
        """Let a controller work for so long, by its own clock."""
        end = self.now + 60 * minutes
        run = self.run

        def turn(session: Session) -> None:
            calls = self.tools.calls
            self.asked += [
                (self.now, call[0]) for call in calls[self._seen :] if call[0] in QUERIES
            ]
            self._seen = len(calls)
            self.now += TURN_S
            self.every_turn(session)
            self._list(session.state)
            if self.now >= end:
                run.stop.set()

        run.view.every_turn = turn
        run.stop.clear()
        with Session.open(run.folder) as session:
            session.start_controller()
            self._list(session.state)
            executor = SlurmExecutor(run.paths, max_jobs=self._max_jobs)
            Controller(
                session,
                executor,
                run.view,
                pace=QueryPace(POLL_S, now=lambda: self.now),
                tick_s=0.0,
                stop=run.stop,
                now=lambda: self.now,
            ).drive()
            return session.state

    def _list(self, state: RunState) -> None:
        """Let squeue list what a cluster would list now."""
        rows = []
        for evaluation, attempt in state.live_attempts():
            name = state.submissions[attempt.submission].job_name
            if attempt.job_id is not None and evaluation.id not in self.unlisted:
                array = attempt.job_id.partition("_")[0]
                rows.append(f"{attempt.job_id}|RUNNING|None|n1|{array}|0|0|{name}")
        number = itertools.count(9000)
        if self.lists_intended:
            rows += [
                f"{one}_0|PENDING|Priority||{one}|0|0|{submission.job_name}"
                for submission in state.submissions.values()
                if submission.state is SubmissionState.INTENDED
                for one in [next(number)]
            ]
        text = "".join(f"{row}\n" for row in rows)
        (self.tools.folder / "squeue.out").write_text(text, encoding="utf-8")

    def busiest_interval(self) -> int:
        """Return the most queries in any interval of `POLL_S`, its end left out."""
        times = [at for at, _ in self.asked]
        return max(sum(start <= at < start + POLL_S for at in times) for start in times)

    def vanish(self, name: str) -> Callable[[Session], None]:
        """Return what lets the job of an evaluation vanish once it runs."""

        def turn(session: Session) -> None:
            attempts = session.state.evaluations[name].attempts
            if attempts and attempts[0].state is State.RUNNING:
                self.unlisted.add(name)

        return turn

    def finish_one(self, session: Session) -> None:
        """Let the worker of the oldest running job leave its result."""
        for evaluation, attempt in session.state.live_attempts():
            if attempt.job_id is not None and evaluation.id not in self.unlisted:
                write_result(self.run.paths.attempt(evaluation.id, attempt.number), "completed")
                return


NewCluster = Callable[..., Cluster]


@pytest.fixture
def new_cluster(
    runs: Runs, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> Iterator[NewCluster]:
    def make(max_jobs: int, **settings: Any) -> Cluster:
        run = runs.new(max_jobs=max_jobs, **settings)
        return Cluster(run, SlurmTools(tmp_path / "bin", monkeypatch), max_jobs)

    yield make


@pytest.mark.parametrize("jobs", [1, 16, 500])
def test_two_commands_a_poll_are_asked_for_any_number_of_jobs(
    new_cluster: NewCluster, jobs: int
) -> None:
    cluster = new_cluster(jobs, population=max(4, jobs), generations=1)
    cluster.every_turn = cluster.vanish("g000-e00")
    state = cluster.drive(minutes=3.2)
    assert len(state.live_attempts()) == jobs
    assert cluster.busiest_interval() <= 2
    # sacct only for the one that squeue does not list.
    asked = [name for _, name in cluster.asked]
    assert asked.count("squeue") == 4
    assert 1 <= asked.count("sacct") <= 4


def test_two_commands_a_poll_are_asked_at_twelve_submissions_a_minute(
    new_cluster: NewCluster,
) -> None:
    cluster = new_cluster(8, population=48, generations=1)
    cluster.every_turn = cluster.finish_one
    state = cluster.drive(minutes=3)
    assert len(state.submissions) >= 30
    # Results are seen without asking anybody.
    assert state.counts()[State.COMPLETED] >= 30
    assert cluster.busiest_interval() <= 2
    assert len(cluster.asked) in (3, 4)


def test_two_commands_a_poll_are_asked_for_two_thousand_slots_of_an_asynchronous_search(
    new_cluster: NewCluster, monkeypatch: pytest.MonkeyPatch
) -> None:
    slots, ending = 2000, 10
    cluster = new_cluster(
        slots, population=slots, generations=2, mode="asynchronous", optimizer="random"
    )
    generator = random.Random(1)
    live: list[int] = []
    looks: Counter[str] = Counter()

    def counted(name: str, call: Callable[..., Any]) -> Callable[..., Any]:
        def count(*arguments: Any) -> Any:
            looks[name] += 1
            return call(*arguments)

        return count

    # What goes through all live attempts, or through all values that the optimizer knows.
    monkeypatch.setattr(sharing, "_holding", counted("holding", sharing._holding))
    monkeypatch.setattr(asynchronous, "worst_reported", counted("worst", worst_reported))

    def end_some(session: Session) -> None:
        attempts = session.state.live_attempts()
        live.append(len(attempts))
        running = [pair for pair in attempts if pair[1].state is State.RUNNING]
        for evaluation, attempt in generator.sample(running, min(ending, len(running))):
            paths = cluster.run.paths.attempt(evaluation.id, attempt.number)
            write_result(paths, "completed")

    cluster.every_turn = end_some
    state = cluster.drive(minutes=2.2)
    assert set(live) == {slots} and len(live) > 20
    assert len(state.reported) > 100 and len(state.evaluations) == slots + len(state.reported)
    # Each free slot was given away at once, by a submission a turn.
    assert cluster.busiest_interval() <= 2
    assert [name for _, name in cluster.asked] == ["squeue"] * 3
    assert looks["worst"] == 0 and looks["holding"] <= 3 * len(live)


@pytest.mark.parametrize("accepted", [True, False])
def test_two_commands_a_poll_are_asked_when_answers_are_lost_and_jobs_cancelled(
    new_cluster: NewCluster, accepted: bool
) -> None:
    cluster = new_cluster(8, population=48, generations=1)
    cluster.lists_intended = accepted
    turns = itertools.count()

    def disturb(session: Session) -> None:
        number = next(turns)
        cluster.finish_one(session)
        if number % 4 == 1:
            cluster.refuse(LOST_ANSWER)
        elif number % 4 == 3:
            cluster.accept()
        if number % 3 == 0:
            running = [e for e, a in session.state.live_attempts() if a.job_id is not None]
            names = [e.id for e in running[-1:] if e.state is not State.CANCELLED]
            cluster.unlisted |= set(names)
            leave_request(session.paths.folder, "cancel", {"all": False, "evaluations": names})

    cluster.every_turn = disturb
    state = cluster.drive(minutes=8)
    states = [submission.state for submission in state.submissions.values()]
    assert (states.count(SubmissionState.ABANDONED) == 0) is accepted
    assert state.counts()[State.CANCELLED] >= 3
    assert (
        sum(
            submission.state is SubmissionState.ACCEPTED
            for submission in state.submissions.values()
        )
        >= 5
    )
    assert cluster.tools.called("scancel") >= 3
    assert cluster.busiest_interval() <= 2
    assert 8 <= len(cluster.asked) <= 18


def test_two_commands_a_poll_are_asked_however_often_controllers_are_resumed(
    new_cluster: NewCluster, monkeypatch: pytest.MonkeyPatch
) -> None:
    cluster = new_cluster(8, population=12, generations=1, slurm={"poll_s": POLL_S})
    begun = clock.now()
    monkeypatch.setattr(clock, "now", lambda: begun + timedelta(seconds=cluster.now))
    cluster.unlisted = {"g000-e00"}
    for number in range(12):
        cluster.drive(minutes=(0.2, 0.7)[number % 2])
    # In five minutes and a half.
    assert [name for _, name in cluster.asked].count("squeue") >= 5
    assert cluster.busiest_interval() <= 2


def test_a_lost_answer_waits_for_the_next_look_of_the_next_controller(
    new_cluster: NewCluster, monkeypatch: pytest.MonkeyPatch
) -> None:
    cluster = new_cluster(8, population=12, generations=1, slurm={"poll_s": POLL_S})
    begun = clock.now()
    monkeypatch.setattr(clock, "now", lambda: begun + timedelta(seconds=cluster.now))
    cluster.drive(minutes=0.2)
    cluster.refuse(LOST_ANSWER)
    cluster.every_turn = cluster.finish_one
    assert cluster.drive(minutes=0.3).unanswered()
    asked = len(cluster.asked)
    cluster.accept()
    assert cluster.drive(minutes=0.2).unanswered()
    assert not cluster.drive(minutes=1.1).unanswered()
    assert len(cluster.asked) > asked
    assert cluster.busiest_interval() <= 2


def test_vanished_job_is_settled_within_two_polls(new_cluster: NewCluster) -> None:
    cluster = new_cluster(4, population=4, generations=1)
    cluster.every_turn = cluster.vanish("g000-e02")
    state = cluster.drive(minutes=2.2)
    verdict = state.evaluations["g000-e02"].attempts[0].verdict
    assert verdict is not None and verdict.kind is VerdictKind.LOST
    assert [name for _, name in cluster.asked] == ["squeue", *["squeue", "sacct"] * 2]


@pytest.mark.parametrize("accounting", ["", "Slurm accounting storage is disabled\n"])
def test_task_that_vanished_before_it_began_was_cancelled_and_is_not_run_again(
    new_cluster: NewCluster, accounting: str
) -> None:
    cluster = new_cluster(4, population=4, generations=1)
    cluster.tools.answer("sacct", stderr=accounting, code=int(bool(accounting)))
    cluster.unlisted = {"g000-e02"}
    state = cluster.drive(minutes=2.2)
    evaluation = state.evaluations["g000-e02"]
    assert (evaluation.state, len(evaluation.attempts)) == (State.CANCELLED, 1)
    assert len(state.live_attempts()) == 3


def test_without_accounting_it_is_the_same_and_sacct_is_asked_once(
    new_cluster: NewCluster,
) -> None:
    cluster = new_cluster(4, population=4, generations=1)
    cluster.tools.answer("sacct", stderr="Slurm accounting storage is disabled\n", code=1)
    cluster.every_turn = cluster.vanish("g000-e02")
    state = cluster.drive(minutes=2.2)
    verdict = state.evaluations["g000-e02"].attempts[0].verdict
    assert verdict is not None and verdict.kind is VerdictKind.LOST
    assert [name for _, name in cluster.asked] == ["squeue", "squeue", "sacct", "squeue"]


def test_array_that_is_too_large_is_split_after_one_question(new_cluster: NewCluster) -> None:
    cluster = new_cluster(64, population=10, generations=1)
    cluster.refuse(TOO_LARGE)
    # sbatch takes arrays of four: the first submission is all ten.
    cluster.every_turn = lambda session: cluster.accept()
    state = cluster.drive(minutes=1.2)
    sizes = [(len(one.tasks), one.state.value) for one in state.submissions.values()]
    assert sizes == [(10, "refused"), (4, "accepted"), (4, "accepted"), (2, "accepted")]
    assert len(state.live_attempts()) == 10
    assert [name for _, name in cluster.asked] == ["scontrol", "squeue"]
    assert cluster.busiest_interval() <= 2


def test_silent_scheduler_is_asked_ever_more_slowly_until_it_answers(
    new_cluster: NewCluster,
) -> None:
    cluster = new_cluster(4, population=4, generations=1)
    silent: dict[str, Any] = {"stderr": "slurm_load_jobs error: Unable to contact\n", "code": 1}

    def fall_silent(session: Session) -> None:
        if cluster.now == 30:
            cluster.tools.answer("squeue", **silent)
        elif cluster.now == 2900:
            cluster.tools.answer("squeue")

    cluster.every_turn = fall_silent
    state = cluster.drive(minutes=58)
    gaps = [later - earlier for (earlier, _), (later, _) in itertools.pairwise(cluster.asked)]
    # The first silence may be a hiccup; the answer at last sets the pace back.
    assert gaps == [60, 60, 120, 240, 480, 600, 600, 600, 600, *[60] * len(gaps[9:])]
    assert gaps[-1] == 60
    assert len(state.live_attempts()) == 4


def test_resume_says_at_once_that_the_scheduler_is_silent(new_cluster: NewCluster) -> None:
    cluster = new_cluster(4, population=4, generations=1)
    cluster.drive(minutes=0.1)
    cluster.tools.answer("squeue", stderr="slurm_load_jobs error: Unable to contact\n", code=1)
    with pytest.raises(EnvironmentNotReady, match="`squeue` failed"):
        cluster.drive(minutes=1)


def test_resume_while_the_scheduler_is_silent_concludes_nothing(new_cluster: NewCluster) -> None:
    cluster = new_cluster(4, population=4, generations=1)
    cluster.refuse(LOST_ANSWER)
    cluster.drive(minutes=0.1)
    cluster.tools.answer("squeue", stderr="slurm_load_jobs error: Unable to contact\n", code=1)
    with pytest.raises(EnvironmentNotReady, match="`squeue` failed") as caught:
        cluster.drive(minutes=1)
    assert caught.value.hint is not None and "1 submission" in caught.value.hint
