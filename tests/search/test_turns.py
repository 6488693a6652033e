"""Several runs driven by one process: equal progress, shared slots, and errors that stay apart."""

import itertools
import threading
import time
from collections.abc import Callable, Iterable, Sequence
from contextlib import ExitStack
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from elmanctl.constants import ASYNCHRONOUS
from elmanctl.errors import SearchPaused
from elmanctl.ledger.lease import Lease
from elmanctl.ledger.records import RunStatus, State
from elmanctl.ledger.requests import leave_request
from elmanctl.ledger.run_state import RunState
from elmanctl.ledger.submissions import Task
from elmanctl.schedulers.executor import Executor
from elmanctl.schedulers.slurm_executor import SlurmExecutor
from elmanctl.search.loop import Controller
from elmanctl.search.poll import QueryPace
from elmanctl.search.session import Session
from elmanctl.search.sharing import Sharing, divide
from elmanctl.search.turns import Member, drive_in_turns
from tests.schedulers.slurm_tools import SlurmTools
from tests.search.scripted import Run, Runs, ScriptedExecutor

pytestmark = pytest.mark.usefixtures("no_power_failures")

counts = st.lists(st.tuples(st.integers(0, 12), st.integers(0, 30)), min_size=1, max_size=6)


@given(free=st.integers(0, 40), runs=counts)
def test_free_slots_go_to_the_runs_that_are_least_far(
    free: int, runs: list[tuple[int, int]]
) -> None:
    wanted, started = zip(*runs, strict=True)
    given = divide(free, wanted, started)
    assert sum(given) == min(free, sum(wanted))
    assert all(0 <= got <= most for got, most in zip(given, wanted, strict=True))
    after = [began + got for began, got in zip(started, given, strict=True)]
    for one, other in itertools.permutations(range(len(runs)), 2):
        # Who got a slot is not ahead of anybody who wanted one more.
        if given[one] and given[other] < wanted[other]:
            assert after[one] <= after[other] + 1


class Workstation(ScriptedExecutor):
    """Numbered slots, with one attempt on each."""

    tasks_per_submission = 1

    def free_slots(self, busy: Iterable[Task]) -> Sequence[int | None]:
        taken = {task.slot for task in busy}
        return [slot for slot in range(self.slots) if slot not in taken]


class Together:
    """Runs that are driven in turns, and what is seen of them in each turn."""

    def __init__(self, runs: Sequence[Run]) -> None:
        self.runs = runs
        self.stop = threading.Event()
        self.every_turn: Callable[[list[RunState]], None] = lambda states: None
        self.ended: list[tuple[str, str]] = []

    def drive(
        self,
        make_executor: Callable[[Run], Executor],
        *,
        pace: Callable[[], QueryPace] = lambda: QueryPace(0.0),
        now: Callable[[], float] | None = None,
    ) -> list[Member]:
        sharing = Sharing()
        with ExitStack() as stack:
            sessions = [stack.enter_context(Session.open(run.folder)) for run in self.runs]
            members = []
            for run, session in zip(self.runs, sessions, strict=True):
                session.start_controller()
                run.view.every_turn = lambda _: self.every_turn([one.state for one in sessions])
                controller = Controller(
                    session,
                    make_executor(run),
                    run.view,
                    pace=pace(),
                    tick_s=0.0,
                    stop=self.stop,
                    sharing=sharing,
                    now=now or time.monotonic,
                )
                members.append(Member(session, controller))
            drive_in_turns(members, tick_s=0.0, stop=self.stop, ended=self._end)
            return members

    def _end(self, member: Member) -> None:
        self.ended.append((member.name, member.session.state.status.value))
        # Its lease is free: a paused run can be resumed at once.
        Lease.acquire(member.session.paths.folder).release()


def on(slots: int) -> Callable[[Run], Executor]:
    return lambda run: Workstation(run.world, slots)


def live_slots(states: Sequence[RunState]) -> list[int | None]:
    return [
        task.slot
        for state in states
        for evaluation, attempt in state.live_attempts()
        for task in state.submissions[attempt.submission].tasks
        if task.evaluation == evaluation.id
    ]


def started(state: RunState) -> int:
    return sum(bool(evaluation.attempts) for evaluation in state.evaluations.values())


@pytest.mark.parametrize("slots", [1, 2, 5])
def test_runs_get_equally_far_and_never_two_on_one_slot(runs: Runs, slots: int) -> None:
    together = Together([runs.new(), runs.new(), runs.new()])
    together.runs[0].world.script = {"g000-e01": ["node_failure"], "g001-e02": ["timeout"]}
    busiest = 0

    def look(states: list[RunState]) -> None:
        nonlocal busiest
        live = live_slots(states)
        assert len(set(live)) == len(live) <= slots
        busiest = max(busiest, len(live))
        waiting = [state for state in states if state.waiting_evaluations()]
        if len(waiting) == 3 and len(live) == slots:
            progress = [started(state) for state in states]
            assert max(progress) - min(progress) <= 1

    together.every_turn = look
    members = together.drive(on(slots))
    assert [member.error for member in members] == [None] * 3
    assert busiest == slots
    for member in members:
        assert member.session.state.status is RunStatus.FINISHED
        assert member.session.state.counts()[State.COMPLETED] == 8


