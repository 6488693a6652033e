"""Early stopping in a search: decided once, asked of workers that know it, and reported."""

import json
from collections.abc import Callable
from itertools import count
from pathlib import Path
from typing import Any

import pytest

from elmanctl.constants import ASYNCHRONOUS, LOOKS
from elmanctl.errors import ConfigError, UsageError
from elmanctl.ledger.files import write_json
from elmanctl.ledger.payloads import (
    AttemptFinished,
    EvaluationReopened,
    Payload,
    StopDecided,
)
from elmanctl.ledger.records import EvidenceSource, RunStatus, State, VerdictKind
from elmanctl.ledger.run_state import RunState
from elmanctl.ledger.state import load_run
from elmanctl.run.stopping_settings import StoppingSettings
from elmanctl.run.training import Training
from elmanctl.schedulers.executor import JobReport, JobState
from elmanctl.search import early_stopping
from elmanctl.search.confirmation import standing
from elmanctl.search.costs import failures, wasted
from elmanctl.search.limits import check_limits
from elmanctl.search.session import Session
from elmanctl.settings import Settings
from tests.search.scripted import Run, Runs, ScriptedExecutor, World, loss_of

pytestmark = pytest.mark.usefixtures("no_power_failures")

CURVE = {"rule": "curve"}


class Trainings(World):
    """Jobs that train: each poll brings them some looks on, and they read a request to stop.

    Those that are `deaf` never do, and those that are `late` have just completed.
    """

    def __init__(self, folder: Path, *, deaf: bool = False, late: bool = False) -> None:
        super().__init__(folder)
        self.looks: dict[str, int] = {}
        self.deaf = deaf
        self.late = late

    def report(self, job_id: str) -> JobReport:
        evaluation, attempt = self.tasks[job_id]
        if job_id in self.ended or job_id in self.cancelled or job_id not in self.running:
            return super().report(job_id)
        paths = self.paths.attempt(evaluation, attempt)
        spec = json.loads(paths.spec.read_text(encoding="utf-8"))
        looks = self.looks[job_id] = min(LOOKS, self.looks.get(job_id, 0) + 5)
        curve = _curve(loss_of(spec["config"], spec["lr"]), looks, evaluation)
        self.told = {"curve": curve, "share": looks / LOOKS, "elapsed_s": 1.5 * looks}
        if not spec.get("stoppable"):
            self.told = {}
        if paths.stop.exists() and not self.deaf:
            self.end(job_id, "completed" if self.late else "stopped")
        elif looks == LOOKS:
            self.end(job_id, "completed")
        elif self.told:
            write_json(paths.heartbeat, {"phase": "training", "curve": curve})
        return JobReport(state=JobState.RUNNING, raw="RUNNING", node="n1")


def _curve(loss: float, looks: int, name: str) -> list[float]:
    """Return the losses of an evaluation at the looks so far, with its own small deviation."""
    own = 0.002 * (sum(map(ord, name)) % 7)
    return [loss + own + 2 / look**0.5 for look in range(1, looks + 1)]


Make = Callable[..., Run]


@pytest.fixture
def make(runs: Runs) -> Make:
    """Make a run whose jobs train."""

    def make(*, deaf: bool = False, late: bool = False, **changes: Any) -> Run:
        run = runs.new(**{"generations": 3, "population": 6, "stopping": CURVE, **changes})
        run.world = Trainings(run.folder, deaf=deaf, late=late)
        return run

    return make


def drive(run: Run) -> RunState:
    """Drive a run by a clock on which every heartbeat is new."""
    ticks = count(1000)
    return run.drive(now=lambda: float(next(ticks)))


def stopped(state: RunState) -> list[str]:
    return [e.id for e in state.evaluations.values() if e.state is State.STOPPED]


def test_search_stops_what_will_not_be_its_best(make: Make) -> None:
    run = make()
    state = drive(run)
    names = stopped(state)
    assert state.status is RunStatus.FINISHED
    assert len(names) >= 3
    # The first ones are what later ones are compared with.
    assert not any(name.startswith("g000") for name in names)
    assert set(run.world.trained.values()) == {1}
    best = state.best()
    assert best is not None and best.state is State.COMPLETED
    for name in names:
        evaluation = state.evaluations[name]
        (attempt,) = evaluation.attempts
        assert attempt.verdict is not None and attempt.verdict.kind is VerdictKind.STOPPED
        assert attempt.state is State.STOPPED
        assert evaluation.loss is None and attempt.result is not None
        # What it would have ended with is no better than what the search has found.
        assert loss_of(evaluation.config, evaluation.lr) > (best.loss or 0.0)
        assert attempt.stop is not None and attempt.stop.limit >= (best.loss or 0.0)
        told = dict(state.told[evaluation.generation])[name]
        assert told >= attempt.stop.predicted
        assert told == pytest.approx(loss_of(evaluation.config, evaluation.lr), abs=0.5)


