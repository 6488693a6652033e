"""The real loop under every mixture of failures, commands, kills, limits and a full disk."""

import errno
import math
import os
import shutil
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, ClassVar

import pytest
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import (
    RuleBasedStateMachine,
    initialize,
    invariant,
    rule,
    run_state_machine_as_test,
)

from elmanctl.errors import ElmanError, LedgerError, SearchPaused
from elmanctl.ledger import snapshot
from elmanctl.ledger.disk import Space
from elmanctl.ledger.files import write_json
from elmanctl.ledger.payloads import Payload
from elmanctl.ledger.quota import Quota
from elmanctl.ledger.records import Evaluation, RunStatus, State, VerdictKind
from elmanctl.ledger.requests import leave_request
from elmanctl.ledger.run_state import RunState
from elmanctl.ledger.snapshot import load_summary
from elmanctl.ledger.spending import Spent, cost_of, devices
from elmanctl.ledger.state import load_run
from elmanctl.ledger.submissions import SubmissionState
from elmanctl.ledger.summary import summarize
from elmanctl.search import disk_admission
from elmanctl.search.actions import perform
from elmanctl.search.attempt_monitor import Watcher
from elmanctl.search.confirmation import standing
from elmanctl.search.confirmation_plan import due_confirmations
from elmanctl.search.disk_errors import explained
from elmanctl.search.effective_settings import effective_settings
from elmanctl.search.session import Session
from tests.long import LONG
from tests.search.scripted import Run, Runs, ScriptedExecutor, World

pytestmark = pytest.mark.usefixtures("no_power_failures")

POPULATION = 4
GENERATIONS = 3
WORDS = sorted({*(kind.value for kind in VerdictKind), "oom gpu", "oom neighbour"})
WORDS += ["cuda_error device"]

# Twelve models in all, so that points are asked again.
SEARCH: dict[str, Any] = {
    "axes": {
        "n_heads": {"kind": "int", "low": 1, "high": 4},
        "depth": {"kind": "int", "low": 1, "high": 3},
    },
    "model": {"dim": 32, "n_state": 8, "lr": 1e-2},
    "generations": GENERATIONS,
    "population": POPULATION,
}

# More turns than any search here can need: one that takes them goes round in circles.
TURNS = 400
PAUSES = 40
ELAPSED_S = 90.0


class Killed(BaseException):
    """What ends a controller between two steps."""


class Billed(World):
    """Jobs that last a minute and a half each, and end as the next word says."""

    def __init__(self, folder: Path) -> None:
        super().__init__(folder)
        self.words: list[str] = []

    def _verdict(self, evaluation: str, attempt: int) -> str:
        return self.words.pop(0) if self.words else "completed"

    def end(self, job_id: str, verdict: str) -> None:
        evaluation, attempt = self.tasks[job_id]
        beat = {"started_at": "2026-01-01T00:00:00.000Z", "at": "2026-01-01T00:01:30.000Z"}
        heartbeat = self.paths.attempt(evaluation, attempt).heartbeat
        write_json(heartbeat, beat)
        # An old one: a job that is lost gives no sign of life.
        os.utime(heartbeat, (0, 0))
        super().end(job_id, verdict)


