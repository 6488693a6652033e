"""Confirmation: the best again on fresh seeds, each once, whatever happens on the way."""

import json
import statistics
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from elmanctl import clock
from elmanctl.errors import SearchPaused
from elmanctl.ledger.payloads import GenerationTold, Payload
from elmanctl.ledger.records import CONFIRMATION, Evaluation, RunStatus, State
from elmanctl.ledger.run_state import RunState
from elmanctl.ledger.snapshot import load_summary
from elmanctl.ledger.summary import summarize
from elmanctl.search.actions import perform
from elmanctl.search.attempt_monitor import Watcher
from elmanctl.search.cleaning import plan_cleaning
from elmanctl.search.confirmation import Confirmed, standing
from elmanctl.search.costs import evaluations_left, forecast
from elmanctl.search.estimate import by_estimate
from elmanctl.search.noise import noise_of_repeats
from elmanctl.search.rebuild import rebuild_optimizers
from elmanctl.search.selection import find_evaluation
from elmanctl.search.session import Session
from elmanctl.settings import DiskSettings
from tests.integration.runs import losses, points
from tests.search.scripted import Run, Runs, ScriptedExecutor

CONFIRM: dict[str, Any] = {"confirm_top": 2, "confirm_seeds": 3}

pytestmark = pytest.mark.usefixtures("noisy")


def asked(state: RunState) -> list[tuple[str, str, int]]:
    """Return every confirmation: its name, what it confirms, its seed."""
    return [(e.id, str(e.confirms), e.seed) for e in state.evaluations.values() if e.confirms]


def searched(values: dict[str, Any]) -> dict[str, Any]:
    """Return what belongs to evaluations of the search itself."""
    return {name: value for name, value in values.items() if name.startswith("g")}


def ask(run: Run, command: str, **arguments: Any) -> None:
    """Do what a person asks, while no controller runs."""
    with Session.open(run.folder) as session:
        watcher = Watcher(session, ScriptedExecutor(run.world))
        perform(session, watcher, command, arguments, f"asked {session.state.seq}")


def change(run: Run, **settings: int) -> None:
    with Session.open(run.folder) as session:
        session.change_settings({f"search.{key}": value for key, value in settings.items()})


def test_best_are_trained_again_on_the_same_fresh_seeds(runs: Runs) -> None:
    run = runs.new(**CONFIRM)
    state = run.drive()
    assert state.status is RunStatus.FINISHED
    first, second = (e.id for e in state.ranked()[:2])
    assert asked(state) == [
        *((f"c000-e0{index}", first, 1_000_042 + index) for index in range(3)),
        *((f"c000-e0{3 + index}", second, 1_000_042 + index) for index in range(3)),
    ]
    assert run.view.confirmations == [[f"c000-e0{index}" for index in range(6)]]
    assert {e.generation for e in state.evaluations.values() if e.confirms} == {CONFIRMATION}
    assert set(run.world.trained.values()) == {1}
    for name, again in state.confirmations.items():
        for each in map(state.evaluations.__getitem__, again):
            spec = json.loads(run.paths.attempt(each.id, 1).spec.read_text())
            assert spec["seed"] == each.seed
            assert each.hyperparameters == state.evaluations[name].hyperparameters


def test_standing_is_what_the_losses_say(runs: Runs) -> None:
    state = runs.new(**CONFIRM).drive()
    shown = standing(state)
    assert {each.evaluation for each in shown.confirmed} == set(state.confirmations)
    squares = 0.0
    for each in shown.confirmed:
        measured = [e.loss for e in state.confirmations_of(each.evaluation)]
        values = [loss for loss in measured if loss is not None]
        assert (each.n, each.losses, each.failed, each.undecided) == (3, tuple(values), (), ())
        assert each.mean == pytest.approx(statistics.mean(values))
        assert each.sd == pytest.approx(statistics.stdev(values))
        assert each.se == pytest.approx(statistics.stdev(values) / 3**0.5)
        assert each.search_loss == state.evaluations[each.evaluation].loss
        assert each.optimism == pytest.approx(statistics.mean(values) - each.search_loss)
        squares += 2 * statistics.variance(values)
    means = [each.mean for each in shown.confirmed if each.mean is not None]
    assert means == sorted(means)
    assert shown.noise is not None
    assert (shown.noise.degrees, shown.noise.configurations) == (4, 2)
    assert shown.noise.sd == pytest.approx((squares / 4) ** 0.5)
    assert shown.winner == shown.confirmed[0]
    assert find_evaluation(state, "best").id == shown.confirmed[0].evaluation
    # The summary that `status` reads says the same.
    assert standing(summarize(state)) == shown