def test_asynchronous_search_learns_the_prediction_of_what_it_stops(make: Make) -> None:
    run = make(mode=ASYNCHRONOUS, generations=4)
    ticks = count(1000)
    executor = ScriptedExecutor(run.world, slots=6)
    state = run.drive(executor=executor, now=lambda: float(next(ticks)))
    assert state.status is RunStatus.FINISHED and len(state.evaluations) == 24
    names = stopped(state)
    assert names
    for name in names:
        stop = state.evaluations[name].stop
        assert stop is not None and state.reported[name] >= stop.predicted
    assert state.reported.keys() == state.evaluations.keys()
    assert set(run.world.trained.values()) == {1}


def test_what_was_stopped_is_neither_a_failure_nor_waste_and_its_savings_are_known(
    make: Make,
) -> None:
    run = make()
    state = drive(run)
    names = stopped(state)
    assert failures(state) == 0 and wasted(state) == {}
    assert state.spared.attempts == len(names)
    left_s = 0.0
    for name in names:
        (attempt,) = state.evaluations[name].attempts
        assert attempt.result is not None
        share, elapsed_s = attempt.result["share"], attempt.result["elapsed_s"]
        assert isinstance(share, float) and isinstance(elapsed_s, float)
        left_s += elapsed_s * (1 - share) / share
    assert state.spared.elapsed_s == pytest.approx(left_s)
    assert state.counts()[State.STOPPED] == len(names)


