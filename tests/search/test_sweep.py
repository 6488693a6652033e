"""A sweep: several values of a setting, searched apart in one run under one budget."""

from typing import Any

import pytest

from elmanctl.errors import ConfigError, InvalidConfiguration
from elmanctl.ledger.records import RunStatus
from elmanctl.ledger.run_state import RunState
from elmanctl.ledger.state import load_run
from elmanctl.search.branches import branch_results
from elmanctl.search.stop_rules import turns_of
from elmanctl.space.space import SearchSpace, load_space
from tests.search.scripted import Runs

pytestmark = pytest.mark.usefixtures("no_power_failures")

MODEL = {"dim": 32, "depth": 1}
SWEEP: dict[str, Any] = {"sweep": {"n_state": [8, 16]}, "model": MODEL}


def configurations(state: RunState) -> list[tuple[object, ...]]:
    return [(e.config["n_state"], e.point, e.id) for e in state.evaluations.values()]


def test_values_take_turns_and_each_is_searched_by_an_optimizer_of_its_own(runs: Runs) -> None:
    state = runs.new(generations=5, **SWEEP).drive()
    assert state.status is RunStatus.FINISHED
    swept = [{e.config["n_state"] for e in state.generation_members(g)} for g in range(5)]
    assert swept == [{8}, {16}, {8}, {16}, {8}]
    # What the other value was told makes no difference: alone it is the same search.
    alone = runs.new(generations=3, model={**MODEL, "n_state": 8}).drive()
    mine = [e.point for g in turns_of(state, 0) for e in state.generation_members(g)]
    assert mine == [e.point for e in alone.evaluations.values()]


def test_best_of_each_value_is_known_and_all_stand_in_one_ranking(
    runs: Runs, monkeypatch: pytest.MonkeyPatch
) -> None:
    from tests.search import scripted

    bowl = scripted.loss_of
    monkeypatch.setattr(
        scripted, "loss_of", lambda config, lr: bowl(config, lr) - 0.5 * (config["n_state"] == 16)
    )
    state = runs.new(generations=4, confirm_top=2, confirm_seeds=1, **SWEEP).drive()
    results = branch_results(state)
    assert [each.values for each in results] == [{"n_state": 16}, {"n_state": 8}]
    assert [(each.generations, each.trained) for each in results] == [(2, 8), (2, 8)]
    for each in results:
        losses = [e.loss for e in state.ranked() if e.config["n_state"] == each.values["n_state"]]
        assert each.best is not None and each.best.loss == min(x for x in losses if x is not None)
    assert results[0].best == state.best()
    assert {e.config["n_state"] for e, _ in state.confirmed} == {16}


def test_killed_at_any_event_it_goes_on_with_the_same_points(runs: Runs, tmp_path: Any) -> None:
    whole = runs.new(generations=4, **SWEEP).drive()
    for number, kill_at in enumerate(range(3, whole.seq, 13)):
        run = runs.new(generations=4, **SWEEP).killed_at(kill_at, tmp_path / f"killed-{number}")
        assert configurations(run.drive()) == configurations(whole)


def test_value_that_stopped_improving_leaves_its_turns_to_the_others(
    runs: Runs, monkeypatch: pytest.MonkeyPatch
) -> None:
    import itertools

    falling = itertools.count(100, -1)
    monkeypatch.setattr(
        "tests.search.scripted.loss_of",
        lambda config, lr: 5.0 if config["n_state"] == 8 else float(next(falling)),
    )
    run = runs.new(generations=8, patience=2, **SWEEP)
    state = run.drive()
    assert len(turns_of(state, 0)) == 3 and len(turns_of(state, 1)) == 5
    assert state.ended_by is None
    monkeypatch.setattr("tests.search.scripted.loss_of", lambda config, lr: 200.0)
    state = run.drive(generations=20)
    assert len(turns_of(state, 1)) == 7
    assert state.reason == (
        "of every branch of the sweep, the best loss did not improve in each of the last 2 "
        "generations"
    )


def test_budget_of_evaluations_is_that_of_all_values_together(runs: Runs) -> None:
    state = runs.new(generations=10, evaluations=14, **SWEEP).drive()
    assert state.trained == 14
    assert [each.trained for each in sorted(branch_results(state), key=lambda r: -r.trained)] == [
        8,
        6,
    ]


def test_its_record_reads_back_and_one_without_a_sweep_has_no_trace_of_it(runs: Runs) -> None:
    space = load_space("e88", "sweep", axes={}, fixed={}, sweep={"n_state": []})
    assert SearchSpace.decode(space.encode()).sweep == {"n_state": (16, 32)} == space.sweep
    plain = load_run(runs.new().folder).state
    assert "sweep" not in plain.run["space"] and "sweep" not in plain.run["settings"]["search"]


def test_combinations_of_several_settings_are_branches(runs: Runs) -> None:
    space = load_space(
        "e88", "tiny", axes={}, fixed={}, sweep={"n_state": [8, 16], "use_gate": [True, False]}
    )
    assert [branch.fixed["n_state"] for branch in space.branches] == [8, 8, 16, 16]
    assert [branch.fixed["use_gate"] for branch in space.branches] == [True, False, True, False]
    assert [axis.name for axis in space.branches[0].axes] == ["n_heads", "depth", "lr"]


@pytest.mark.parametrize(
    ("changes", "text"),
    [
        ({"sweep": {"n_state": [8]}}, "needs two or more different values"),
        ({"sweep": {"n_state": [8, 8]}}, "needs two or more different values"),
        ({"sweep": {"n_state": [8, 16]}, "model": {**MODEL, "n_state": 8}}, "also a constant"),
        ({"sweep": {"lr": []}}, "a sweep over `lr` needs its values"),
        ({"sweep": {"n_state": list(range(1, 200))}}, "is 199 searches"),
        ({"sweep": {"n_state": [8, 16, 32]}, "generations": 2}, "8 evaluations do not give each"),
        ({"sweep": {"n_state": [8, 16]}, "evaluations": 7}, "7 evaluations do not give each"),
    ],
)
def test_sweep_that_cannot_be_made_is_refused(
    runs: Runs, changes: dict[str, Any], text: str
) -> None:
    with pytest.raises(ConfigError, match=text):
        runs.new(**{"model": MODEL, **changes})


def test_swept_setting_that_no_model_has_is_refused(runs: Runs) -> None:
    with pytest.raises((ConfigError, InvalidConfiguration), match="n_stat"):
        runs.new(sweep={"n_stat": [8, 16]}, model={**MODEL, "n_state": 8})