class Searches(RuleBasedStateMachine):
    """One run, and everything that may happen to it."""

    runs: ClassVar[Runs]

    def __init__(self) -> None:
        super().__init__()
        self.free_bytes = 10**12
        self.slots = 64
        self.asked = 0
        self.run: Run | None = None

    @initialize(
        repeats=st.sampled_from(["answer", "reseed"]),
        slurm=st.booleans(),
        breaker=st.sampled_from([0, 3]),
        replacements=st.sampled_from([0, 2]),
        floor_gb=st.just(1.0),
        auto_clean=st.booleans(),
        confirm_top=st.sampled_from([0, 2]),
    )
    def start(
        self,
        repeats: str,
        slurm: bool,
        breaker: int,
        replacements: int,
        floor_gb: float,
        auto_clean: bool,
        confirm_top: int,
    ) -> None:
        on_slurm: dict[str, Any] = {"slurm": {"mem_gb": 8.0}}
        self.run = self.runs.new(
            **SEARCH,
            repeats=repeats,
            confirm_top=confirm_top,
            confirm_seeds=2,
            retry={"breaker": breaker, "replacements": replacements},
            disk={"floor_gb": floor_gb, "auto_clean": auto_clean, "keep_last": 0, "keep_best": 0},
            **(on_slurm if slurm else {}),
        )
        self.run.world = Billed(self.run.folder)

    @property
    def world(self) -> Billed:
        assert self.run is not None and isinstance(self.run.world, Billed)
        return self.run.world

    @property
    def state(self) -> RunState:
        assert self.run is not None
        loaded = load_run(self.run.folder)
        assert loaded.warning is None
        return loaded.state

    # What happens.

    @rule(words=st.lists(st.sampled_from(WORDS), min_size=1, max_size=6))
    def jobs_will_end_as(self, words: list[str]) -> None:
        self.world.words += words

    @rule(node=st.sampled_from(["n1", "n2", "n3"]), place=st.integers(0, POPULATION + 1))
    def runs_elsewhere(self, node: str, place: int) -> None:
        for generation in range(GENERATIONS):
            self.world.nodes[f"g{generation:03}-e{place:02}"] = [node] * 20

    @rule(silent=st.booleans())
    def scheduler_answers_or_not(self, silent: bool) -> None:
        self.world.silent = silent

    @rule(free=st.sampled_from([10**12, 10**8]))
    def disk_has_room_or_not(self, free: int) -> None:
        self.free_bytes = free

    @rule(place=st.integers(0, POPULATION + 1), held=st.booleans())
    def jobs_hang_or_end(self, place: int, held: bool) -> None:
        names = {f"g{generation:03}-e{place:02}" for generation in range(GENERATIONS)}
        self.world.held = self.world.held | names if held else set()

    @rule(slots=st.sampled_from([1, 2, 64]), split=st.sampled_from([None, 1, 2]))
    def cluster_takes(self, slots: int, split: int | None) -> None:
        self.slots = slots
        ScriptedExecutor.tasks_per_submission = split

    # What people do.

    @rule(turns=st.integers(1, 12))
    def controller_works_and_is_stopped(self, turns: int) -> None:
        self._drive(turns, kill=None)

    @rule(record=st.integers(0, 25), before=st.booleans())
    def controller_is_killed(self, record: int, before: bool) -> None:
        def die() -> None:
            raise Killed

        self._drive(TURNS, kill=(record, before, die))

    @rule(record=st.integers(0, 15))
    def disk_is_full_at(self, record: int) -> None:
        def refuse() -> None:
            full = OSError(errno.ENOSPC, "No space left on device")
            raise LedgerError("the ledger could not be written", hint="make room") from full

        self._drive(TURNS, kill=(record, True, refuse))

    @rule(place=st.integers(0, 17), everything=st.sampled_from([False] * 9 + [True]))
    def cancel(self, place: int, everything: bool) -> None:
        names = list(self.state.evaluations)
        if names or everything:
            chosen = [] if everything else [names[place % len(names)]]
            self._ask("cancel", {"evaluations": chosen, "all": everything}, later=place % 2 == 0)

    @rule(place=st.none() | st.integers(0, 17), force=st.booleans(), later=st.booleans())
    def requeue(self, place: int | None, force: bool, later: bool) -> None:
        names = list(self.state.evaluations)
        if not names:
            return
        chosen = [] if place is None else [names[place % len(names)]]
        asked = {"evaluations": chosen, "force": force, "skip_deterministic": place is None}
        self._ask("requeue", asked, later=later)

    @rule(later=st.booleans())
    def clean(self, later: bool) -> None:
        self._ask("clean", {"keep_last": 0, "keep_best": 0}, later=later)

    @rule(
        change=st.dictionaries(
            st.sampled_from(["budget.evaluations", "budget.failures", "retry.killed"]),
            st.integers(1, 30),
            min_size=1,
        )
        | st.fixed_dictionaries({"budget.gpu_hours": st.floats(0.02, 0.5)})
        | st.fixed_dictionaries({"retry.exclude_min": st.sampled_from([0.0, 60.0])})
        | st.fixed_dictionaries({"search.confirm_seeds": st.integers(0, 3)})
    )
    def change_settings(self, change: dict[str, Any]) -> None:
        assert self.run is not None
        with Session.open(self.run.folder) as session, self._errors_of_people():
            session.change_settings(change)

    # What always holds.

    @invariant()
    def holds(self) -> None:
        if self.run is None:
            return
        state = self.state
        check_told(state)
        check_attempts(state, self.world)
        check_sums(state)
        check_confirmations(state)
        assert load_summary(self.run.folder).summary == summarize(state)

    def teardown(self) -> None:
        if self.run is None:
            return
        world = self.world
        world.words, world.silent, world.held, self.free_bytes = [], False, set(), 10**12
        self.slots, ScriptedExecutor.tasks_per_submission = 64, None
        ample = {"evaluations": 10**6, "gpu_hours": 1e6, "failures": 10**6}
        for _ in range(PAUSES):
            with Session.open(self.run.folder) as session:
                session.change_settings({f"budget.{key}": value for key, value in ample.items()})
            if self._drive(TURNS, kill=None):
                break
            # Fewer than half of a generation gave a loss: people put back what failed.
            self._ask("requeue", {"evaluations": [], "force": True}, later=False)
            for name in [e.id for e in self.state.evaluations.values() if _may_run_again(e)]:
                self._ask("requeue", {"evaluations": [name], "force": True}, later=False)
        assert self.state.status in (RunStatus.FINISHED, RunStatus.CANCELLED)
        self.holds()
        if self.state.status is RunStatus.FINISHED:
            assert due_confirmations(self.state, effective_settings(self.state)) is None
        shutil.rmtree(self.run.folder)

    def _drive(self, turns: int, *, kill: tuple[int, bool, Callable[[], None]] | None) -> bool:
        """Let a controller work; return whether it came to the end of the run."""
        run, taken = self.run, 0
        assert run is not None

        def turn(session: Session) -> None:
            nonlocal taken
            taken += 1
            is_stuck = self.world.silent or self.world.held
            assert taken < TURNS or is_stuck, "the search goes round in circles"
            if taken >= min(turns, 30 if is_stuck else turns):
                run.stop.set()

        run.view.every_turn = turn
        run.stop.clear()
        executor = ScriptedExecutor(self.world, slots=self.slots)
        if self.state.status is RunStatus.CANCELLED and not self.state.live_attempts():
            return True
        with self._errors_of_people(), self._killing(kill), explained(run.folder.name):
            ended = run.drive(executor=executor)
            return ended.status in (RunStatus.FINISHED, RunStatus.CANCELLED)
        return False

    @contextmanager
    def _killing(self, kill: tuple[int, bool, Callable[[], None]] | None) -> Iterator[None]:
        if kill is None:
            yield
            return
        left, before, act = kill
        record = Session.record

        def recorded(session: Session, event: Payload) -> None:
            nonlocal left
            left -= 1
            if left < 0 and before:
                act()
            record(session, event)
            if left < 0 and not before:
                act()

        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(Session, "record", recorded)
            yield

    @contextmanager
    def _errors_of_people(self) -> Iterator[None]:
        """Let pass what a user would read: an error that says what to do, or a kill."""
        assert self.run is not None
        try:
            with pytest.MonkeyPatch.context() as patch:
                patch.setattr(disk_admission, "space_of", self._space)
                yield
        except Killed:
            # A lease of this process, which did not really die.
            (self.run.folder / "lease.json").unlink(missing_ok=True)
        except ElmanError as exc:
            assert "fault of elmanctl" not in (exc.hint or ""), exc
            if isinstance(exc, SearchPaused):
                assert exc.hint

    def _space(self, folder: Path) -> Space:
        return Space(free_bytes=self.free_bytes, free_inodes=None, quota=Quota(note="not asked"))

    def _ask(self, command: str, arguments: dict[str, Any], *, later: bool) -> None:
        assert self.run is not None
        if later:
            leave_request(self.run.folder, command, arguments)
            return
        self.asked += 1
        with self._errors_of_people(), Session.open(self.run.folder) as session:
            watcher = Watcher(session, ScriptedExecutor(self.world))
            perform(session, watcher, command, arguments, f"asked {self.asked}")