def test_kill_around_a_decision_changes_nothing(
    make: Make, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What a kill just before and just after every decision and every end would leave goes on."""
    run = make(generations=2)
    left: list[tuple[str, Run]] = []
    record = Session.record

    def recorded(self: Session, event: Payload) -> None:
        is_seen = isinstance(event, StopDecided | AttemptFinished) and self.state.generation > 0
        if is_seen:
            left.append((f"before {event}", run.copy(tmp_path / f"kill-{len(left)}")))
        record(self, event)
        if is_seen:
            left.append((f"after {event}", run.copy(tmp_path / f"kill-{len(left)}")))

    monkeypatch.setattr(Session, "record", recorded)
    names = stopped(drive(run))
    monkeypatch.setattr(Session, "record", record)
    assert names and len(left) == 2 * (len(names) + 6)
    for where, killed in left:
        before = load_run(killed.folder).state
        decided = {e.id: e.stop for e in before.evaluations.values() if e.stop is not None}
        state = drive(killed)
        assert state.status is RunStatus.FINISHED, where
        assert set(killed.world.trained.values()) == {1}, where
        assert len(killed.world.trained) == len(state.evaluations), where
        assert decided.items() <= {e.id: e.stop for e in state.evaluations.values()}.items(), where
        assert {len(e.attempts) for e in state.evaluations.values()} == {1}, where
        assert set(decided) <= set(stopped(state)), where


def test_decision_without_its_request_is_followed_by_the_next_controller(make: Make) -> None:
    run = make()
    run.view.every_turn = lambda session: run.stop.set() if stops(session.state) else None
    state = drive(run)
    (name, *_) = stops(state)
    request = run.paths.attempt(name, 1).stop
    request.unlink()
    run.stop.clear()
    run.view.every_turn = lambda session: None
    assert name in stopped(drive(run))
    assert json.loads(request.read_text())["rule"] == "curve"


def stops(state: RunState) -> list[str]:
    return [e.id for e, attempt in state.live_attempts() if attempt.stop is not None]


def test_worker_that_does_not_read_the_request_is_ended_by_the_scheduler(
    make: Make, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(early_stopping, "GRACE_S", -60.0)
    run = make(deaf=True, slurm={})
    state = drive(run)
    names = stopped(state)
    assert names and run.world.cancelled
    # It may have completed before it was ended.
    assert set(run.world.trained.values()) <= {1}
    for name in names:
        (attempt,) = state.evaluations[name].attempts
        assert attempt.verdict is not None
        assert attempt.verdict.evidence[0].source is EvidenceSource.CONTROLLER
        assert "stopped early" in attempt.verdict.summary
        assert name in dict(state.told[state.evaluations[name].generation])
    assert not state.counts()[State.CANCELLED] and not state.counts()[State.FAILED]


def test_worker_that_completes_before_it_reads_the_request_has_completed(make: Make) -> None:
    run = make(late=True)
    state = drive(run)
    asked = [e for e in state.evaluations.values() if e.stop is not None]
    assert asked and not stopped(state)
    assert {e.state for e in asked} == {State.COMPLETED}
    assert all(e.loss == dict(state.told[e.generation])[e.id] for e in asked)
    assert not state.spared.attempts


def test_code_of_an_older_run_is_never_asked(make: Make) -> None:
    run = make()
    old = run.folder / "old"
    spec = old / "elmanctl" / "run" / "spec.py"
    spec.parent.mkdir(parents=True)
    text = (run.paths.code / "elmanctl" / "run" / "spec.py").read_text(encoding="utf-8")
    spec.write_text(text.replace("    stoppable: ", "    unknown: "), encoding="utf-8")
    run.paths.code.unlink()
    run.paths.code.symlink_to(old)
    state = drive(run)
    assert not any(e.stop for e in state.evaluations.values())
    specs = [json.loads(p.read_text()) for p in run.paths.evaluations.glob("*/*/spec.json")]
    assert len(specs) == 18 and not any("stoppable" in each for each in specs)
    with Session.open(run.folder) as session, pytest.raises(UsageError, match="earlier version"):
        session.check_changes({"stopping.rule": "curve"})


def test_off_is_the_default_and_says_nothing_anywhere(make: Make) -> None:
    run = make(stopping={})
    state = drive(run)
    assert "stopping" not in state.run["settings"]
    assert not any(e.stop for e in state.evaluations.values())
    assert not list(run.paths.evaluations.glob("*/*/stop.json"))


def test_what_trains_the_best_again_trains_to_its_end(make: Make) -> None:
    run = make(confirm_top=2, confirm_seeds=2, reevaluate=0.34)
    state = drive(run)
    assert stopped(state)
    again = [e for e in state.evaluations.values() if e.confirms or e.reevaluates]
    assert len(again) == 4 + 6
    for each in again:
        spec = json.loads(run.paths.attempt(each.id, 1).spec.read_text())
        assert "stoppable" not in spec and each.state is State.COMPLETED
        assert not {each.confirms, each.reevaluates} & set(stopped(state))
    winner = standing(state).winner
    assert winner is not None and winner.evaluation not in stopped(state)


def test_repeats_on_other_seeds_train_to_their_end(make: Make) -> None:
    axes = {"n_heads": {"kind": "int", "low": 1, "high": 16}}
    model = {"dim": 32, "depth": 1, "n_state": 8, "lr": 1e-2}
    run = make(axes=axes, model=model, repeats="reseed")
    state = drive(run)
    again = [e for e in state.evaluations.values() if e.repeats is not None]
    assert stopped(state) and again
    assert {e.state for e in again} == {State.COMPLETED}


def test_repeat_of_a_stopped_evaluation_ends_as_that_one_did(make: Make) -> None:
    axes = {"n_heads": {"kind": "int", "low": 1, "high": 16}}
    model = {"dim": 32, "depth": 1, "n_state": 8, "lr": 1e-2}
    run = make(optimizer="cma", axes=axes, model=model, generations=5, population=8)
    state = drive(run)
    answered = [
        e for e in state.evaluations.values() if e.answer is not None and e.stop is not None
    ]
    assert answered
    for each in answered:
        assert each.answer is not None
        assert each.state is State.STOPPED and not each.attempts
        assert each.stop == state.evaluations[each.answer.by].stop
        assert each.id in dict(state.told[each.generation])


def test_asha_stops_at_its_rungs(make: Make) -> None:
    run = make(stopping={"rule": "asha", "first": 0.25, "eta": 2.0}, population=8)
    state = drive(run)
    names = stopped(state)
    decisions = [e.stop for e in state.evaluations.values() if e.stop is not None]
    assert names and {stop.share for stop in decisions} <= {0.25, 0.5}
    assert {stop.rule for stop in decisions} == {"asha"}


def test_budget_without_an_end_cannot_be_shared_out() -> None:
    settings = Settings(
        train=Training(converge=0.01),
        stopping=StoppingSettings(rule="curve"),
    )
    with pytest.raises(ConfigError, match=r"train\.converge"):
        check_limits(settings)


def test_evaluation_that_a_user_asks_again_trains_to_its_end(make: Make) -> None:
    run = make()
    name = stopped(drive(run))[0]
    with Session.open(run.folder) as session:
        again = EvaluationReopened(evaluation=name, changes={"since_attempt": 1}, by="me")
        session.record(again)
    state = drive(run)
    first, second = state.evaluations[name].attempts
    assert (first.state, second.state) == (State.STOPPED, State.COMPLETED)
    assert second.stop is None and state.evaluations[name].state is State.COMPLETED
    spec = json.loads(run.paths.attempt(name, 2).spec.read_text())
    assert "stoppable" not in spec


def test_branches_of_a_sweep_are_not_compared_with_each_other(make: Make) -> None:
    """Every branch has a best of its own, also one that is behind by far."""
    axes = {"lr": {"kind": "log", "low": 1e-4, "high": 1e-1}}
    sweep = {"n_heads": [5, 16]}
    run = make(axes=axes, sweep=sweep, generations=4)
    state = drive(run)
    assert set(state.turns.values()) == {1}
    for branch in (0, 1):
        members = [
            e for e in state.evaluations.values() if state.turns.get(e.generation, 0) == branch
        ]
        ended = [e for e in members if e.state is State.COMPLETED]
        assert len(ended) >= 6 and len(members) == 12
        best = min(e.loss for e in ended if e.loss is not None)
        assert all(e.stop is None or e.stop.limit >= best for e in members)
