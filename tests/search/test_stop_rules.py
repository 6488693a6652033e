"""Stop rules: what ends a search before its last generation, and what lets it go on."""

import itertools
import math
from collections.abc import Sequence
from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from elmanctl.errors import ConfigError
from elmanctl.ledger.records import RunStatus
from elmanctl.ledger.run_state import RunState
from elmanctl.ledger.state import load_run
from elmanctl.search.costs import evaluations_left, planned
from elmanctl.search.effective_settings import effective_settings
from elmanctl.search.limits import check_evaluations, check_limits
from elmanctl.search.noise import noise_of_search
from elmanctl.search.session import Session
from elmanctl.search.stop_rules import (
    describe_stop_rules,
    searched,
    smallest_improvement,
    stalled_generations,
    wider_rule,
)
from elmanctl.settings import SearchSettings, Settings
from tests.search.scripted import Run, Runs

pytestmark = pytest.mark.usefixtures("no_power_failures")

LOSSES = st.one_of(st.none(), st.integers(0, 40).map(lambda n: 1 + n / 32))


def counted_as_the_study_did(losses: Sequence[float | None], threshold: float) -> int:
    """The rule of the study's first search: a failed generation counts as a loss of 10."""
    stalled, best = 0, float("inf")
    for loss in losses:
        now = min(best, 10.0 if loss is None else loss)
        stalled = stalled + 1 if 0 <= best - now < threshold else 0
        best = now
    return stalled


@given(st.lists(LOSSES, max_size=12), st.sampled_from([1 / 64, 1 / 32, 3 / 64]))
def test_generations_without_improvement_are_counted_as_the_study_did(
    losses: list[float | None], threshold: float
) -> None:
    assert stalled_generations(losses, threshold) == counted_as_the_study_did(losses, threshold)


def test_without_a_threshold_any_lower_loss_is_an_improvement() -> None:
    assert stalled_generations([2.0, 1.9999, 1.9999, 2.5, None], 0.0) == 3
    assert stalled_generations([2.0, 1.9, 1.8], 0.0) == 0
    assert stalled_generations([None, None, 2.0], 0.0) == 0
    assert stalled_generations([], 0.0) == 0


def change(run: Run, **changes: object) -> None:
    with Session.open(run.folder) as session:
        session.change_settings({f"search.{key}": value for key, value in changes.items()})


def test_search_ends_after_exactly_so_many_trained_evaluations_and_goes_on_with_more(
    runs: Runs,
) -> None:
    run = runs.new(generations=20, population=4, evaluations=10, seed=5)
    state = run.drive()
    assert state.status is RunStatus.FINISHED
    assert state.reason == "10 evaluations are trained, as many as `search.evaluations` allows"
    assert searched(state) == state.trained == 10
    assert evaluations_left(state, 4) == 0
    first = points(state)
    search = effective_settings(state).search
    assert wider_rule(state, search) == "--set search.evaluations=18"
    change(run, evaluations=30)
    assert load_run(run.folder).state.ended_by is None
    state = run.drive()
    assert searched(state) == 30 and points(state)[: len(first)] == first


def test_confirmations_and_repeats_that_are_answered_are_none_of_the_evaluations(
    runs: Runs,
) -> None:
    run = runs.new(generations=3, population=6, confirm_top=2, confirm_seeds=2, seed=5)
    run.world.script = {"g001-e01": ["python_error"], "c000-e00": ["node_failure"]}
    state = run.drive()
    trained = [e for e in state.evaluations.values() if e.attempts]
    confirming = [e for e in trained if e.confirms is not None]
    assert len(confirming) == 4 and len(trained) == state.trained
    assert searched(state) == len(trained) - len(confirming)


def points(state: RunState) -> list[tuple[float, ...]]:
    return [e.point for e in state.evaluations.values()]


def test_replacement_of_a_failed_point_is_one_of_the_evaluations(runs: Runs) -> None:
    run = runs.new(generations=3, population=4, evaluations=10)
    run.world.script = {"g000-e01": ["python_error"], "g002-e00": ["python_error"]}
    state = run.drive()
    # The tenth failed, and nothing is left for another one in its place.
    assert searched(state) == len(state.evaluations) == 10 and state.status is RunStatus.FINISHED
    assert state.told[2] == []