def _may_run_again(evaluation: Evaluation) -> bool:
    return evaluation.state is State.CANCELLED and not evaluation.has_live_attempt


def check_told(state: RunState) -> None:
    """Assert that the optimizer learned finite values from as many points as a generation has."""
    for told in state.told.values():
        assert POPULATION // 2 <= len(told) <= POPULATION
        assert len({name for name, _ in told}) == len(told)
        assert all(math.isfinite(value) for _, value in told)


def check_attempts(state: RunState, world: World) -> None:
    """Assert that an evaluation has one live attempt at most, and that nothing ran twice."""
    assert set(world.trained.values()) <= {1}
    ids = {s.job_id for s in state.submissions.values() if s.job_id is not None}
    unanswered = {s.job_name for s in state.unanswered()}
    assert all(job in ids or name in unanswered for name, job in world.jobs.items())
    at_work = Counter(e for job, (e, _) in world.tasks.items() if job not in world.ended)
    assert all(number == 1 for number in at_work.values())
    for evaluation in state.evaluations.values():
        assert [a.number for a in evaluation.attempts] == list(
            range(1, len(evaluation.attempts) + 1)
        )
        assert all(attempt.state.is_finished for attempt in evaluation.attempts[:-1])
        assert len(evaluation.attempts) <= 60
    for _, attempt in state.live_attempts():
        submission = state.submissions[attempt.submission]
        assert submission.state in (SubmissionState.INTENDED, SubmissionState.ACCEPTED)