def test_lowest_of_equals_is_flattered(runs: Runs) -> None:
    """Where all models are equally good, the search values of the lowest are too low."""
    axes = {"lr": {"kind": "log", "low": 0.00999, "high": 0.01001}}
    model = {"dim": 32, "depth": 1, "n_state": 8, "n_heads": 5}
    found = []
    for seed in range(3):
        run = runs.new(axes=axes, model=model, seed=seed, population=8, **CONFIRM)
        found += [each.optimism or 0.0 for each in standing(run.drive()).confirmed]
    assert len(found) == 6
    # Of 16 draws the lowest two are about 1.5 standard deviations low, and these are of 0.05.
    assert 0.04 < statistics.mean(found) < 0.12


def test_optimizer_learns_nothing_of_it(runs: Runs) -> None:
    """The same points are asked and told with and without confirmation, extension included."""
    with_it, without = runs.new(**CONFIRM), runs.new()
    with_it.drive()
    without.drive()
    confirmed, plain = with_it.drive(generations=4), without.drive(generations=4)
    assert len(asked(confirmed)) >= 6 and not asked(plain)
    assert searched(points(confirmed)) == points(plain)
    assert searched(losses(confirmed)) == losses(plain)
    assert confirmed.told == plain.told
    assert [e.id for e in confirmed.ranked()] == [e.id for e in plain.ranked()]
    best, other = confirmed.best(), plain.best()
    assert best is not None and other is not None and best.id == other.id
    with Session.open(with_it.folder) as session:
        after_all = rebuild_optimizers(session)[0].ask(4, lambda point: True)
    with Session.open(without.folder) as session:
        assert rebuild_optimizers(session)[0].ask(4, lambda point: True) == after_all


def test_extended_search_confirms_its_new_winners_and_no_old_one_again(runs: Runs) -> None:
    run = runs.new(**CONFIRM)
    before = run.drive()
    state = run.drive(generations=6)
    best = {e.id for e in state.ranked()[:2]}
    new = best - set(before.confirmations)
    assert new, "the search found nothing better: choose another seed"
    assert set(state.confirmations) == set(before.confirmations) | new
    assert asked(state)[: len(asked(before))] == asked(before)
    later = asked(state)[len(asked(before)) :]
    assert [name for name, _, _ in later] == [f"c001-e{i:02}" for i in range(3 * len(new))]
    for name in new:
        seeds = [seed for _, confirmed, seed in later if confirmed == name]
        assert seeds == [1_000_042, 1_000_043, 1_000_044]
    assert set(run.world.trained.values()) == {1}
    assert len(run.view.confirmations) == 2


def test_confirmation_of_an_extended_search_is_out_of_date_until_it_is_made_again(
    runs: Runs,
) -> None:
    run = runs.new(**CONFIRM)
    run.drive()

    def stop_at_a_better_one(session: Session) -> None:
        if session.state.best_configuration not in session.state.confirmations:
            assert standing(session.state).winner is None
            best = session.state.best()
            assert best is not None and find_evaluation(session.state, "best") == best
            run.stop.set()

    run.view.every_turn = stop_at_a_better_one
    assert run.drive(generations=6).status is RunStatus.INTERRUPTED
    run.stop.clear()
    run.view.every_turn = lambda session: None
    assert standing(run.drive()).winner is not None


@pytest.mark.parametrize("off", [{"confirm_top": 0}, {"confirm_seeds": 0}])
def test_confirmation_can_be_left_out_and_made_later(runs: Runs, off: dict[str, int]) -> None:
    run = runs.new(**{**CONFIRM, **off})
    state = run.drive()
    assert (asked(state), state.status) == ([], RunStatus.FINISHED)
    assert standing(state).winner is None
    # A ledger without these settings is one of an earlier version: nothing is confirmed there.
    recorded = state.run["settings"]["search"]
    assert not set(off) & set(recorded)
    change(run, **CONFIRM)
    assert len(asked(run.drive())) == 6


