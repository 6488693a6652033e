"""Budgets: affordable attempts, pauses, and the forecast of costs."""

from datetime import datetime, timedelta
from pathlib import Path
from typing import Any

import pytest

from elmanctl import clock
from elmanctl.errors import ConfigError, SearchPaused
from elmanctl.ledger.files import write_json
from elmanctl.ledger.payloads import Payload
from elmanctl.ledger.records import RunStatus, State
from elmanctl.ledger.run_state import RunState
from elmanctl.ledger.spending import Spent
from elmanctl.ledger.state import load_run
from elmanctl.run.paths import AttemptPaths
from elmanctl.search import costs
from elmanctl.search.session import Session
from tests.integration.runs import points
from tests.search import scripted
from tests.search.scripted import Run, Runs, ScriptedExecutor

pytestmark = pytest.mark.usefixtures("no_power_failures", "half_an_hour_each")

HOUR_S = 3600.0


@pytest.fixture
def half_an_hour_each(monkeypatch: pytest.MonkeyPatch) -> None:
    """Every worker says by its heartbeat that it lived for half an hour."""
    write = scripted.write_result

    def with_heartbeat(paths: AttemptPaths, verdict: str) -> None:
        write(paths, verdict)
        beat = {"started_at": "2026-05-01T10:00:00.000Z", "at": "2026-05-01T10:30:00.000Z"}
        write_json(paths.heartbeat, beat)

    monkeypatch.setattr(scripted, "write_result", with_heartbeat)


class Clock:
    """A clock that stands still until a test moves it."""

    def __init__(self) -> None:
        self.moment = clock.now()

    def __call__(self) -> datetime:
        return self.moment

    def passes(self, **time: float) -> None:
        self.moment += timedelta(**time)


@pytest.fixture
def still(monkeypatch: pytest.MonkeyPatch) -> Clock:
    frozen = Clock()
    monkeypatch.setattr(clock, "now", frozen)
    return frozen


def paused(run: Run, **how: Any) -> tuple[RunState, SearchPaused]:
    """Drive a run until it pauses itself; return what it left and why."""
    with pytest.raises(SearchPaused) as caught:
        run.drive(**how)
    state = load_run(run.folder).state
    assert not state.live_attempts()
    return state, caught.value


def spent_h(state: RunState) -> float:
    return costs.ended(state).device_s / HOUR_S


def test_hours_are_spent_to_the_budget_and_a_higher_one_goes_on_as_if_never_stopped(
    runs: Runs,
) -> None:
    unlimited = runs.new(generations=3).drive()
    run = runs.new(generations=3, budget={"gpu_hours": 3.2})
    state, pause = paused(run)
    # The first generation of four shows what an attempt costs; two of the second are paid for.
    assert (state.trained, spent_h(state)) == (6, 3.0)
    assert (state.generation, set(state.told)) == (1, {0})
    assert "`budget.gpu_hours` is used up: 3 of 3.2 job-hours are spent" in pause.message
    assert "one more evaluation takes about 0.5" in pause.message
    assert pause.hint is not None and "--set budget.gpu_hours=6" in pause.hint
    again, _ = paused(run)
    assert (again.trained, spent_h(again)) == (6, 3.0)
    with Session.open(run.folder) as session:
        session.change_settings({"budget.gpu_hours": 6.0})
    state = run.drive()
    assert state.status is RunStatus.FINISHED
    assert points(state) == points(unlimited)
    assert (state.told, spent_h(state)) == (unlimited.told, 6.0)


@pytest.mark.parametrize("slots", [1, 2, 4])
@pytest.mark.parametrize("budget_h", [0.1, 1.0, 2.4, 5.5])
def test_hours_are_never_exceeded_by_more_than_what_is_in_flight(
    runs: Runs, slots: int, budget_h: float
) -> None:
    run = runs.new(generations=3, budget={"gpu_hours": budget_h})
    state, _ = paused(run, executor=ScriptedExecutor(run.world, slots=slots))
    # Before the first attempt has ended, the cost of one is unknown.
    unknown_h = 0.5 * slots
    assert spent_h(state) <= max(budget_h, unknown_h)
    assert spent_h(state) > budget_h - 0.5