def test_forecast_and_plan_know_the_limit(runs: Runs) -> None:
    run = runs.new(generations=20, population=4, evaluations=10)
    state = load_run(run.folder).state
    assert planned(state, 4) == evaluations_left(state, 4) == 10


def test_search_ends_after_generations_without_improvement_and_confirms_its_best(
    runs: Runs,
) -> None:
    run = runs.new(
        generations=30,
        patience=2,
        min_improvement=0.5,
        min_generations=4,
        confirm_top=2,
        confirm_seeds=1,
    )
    state = run.drive()
    assert state.status is RunStatus.FINISHED and len(state.told) == 4
    assert state.reason is not None and "improved by less than 0.5 nats in each" in state.reason
    assert len(state.confirmations) == 2
    assert wider_rule(state, effective_settings(state).search) == "--set search.patience=4"
    change(run, patience=5)
    state = run.drive()
    assert len(state.told) == 6
    # More generations alone change nothing: the best still does not improve.
    again = run.drive(generations=40)
    assert len(again.told) == 6 and again.ended_by is not None


def test_search_killed_after_its_stop_was_recorded_still_ends(runs: Runs) -> None:
    run = runs.new(generations=30, patience=1, min_improvement=5.0, confirm_top=1, confirm_seeds=1)

    def die(session: Session) -> None:
        if session.state.ended_by is not None:
            raise KeyboardInterrupt

    run.view.every_turn = die
    with pytest.raises(KeyboardInterrupt):
        run.drive()
    assert load_run(run.folder).state.status is RunStatus.RUNNING
    run.view.every_turn = lambda session: None
    state = run.drive()
    assert (state.status, len(state.told)) == (RunStatus.FINISHED, 2)
    assert len(state.confirmations) == 1


def test_threshold_in_units_of_the_noise_is_that_of_the_repeats(
    runs: Runs, monkeypatch: pytest.MonkeyPatch
) -> None:
    axes = {"n_heads": {"kind": "int", "low": 3, "high": 5}}
    model = {"dim": 32, "depth": 1, "n_state": 8, "lr": 1e-2}
    run = runs.new(
        axes=axes,
        model=model,
        generations=12,
        repeats="reseed",
        patience=2,
        min_improvement=0.001,
        min_improvement_sd=2.0,
    )
    scatter = itertools.count()
    monkeypatch.setattr(
        "tests.search.scripted.loss_of",
        lambda config, lr: 2.0 + 0.1 * config["n_heads"] + 0.01 * math.sin(next(scatter)),
    )
    state = run.drive()
    noise = noise_of_search(state)
    assert noise is not None
    sd = noise.sd
    search = effective_settings(state).search
    assert smallest_improvement(state, search) == pytest.approx(2 * sd)
    assert state.reason == (
        f"the best loss improved by less than {2 * sd:.2g} nats in each of the last 2 generations"
    )
    exact = replace(search, min_improvement=1.0)
    assert smallest_improvement(state, exact) == 1.0


@pytest.mark.parametrize(
    ("changes", "text"),
    [
        ({"min_improvement": 0.1}, "`search.min_improvement` means nothing without"),
        ({"min_generations": 3}, "`search.min_generations` means nothing without"),
        ({"patience": 2, "min_improvement_sd": 1.0}, "no repeat is trained to show it"),
    ],
)
def test_rule_without_an_effect_is_refused(changes: dict[str, float], text: str) -> None:
    with pytest.raises(ConfigError, match=text):
        check_limits(replace(Settings(), search=SearchSettings(**changes)))  # type: ignore[arg-type]


def test_more_evaluations_than_the_generations_have_are_refused() -> None:
    with pytest.raises(ConfigError, match="is 200, and 15 generations of 8 have 120") as told:
        check_evaluations(SearchSettings(evaluations=200))
    assert told.value.hint == "pass `--generations 25`, or fewer evaluations"


def test_rules_are_told_in_words() -> None:
    assert describe_stop_rules(SearchSettings()) is None
    both = SearchSettings(evaluations=60, patience=3, min_improvement=0.005, min_generations=6)
    assert describe_stop_rules(both) == (
        "after 60 evaluations or when 3 generations in a row do not improve the best loss by 0.005 "
        "nats, but not before 6 are done"
    )