def check_confirmations(state: RunState) -> None:
    """Assert that a configuration is confirmed once on a seed, and on none that the search used."""
    again = [e for e in state.evaluations.values() if e.confirms is not None]
    pairs = [(repr(sorted(e.hyperparameters.items())), e.seed) for e in again]
    assert len(set(pairs)) == len(pairs)
    searched = {e.seed for e in state.evaluations.values() if e.confirms is None}
    assert not searched & {seed for _, seed in pairs}
    names = {e.id for e in again}
    assert not names & {name for told in state.told.values() for name, _ in told}
    assert all(e.repeats is None and e.answer is None for e in again)
    shown = standing(state)
    assert shown.undecided == sum(not e.state.is_finished for e in again)


def check_sums(state: RunState) -> None:
    """Assert that every sum that is kept is what counting again gives."""
    counted = RunState()
    for evaluation in state.evaluations.values():
        counted.put(evaluation)
    own = ("refused", "generations_told", "notes", "size_bytes")
    kept = {k: n for k, n in state.totals.items() if n and k not in own}
    assert kept == {k: n for k, n in counted.totals.items() if n and k not in own}
    assert state.size_bytes == sum(map(state.size_of, state.evaluations.values()))
    assert state.leaders[:1] == counted.leaders[:1]
    assert (state.waiting, state.live) == (counted.waiting, counted.live)
    assert state.trained == sum(bool(e.attempts) for e in state.evaluations.values())
    spent: dict[str, Spent] = {}
    for evaluation in state.evaluations.values():
        for attempt in evaluation.attempts:
            if attempt.verdict is not None:
                cost = cost_of(attempt, devices(state.submissions[attempt.submission].resources))
                kind = attempt.verdict.kind.value
                spent[kind] = spent.get(kind, Spent()) + cost
    assert {k: s.attempts for k, s in state.spent.items()} == {
        k: s.attempts for k, s in spent.items()
    }
    for kind, cost in spent.items():
        assert state.spent[kind].device_s == pytest.approx(cost.device_s)
    assert state.answered == sum(e.answer is not None for e in state.evaluations.values())


def work(runs: Runs, monkeypatch: pytest.MonkeyPatch, examples: int, steps: int) -> None:
    # Small enough for snapshots to be written and read here.
    monkeypatch.setattr(snapshot, "EVERY_BYTES", 4000)
    Searches.runs = runs
    try:
        run_state_machine_as_test(
            Searches,
            settings=settings(
                max_examples=examples,
                stateful_step_count=steps,
                deadline=None,
                suppress_health_check=list(HealthCheck),
            ),
        )
    finally:
        ScriptedExecutor.tasks_per_submission = None


@pytest.mark.timeout(3600 if LONG else 300)
def test_search_keeps_its_promises_whatever_happens(
    runs: Runs, monkeypatch: pytest.MonkeyPatch
) -> None:
    work(runs, monkeypatch, examples=200 if LONG else 5, steps=40 if LONG else 15)