def test_attempts_in_flight_are_expected_to_cost_what_others_did(runs: Runs) -> None:
    """One of the first two goes on and on: what is left pays for two others beside it."""
    run = runs.new(generations=1, population=6, budget={"gpu_hours": 2.0})
    run.world.held = {"g000-e00"}
    turns = 0

    def look_on(session: Session) -> None:
        nonlocal turns
        turns += 1
        if turns == 40:
            assert session.state.trained == 4
            run.world.held.clear()

    run.view.every_turn = look_on
    state, _ = paused(run, executor=ScriptedExecutor(run.world, slots=2))
    assert turns >= 40
    assert spent_h(state) == 2.0


def test_evaluations_are_counted_once_however_often_they_are_tried(runs: Runs) -> None:
    run = runs.new(generations=2, budget={"evaluations": 6})
    run.world.script = {"g001-e00": ["node_failure", "node_failure"]}
    state, pause = paused(run)
    assert state.trained == 6
    assert [len(e.attempts) for e in state.evaluations.values()] == [1, 1, 1, 1, 3, 1, 0, 0]
    assert (
        pause.message
        == "`budget.evaluations` is used up: 6 evaluations were trained, as many "
        + ("as it pays for")
    )
    assert pause.hint is not None and "budget.evaluations=8`" in pause.hint


def test_limit_that_is_named_is_the_one_that_is_in_the_way(runs: Runs) -> None:
    """A further attempt costs no evaluation: with none left, it is the hours that are short."""
    run = runs.new(generations=1, budget={"evaluations": 4, "gpu_hours": 1.7})
    run.world.script = {"g000-e01": ["killed"]}
    _, pause = paused(run)
    assert "`budget.gpu_hours` is used up: 1.5 of 1.7 job-hours" in pause.message
    with Session.open(run.folder) as session:
        session.change_settings({"budget.gpu_hours": 3.0})
    assert run.drive().status is RunStatus.FINISHED


def test_answered_repeats_use_up_no_budget(runs: Runs) -> None:
    axes = {
        "n_heads": {"kind": "int", "low": 1, "high": 3},
        "depth": {"kind": "int", "low": 1, "high": 2},
    }
    model = {"dim": 32, "n_state": 8, "lr": 1e-2}
    budget = {"evaluations": 6, "gpu_hours": 3.0}
    state = runs.new(axes=axes, model=model, generations=6, budget=budget).drive()
    assert state.status is RunStatus.FINISHED
    assert len(state.evaluations) == 24
    assert state.trained <= 6
    assert state.saved == Spent(
        attempts=state.answered,
        elapsed_s=state.answered * HOUR_S / 2,
        device_s=state.answered * HOUR_S / 2,
    )


def test_failed_attempts_end_the_search_before_the_next_submission(runs: Runs) -> None:
    run = runs.new(generations=2, budget={"failures": 3}, retry={"breaker": 99})
    run.world.script = {"g000-e01": ["node_failure", "node_failure"], "g000-e02": ["diverged"]}
    state, pause = paused(run)
    assert costs.failures(state) == 3
    assert "3 attempts failed, as many as it allows" in pause.message
    assert state.evaluations["g000-e01"].state is State.CREATED
    with Session.open(run.folder) as session:
        session.change_settings({"budget.failures": 4})
    assert run.drive().status is RunStatus.FINISHED


def test_wall_time_counts_while_a_controller_is_at_work(runs: Runs, still: Clock) -> None:
    run = runs.new(generations=3, budget={"wall_h": 1.0})

    def look_on(session: Session) -> None:
        if session.state.live_attempts():
            still.passes(minutes=20)

    run.view.every_turn = look_on
    state, pause = paused(run)
    assert "`budget.wall_h` is used up" in pause.message
    assert HOUR_S <= state.wall_s <= 2 * HOUR_S
    assert state.generation > 0
    # Nobody is at work for a day.
    still.passes(days=1)
    with Session.open(run.folder) as session:
        session.change_settings({"budget.wall_h": 9.0})
    state = run.drive()
    assert state.status is RunStatus.FINISHED
    assert state.wall_s < 9 * HOUR_S