def test_asynchronous_searches_share_the_slots_and_leave_none_idle(runs: Runs) -> None:
    together = Together([runs.new(mode=ASYNCHRONOUS, generations=4) for _ in range(2)])
    together.runs[0].world.script = {"g000-e01": ["python_error"], "g001-e02": ["node_failure"]}
    live: list[int] = []
    progress: list[int] = []

    def look(states: list[RunState]) -> None:
        slots = live_slots(states)
        assert len(set(slots)) == len(slots) <= 3
        if all(len(state.evaluations) < 16 for state in states):
            live.append(len(slots))
            progress.append(abs(started(states[0]) - started(states[1])))

    together.every_turn = look
    members = together.drive(on(3))
    assert [member.error for member in members] == [None] * 2
    for member in members:
        assert member.session.state.counts()[State.COMPLETED] == 16
    # What became free after a run had its turn is filled in the next one.
    assert {max(live[i : i + 6]) for i in range(len(live) - 5)} == {3} and len(live) > 20
    assert max(progress) <= 2


def test_run_that_cannot_ask_takes_no_share_of_the_slots(runs: Runs) -> None:
    """All places of the first run are asked but those of repeats that wait for the slow one."""
    few = {
        "n_heads": {"kind": "int", "low": 4, "high": 5},
        "lr": {"kind": "choice", "values": [1e-2, 2e-2]},
    }
    blocked = runs.new(mode=ASYNCHRONOUS, generations=9, axes=few, optimizer="random")
    other = runs.new(mode=ASYNCHRONOUS, generations=9)
    together = Together([blocked, other])
    blocked.world.held = {f"g{g:03}-e{e:02}" for g in range(9) for e in range(4)}
    seen: list[list[int]] = []

    def look(states: list[RunState]) -> None:
        if len(states[1].evaluations) < 36:
            seen.append([len(live_slots([state])) for state in states])
        else:
            blocked.world.held = set()

    together.every_turn = look
    members = together.drive(on(8))
    assert [member.error for member in members] == [None] * 2
    # Four configurations, and then four repeats that wait: the rest of the slots are the other's.
    assert max(one for one, _ in seen) == 4
    others = [two for _, two in seen]
    assert {max(others[i : i + 4]) for i in range(2, len(others) - 3)} == {4}


def test_company_changes_nothing_that_a_search_finds(runs: Runs) -> None:
    alone = runs.new().drive()
    for member in Together([runs.new(), runs.new(seed=4)]).drive(on(3)):
        state = member.session.state
        same = {e.id: (e.point, e.loss) for e in state.evaluations.values()} == {
            e.id: (e.point, e.loss) for e in alone.evaluations.values()
        }
        assert same is (state.run["optimizer"]["seed"] == 3)


def test_run_that_pauses_leaves_its_share_to_the_others(runs: Runs) -> None:
    together = Together([runs.new(), runs.new(), runs.new()])
    together.runs[1].world.everywhere = "python_error"
    broken, *good = (together.runs[1], together.runs[0], together.runs[2])
    members = together.drive(on(2))
    errors = {member.session.paths.folder: member.error for member in members}
    assert isinstance(errors[broken.folder], SearchPaused)
    assert [errors[run.folder] for run in good] == [None, None]
    assert sorted(status for _, status in together.ended) == ["finished", "finished", "paused"]
    # It is an ordinary run: once its cause is gone, it goes on alone.
    broken.world.everywhere = None
    state = broken.drive()
    assert state.status in (RunStatus.FINISHED, RunStatus.PAUSED)


def test_worker_of_a_paused_run_keeps_its_slot_until_it_ends(runs: Runs) -> None:
    together = Together([runs.new(), runs.new()])
    broken, good = (run.world for run in together.runs)
    # One of its workers goes on while the failures of the others stop the run.
    broken.held = {"g000-e00"}
    broken.everywhere = "python_error"
    seen: list[set[int | None]] = []

    def look(states: list[RunState]) -> None:
        paused, other = states
        if paused.status is RunStatus.PAUSED:
            seen.append(set(live_slots([other])))
            (held,) = live_slots([paused])
            job = next(attempt.job_id for _, attempt in paused.live_attempts())
            assert job is not None
            if job in broken.ended:
                return
            assert held not in live_slots([other])
            if len(seen) > 6:
                broken.end(job, "completed")

    together.every_turn = look
    members = together.drive(on(2))
    assert isinstance(members[0].error, SearchPaused) and members[1].error is None
    # After its end both slots are used.
    assert max(len(slots) for slots in seen) == 2 > max(len(slots) for slots in seen[:6])
    assert good.trained