def test_more_seeds_add_what_is_missing(runs: Runs) -> None:
    run = runs.new(**CONFIRM)
    before = run.drive()
    assert asked(run.drive()) == asked(before)
    change(run, confirm_seeds=4, confirm_top=3)
    state = run.drive()
    third = state.ranked()[2].id
    added = {(confirmed, seed) for _, confirmed, seed in asked(state)[6:]}
    assert added == {
        *((name, 1_000_045) for name in before.confirmations),
        *((third, 1_000_042 + index) for index in range(4)),
    }
    change(run, confirm_seeds=1, confirm_top=1)
    assert asked(run.drive()) == asked(state)
    assert set(run.world.trained.values()) == {1}


def test_kill_around_any_event_confirms_everything_once(
    runs: Runs, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What a kill around every event after the search leaves is resumed to the same end."""
    run = runs.new(generations=1, **CONFIRM)
    run.world.script = {"c000-e01": ["node_failure"], "c000-e04": ["diverged"]}
    left: dict[str, Run] = {}
    record = Session.record
    is_over = False

    def recorded(self: Session, event: Payload) -> None:
        nonlocal is_over
        kind = event.event_kind()
        is_over |= isinstance(event, GenerationTold)
        if is_over:
            left[f"before {len(left)} {kind}"] = run.copy(tmp_path / f"kill-{len(left)}")
        record(self, event)
        if is_over:
            left[f"after {len(left)} {kind}"] = run.copy(tmp_path / f"kill-{len(left)}")

    monkeypatch.setattr(Session, "record", recorded)
    undisturbed = run.drive()
    monkeypatch.setattr(Session, "record", record)
    kinds = {where.rpartition(" ")[2] for where in left}
    assert {"generation_told", "confirmation_asked", "evaluation_closed", "run_finished"} <= kinds
    assert len(left) > 40
    for where, killed in left.items():
        state = killed.drive()
        assert state.status is RunStatus.FINISHED, where
        assert asked(state) == asked(undisturbed), where
        assert losses(state) == losses(undisturbed), where
        assert set(killed.world.trained.values()) == {1}, where
        assert standing(state) == standing(undisturbed), where


def interrupted(run: Run) -> RunState:
    """Drive a run until its first generation has been reported and the second begins."""

    def stop_in_time(session: Session) -> None:
        if session.state.generation == 1:
            run.stop.set()

    run.view.every_turn = stop_in_time
    state = run.drive()
    assert (state.status, set(state.told)) == (RunStatus.INTERRUPTED, {0})
    run.view.every_turn = lambda session: None
    run.stop.clear()
    return state


def test_best_so_far_are_confirmed_without_another_generation(runs: Runs) -> None:
    run, undisturbed = runs.new(generations=4, **CONFIRM), runs.new(generations=4)
    interrupted(run)
    state = run.drive(confirms_now=True)
    assert (state.status, state.generation, set(state.told)) == (RunStatus.PAUSED, 1, {0})
    assert state.reason == "1 of 4 generations are done, and their best confirmed"
    assert "elmanctl resume" in str(state.advice)
    assert {e.state for e in state.evaluations.values()} == {State.COMPLETED}
    assert set(state.confirmations) == {e.id for e in state.ranked()[:2]}
    shown = standing(state)
    assert shown.winner is not None and find_evaluation(state, "best").id == shown.winner.evaluation
    assert run.drive(confirms_now=True).confirmations == state.confirmations

    ended, plain = run.drive(), undisturbed.drive()
    assert ended.status is RunStatus.FINISHED
    assert searched(points(ended)) == points(plain)
    assert ended.told == plain.told
    assert {e.id for e in ended.ranked()[:2]} <= set(ended.confirmations)
    assert set(run.world.trained.values()) == {1}


def test_kill_while_the_best_so_far_are_confirmed_loses_nothing(
    runs: Runs, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = runs.new(generations=2, confirm_top=1, confirm_seeds=2)
    interrupted(run)
    left: list[Run] = []
    record = Session.record

    def recorded(self: Session, event: Payload) -> None:
        record(self, event)
        left.append(run.copy(tmp_path / f"kill-{len(left)}"))

    monkeypatch.setattr(Session, "record", recorded)
    confirmed = run.drive(confirms_now=True)
    monkeypatch.setattr(Session, "record", record)
    undisturbed = run.drive()
    assert len(left) > 10
    for number, killed in enumerate(left):
        # Half of them are told to confirm again, the others to go on with the search.
        if number % 2:
            assert asked(killed.drive(confirms_now=True)) == asked(confirmed)
        state = killed.drive()
        assert state.status is RunStatus.FINISHED
        assert searched(points(state)) == searched(points(undisturbed))
        assert state.told == undisturbed.told
        assert set(killed.world.trained.values()) == {1}
        # Both the best of then and the best of now are confirmed.
        assert {e.id for e in state.ranked()[:1]} <= set(state.confirmations)


def test_failed_confirmation_is_shown_as_such_and_not_replaced(runs: Runs) -> None:
    run = runs.new(**CONFIRM)
    run.world.script = {"c000-e00": ["diverged"], "c000-e05": ["python_error"]}
    state = run.drive()
    assert state.status is RunStatus.FINISHED
    assert len(asked(state)) == 6 and max(state.told) == 1
    shown = standing(state)
    assert sorted(shown.failed) == ["c000-e00", "c000-e05"]
    assert {each.evaluation: (each.n, each.failed) for each in shown.confirmed} == {
        state.ranked()[0].id: (2, ("c000-e00",)),
        state.ranked()[1].id: (2, ("c000-e05",)),
    }
    assert run.drive().seq > state.seq
    assert len(asked(run.drive())) == 6

    run.world.script = {}
    run.world.trained.clear()
    ask(run, "requeue", evaluations=[], force=True)
    state = run.drive()
    assert standing(state).failed == ()
    assert [each.n for each in standing(state).confirmed] == [3, 3]
    assert set(run.world.trained) == {("c000-e00", 2), ("c000-e05", 2)}


def test_configuration_that_fails_on_a_seed_stands_behind_those_that_do_not(runs: Runs) -> None:
    run = runs.new(**CONFIRM)
    state = run.copy(run.folder.with_name("first")).drive()
    winner = standing(state).confirmed[0].evaluation
    victim = state.confirmations[winner][1]
    run.world.script = {victim: ["diverged"]}
    shown = standing(run.drive())
    assert shown.winner is not None and shown.winner.evaluation != winner
    assert shown.confirmed[1].failed == (victim,)


def test_cancelled_confirmation_is_not_asked_again(runs: Runs) -> None:
    run = runs.new(**CONFIRM)
    run.world.held = {"c000-e02"}

    def stop_when_it_hangs(session: Session) -> None:
        live = {e.id for e, _ in session.state.live_attempts()}
        if live == {"c000-e02"} and not session.state.waiting:
            run.stop.set()

    run.view.every_turn = stop_when_it_hangs
    state = run.drive()
    assert state.status is RunStatus.INTERRUPTED
    assert standing(state).winner is None and standing(state).undecided == 1
    run.view.every_turn = lambda session: None
    run.stop.clear()
    ask(run, "cancel", evaluations=["c000-e02"], all=False)
    state = run.drive()
    assert state.status is RunStatus.FINISHED
    assert state.evaluations["c000-e02"].state is State.CANCELLED
    assert standing(state).failed == ("c000-e02",)
    assert len(asked(state)) == 6


def test_budget_pauses_confirmation_which_then_goes_on(runs: Runs) -> None:
    run = runs.new(**CONFIRM, budget={"evaluations": 10})
    with pytest.raises(SearchPaused, match=r"budget\.evaluations") as paused:
        run.drive()
    assert "budget.evaluations=14" in str(paused.value.hint)
    with Session.open(run.folder) as session:
        assert len(asked(session.state)) == 6 and session.state.trained == 10
        assert standing(session.state).undecided == 4
        session.change_settings({"budget.evaluations": 14})
    state = run.drive()
    assert (state.status, state.trained) == (RunStatus.FINISHED, 14)
    assert set(run.world.trained.values()) == {1}


def test_reseeded_search_confirms_configurations_and_not_repeats(runs: Runs) -> None:
    few: dict[str, Any] = {
        "axes": {
            "n_heads": {"kind": "int", "low": 1, "high": 3},
            "depth": {"kind": "int", "low": 1, "high": 2},
        },
        "model": {"dim": 32, "n_state": 8, "lr": 1e-2},
    }
    state = runs.new(**few, **CONFIRM, repeats="reseed", generations=4, population=6).drive()
    chosen = [state.evaluations[name] for name in state.confirmations]
    assert len({str(e.hyperparameters) for e in chosen}) == 2
    lowest: dict[str, Evaluation] = {}
    for evaluation in by_estimate(state):
        lowest.setdefault(str(evaluation.hyperparameters), evaluation)
    assert [e.id for e in chosen] == [e.id for e in list(lowest.values())[:2]]
    used = {e.seed for e in state.evaluations.values() if not e.confirms}
    assert len(used) > 1 and not used & {seed for _, _, seed in asked(state)}
    shown = standing(state)
    assert shown.winner is not None
    repeats = noise_of_repeats(state)
    assert repeats and shown.noise is not None
    assert shown.noise.degrees == 4 + sum(noise.n - 1 for noise in repeats)


def test_forecast_counts_confirmations(runs: Runs) -> None:
    run = runs.new(**CONFIRM)
    left: list[int] = []
    devices: list[float] = []

    def look(session: Session) -> None:
        state = session.state
        left.append(evaluations_left(state, 4))
        assert left[-1] == evaluations_left(summarize(state), 4)
        ahead = forecast(state, population=4, now=clock.now(), wall_s=1.0)
        assert ahead.evaluations_left == left[-1]
        if ahead.device_s is not None:
            devices.append(ahead.device_s)

    run.view.every_turn = look
    run.drive()
    assert left[0] == 8 + 6 and left[-1] == 0
    assert left == sorted(left, reverse=True)
    assert 6 in left and devices


def test_cleaning_keeps_what_is_confirmed_and_its_confirmations(runs: Runs) -> None:
    run = runs.new(**CONFIRM)
    state = run.drive()
    run.leave_files(state)
    kept = {*state.confirmations, *(name for name, _, _ in asked(state))}
    plan = plan_cleaning(run.paths, state, DiskSettings(keep_best=1, keep_last=0))
    assert {file.evaluation for file in plan if file.evaluation} == set(state.evaluations) - kept
    everything = plan_cleaning(run.paths, state, DiskSettings(keep_best=0, keep_last=0))
    assert kept <= {file.evaluation for file in everything}


def test_snapshot_and_ledger_say_the_same_of_confirmation(
    runs: Runs, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("elmanctl.ledger.snapshot.EVERY_BYTES", 2000)
    run = runs.new(**CONFIRM, generations=4)
    seen = 0

    def compare(session: Session) -> None:
        nonlocal seen
        loaded = load_summary(run.folder)
        assert loaded.summary == summarize(session.state)
        assert standing(loaded.summary) == standing(session.state)
        seen += loaded.from_snapshot and bool(loaded.summary.confirmed)

    run.view.every_turn = compare
    run.drive()
    assert seen > 1


@given(losses=st.lists(st.floats(1, 9), max_size=5).map(tuple), search=st.floats(1, 9))
def test_statistics_are_those_of_the_textbook(losses: tuple[float, ...], search: float) -> None:
    seeds = tuple(range(len(losses)))
    one = Confirmed(evaluation="g000-e00", search_loss=search, seeds=seeds, losses=losses)
    assert one.mean == (pytest.approx(statistics.mean(losses)) if losses else None)
    expected = pytest.approx(statistics.stdev(losses), abs=1e-9) if len(losses) > 1 else None
    assert one.sd == expected
    assert (one.se is None) is (len(losses) < 2)
    assert (one.optimism is None) is (not losses)