def test_budget_holds_after_a_kill_around_any_event(
    runs: Runs, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = runs.new(generations=3, budget={"gpu_hours": 3.0, "evaluations": 9})
    left: list[Run] = []
    record = Session.record

    def recorded(self: Session, event: Payload) -> None:
        record(self, event)
        left.append(run.copy(tmp_path / f"kill-{len(left)}"))

    monkeypatch.setattr(Session, "record", recorded)
    undisturbed, _ = paused(run)
    monkeypatch.setattr(Session, "record", record)
    for killed in left[::3]:
        state, _ = paused(killed)
        assert (state.trained, state.spent) == (undisturbed.trained, undisturbed.spent)


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("budget.gpu_hours", 0.0),
        ("budget.gpu_hours", float("inf")),
        ("budget.wall_h", -1.0),
        ("budget.evaluations", 0),
        ("budget.failures", 0),
    ],
)
def test_impossible_budget_is_refused(runs: Runs, key: str, value: float) -> None:
    with Session.open(runs.new().folder) as session, pytest.raises(ConfigError, match=key):
        session.change_settings({key: value})


def forecast_of(run: Run) -> costs.Forecast:
    state = load_run(run.folder).state
    return costs.forecast(state, population=4, now=clock.now(), wall_s=state.wall_s)


def test_forecast_is_what_the_search_then_costs(runs: Runs, still: Clock) -> None:
    """Every evaluation costs the same, and every fourth attempt more than one as many fail."""
    run = runs.new(generations=6)
    run.world.script = {f"g{g:03}-e01": ["python_error"] for g in range(6)}
    run.view.every_turn = lambda session: still.passes(minutes=10)
    assert forecast_of(run) == costs.Forecast(evaluations_left=24, device_s=None, left_s=None)
    seen: list[costs.Forecast] = []
    tell = run.view.generation_done

    def done(session: Session, generation: int) -> None:
        tell(session, generation)
        state = session.state
        wall_s = costs.worked_s(state, clock.now())
        seen.append(costs.forecast(state, population=4, now=clock.now(), wall_s=wall_s))

    run.view.generation_done = done  # type: ignore[method-assign]
    state = run.drive()
    total_s = costs.ended(state).device_s
    assert [ahead.evaluations_left for ahead in seen] == [20, 16, 12, 8, 4, 0]
    assert [ahead.device_s for ahead in seen] == pytest.approx([total_s] * 6)
    assert seen[-1].left_s == 0
    left_s = [ahead.left_s or 0.0 for ahead in seen]
    ends = [left + k * left_s[0] / 5 for k, left in enumerate(left_s)]
    assert left_s[0] > 0 and ends == pytest.approx([left_s[0]] * 6, rel=0.1)
    assert costs.wasted(state) == {
        "python_error": Spent(attempts=6, elapsed_s=6 * 1800.0, device_s=6 * 1800.0)
    }


def test_uses_say_what_is_left(runs: Runs) -> None:
    run = runs.new(generations=1, budget={"gpu_hours": 10.0, "evaluations": 50})
    state = run.drive()
    found = costs.uses(state, costs.effective_budget(state), device_s=7200.0, wall_s=0.0)
    assert [(use.key, use.limit, use.used, use.left) for use in found] == [
        ("evaluations", 50.0, 4.0, 46.0),
        ("gpu_hours", 10.0, 2.0, 8.0),
    ]


def test_run_of_before_budgets_has_none(runs: Runs) -> None:
    state = runs.new(generations=1).drive()
    settings = {key: value for key, value in state.run["settings"].items() if key != "budget"}
    state.run = {**state.run, "settings": settings}
    assert costs.uses(state, costs.effective_budget(state), device_s=1.0, wall_s=1.0) == []
    assert costs.unit_of(state) == "job-hours"


@pytest.mark.parametrize(
    ("executor", "changes", "unit"),
    [
        ("local", {}, "job-hours"),
        ("local", {"local.gpus": [0, 1]}, "GPU-hours"),
        ("slurm", {}, "GPU-hours"),
        ("slurm", {"slurm.gres": ""}, "job-hours"),
        ("slurm", {"slurm.gres": "", "slurm.extra": {"gpus": 2}}, "GPU-hours"),
    ],
)
def test_hours_are_called_what_they_are(
    runs: Runs, executor: str, changes: dict[str, Any], unit: str
) -> None:
    state = load_run(runs.new().folder).state
    state.run = {**state.run, "executor": executor}
    state.changes.update(changes)
    assert costs.unit_of(state) == unit