def test_all_are_interrupted_and_each_goes_on_alone(runs: Runs) -> None:
    together = Together([runs.new(), runs.new(), runs.new()])

    def look(states: list[RunState]) -> None:
        if sum(map(started, states)) == 7:
            together.stop.set()

    together.every_turn = look
    members = together.drive(on(2))
    states = [member.session.state for member in members]
    assert {state.status for state in states} == {RunStatus.INTERRUPTED}
    assert sorted(map(started, states)) == [2, 2, 3]
    for run in together.runs:
        # The jobs go on without a controller, and are adopted by the next.
        state = run.drive(executor=Workstation(run.world, 2))
        assert state.counts()[State.COMPLETED] == 8
        assert set(run.world.trained.values()) == {1}


def test_cancelled_run_leaves_and_the_others_finish(runs: Runs) -> None:
    together = Together([runs.new(), runs.new()])
    first = together.runs[0]

    def look(states: list[RunState]) -> None:
        if started(states[0]) == 3 and states[0].status is RunStatus.RUNNING:
            leave_request(first.folder, "cancel", {"all": True, "evaluations": []})

    together.every_turn = look
    members = together.drive(on(2))
    statuses = [member.session.state.status for member in members]
    assert statuses == [RunStatus.CANCELLED, RunStatus.FINISHED]
    assert [member.error for member in members] == [None, None]


POLL_S = 60.0
MAX_JOBS = 7
TURN_S = 5.0


class SharedCluster:
    """Slurm's commands for several runs, of which no job ends well."""

    def __init__(self, together: Together, tools: SlurmTools) -> None:
        self.together = together
        self.tools = tools
        self.now = 0.0
        self.asked: list[float] = []
        self.most = 0
        self._seen = 0
        (tools.folder / "count").write_text("100\n", encoding="utf-8")
        count = "read -r n < count; n=$((n + 1)); echo $n > count; echo $n"
        tools.answer("sbatch", does=count)
        for command in ("sacct", "squeue", "scancel", "scontrol"):
            tools.answer(command)

    def turn(self, states: list[RunState]) -> None:
        """Let time pass, and squeue list all jobs but the first of each run."""
        calls = self.tools.calls
        self.asked += [self.now for call in calls[self._seen :] if call[0] in ("squeue", "sacct")]
        self._seen = len(calls)
        self.now += TURN_S / len(states)
        rows = []
        for state in states:
            live = state.live_attempts()
            for _, attempt in live[1:]:
                if attempt.job_id is not None:
                    name = state.submissions[attempt.submission].job_name
                    array = attempt.job_id.partition("_")[0]
                    rows.append(f"{attempt.job_id}|RUNNING|None|n1|{array}|0|0|{name}")
        self.most = max(self.most, sum(len(state.live_attempts()) for state in states))
        text = "".join(f"{row}\n" for row in rows)
        (self.tools.folder / "squeue.out").write_text(text, encoding="utf-8")

    def drive(self, minutes: float) -> list[RunState]:
        """Let the controllers work for so long, by their own clock."""
        pace = QueryPace(POLL_S, now=lambda: self.now)

        def turn(states: list[RunState]) -> None:
            self.turn(states)
            if self.now >= 60 * minutes:
                self.together.stop.set()

        self.together.every_turn = turn
        members = self.together.drive(
            lambda run: SlurmExecutor(run.paths, max_jobs=MAX_JOBS),
            pace=lambda: pace,
            now=lambda: self.now,
        )
        assert [member.error for member in members] == [None] * len(members)
        return [member.session.state for member in members]


@pytest.fixture
def shared_cluster(runs: Runs, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> SharedCluster:
    made = [runs.new(slurm={"poll_s": POLL_S}, population=6, max_jobs=MAX_JOBS) for _ in range(3)]
    return SharedCluster(Together(made), SlurmTools(tmp_path / "bin", monkeypatch))


def test_jobs_in_flight_are_divided_between_runs(shared_cluster: SharedCluster) -> None:
    states = shared_cluster.drive(minutes=0.5)
    assert sorted(len(state.live_attempts()) for state in states) == [2, 2, 3]
    # One array each: a share is not submitted job by job.
    assert shared_cluster.tools.called("sbatch") == 3


def test_two_commands_a_poll_are_asked_for_any_number_of_runs(
    shared_cluster: SharedCluster,
) -> None:
    states = shared_cluster.drive(minutes=14)
    assert shared_cluster.most == MAX_JOBS
    times = shared_cluster.asked
    busiest = max(sum(start <= at < start + POLL_S for at in times) for start in times)
    assert busiest <= 2
    assert len(times) >= 24
    # Each run is asked about in its turn: what squeue lacks is noticed in all of them.
    for state in states:
        attempts = [a for e in state.evaluations.values() for a in e.attempts if a.verdict]
        assert any(a.verdict and a.verdict.kind.value == "lost" for a in attempts)
