"""Re-evaluation: the last generations train the best again, within the budget of the search."""

import json
from collections import Counter
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from elmanctl.errors import LedgerError
from elmanctl.ledger.payloads import GenerationTold, Payload, ReevaluationAsked
from elmanctl.ledger.records import NO_BRANCH, Evaluation, EvaluationPlan, RunStatus, State
from elmanctl.ledger.run_state import RunState
from elmanctl.search.branches import branch_results
from elmanctl.search.confirmation import best_of, standing
from elmanctl.search.estimate import by_estimate, estimates
from elmanctl.search.reevaluation import reserved_generations, spread
from elmanctl.search.session import Session
from elmanctl.settings import SearchSettings
from tests.integration.runs import points
from tests.search import scripted
from tests.search.scripted import Run, Runs

# Five generations of four, the last of which is one of re-evaluations.
SEARCH: dict[str, Any] = {"generations": 5, "population": 4, "reevaluate": 0.2}
PLAIN: dict[str, Any] = {"population": 4}

pytestmark = pytest.mark.usefixtures("noisy")


def again(state: RunState) -> list[Evaluation]:
    """Return every re-evaluation."""
    return [each for each in state.evaluations.values() if each.reevaluates]


def asked(state: RunState) -> dict[str, Any]:
    """Return all that was asked: points, configurations, seeds and what they train again."""
    return {
        each.id: (each.point, each.hyperparameters, each.seed, each.reevaluates, each.confirms)
        for each in state.evaluations.values()
    }


def test_last_generation_trains_the_best_again_on_fresh_seeds(runs: Runs) -> None:
    run = runs.new(**SEARCH)
    state = run.drive()
    assert state.status is RunStatus.FINISHED
    assert len(state.evaluations) == 20 and set(run.world.trained.values()) == {1}
    found = again(state)
    assert [each.id for each in found] == [f"g004-e0{index}" for index in range(4)]
    before = [e for e in state.ranked() if not e.reevaluates]
    assert [each.reevaluates for each in found] == [before[i].id for i in (0, 1, 2, 0)]
    assert [each.seed for each in found] == [43, 43, 43, 44]
    for each in found:
        assert each.reevaluates is not None
        source = state.evaluations[each.reevaluates]
        assert (each.point, each.hyperparameters) == (source.point, source.hyperparameters)
        assert json.loads(run.paths.attempt(each.id, 1).spec.read_text())["seed"] == each.seed
    noise = standing(state).noise
    assert noise is not None and (noise.degrees, noise.configurations) == (4, 3)


def test_optimizer_asks_the_points_of_a_search_without_it_and_learns_nothing(runs: Runs) -> None:
    state, plain = runs.new(**SEARCH).drive(), runs.new(**PLAIN, generations=4).drive()
    assert not again(plain)
    own = {name: point for name, point in points(state).items() if not name.startswith("g004")}
    assert own == points(plain)
    assert state.told == {**plain.told, 4: []}


def test_extension_goes_on_with_the_points_of_a_search_without_it(runs: Runs) -> None:
    run = runs.new(**SEARCH)
    run.drive()
    state = run.drive(generations=10)
    assert {each.generation for each in again(state)} == {4, 8, 9}
    plain = runs.new(**PLAIN, generations=7).drive()
    own = [e.point for e in state.evaluations.values() if not e.reevaluates]
    assert own == [e.point for e in plain.evaluations.values()]


def test_handed_over_is_the_best_by_estimate(runs: Runs) -> None:
    """Where all models are equally good, the lowest loss is luck."""
    axes = {"lr": {"kind": "log", "low": 0.00999, "high": 0.01001}}
    model = {"dim": 32, "depth": 1, "n_state": 8, "n_heads": 5}
    found = []
    for seed in range(3):
        state = runs.new(**SEARCH, axes=axes, model=model, seed=seed).drive()
        best = best_of(state, standing(state))
        assert best is not None and best == by_estimate(state)[0]
        assert estimates(state)[0].rank == min(each.rank for each in estimates(state))
        found.append((best.configuration, state.best_configuration))
    assert any(best != lowest for best, lowest in found)


def test_confirmations_are_of_the_best_by_estimate_on_other_seeds(runs: Runs) -> None:
    state = runs.new(**SEARCH, confirm_top=2, confirm_seeds=2).drive()
    first = list(dict.fromkeys(each.configuration for each in by_estimate(state)))[:2]
    assert [state.evaluations[name].configuration for name in state.confirmations] == first
    seeds = [each.seed for each in state.evaluations.values() if each.confirms]
    assert seeds == [1_000_042, 1_000_043] * 2
    assert standing(state).winner is not None


def test_what_fails_is_not_replaced_and_what_diverges_does_not_win(runs: Runs) -> None:
    plain = runs.new(**SEARCH).drive()
    run = runs.new(**SEARCH, retry={"node_failure": 0})
    run.world.script = {"g004-e00": ["diverged"], "g004-e01": ["node_failure"]}
    state = run.drive()
    assert state.status is RunStatus.FINISHED and len(state.evaluations) == 20
    states = [each.state for each in again(state)]
    assert states == [State.FAILED, State.FAILED, State.COMPLETED, State.COMPLETED]
    lowest = again(plain)[0].configuration
    ranked = [each.evaluations[0].configuration for each in estimates(state)]
    assert ranked[-1] == lowest


def test_kill_around_any_event_goes_on_to_the_same_evaluations(
    runs: Runs, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = runs.new(**SEARCH, confirm_top=1, confirm_seeds=1)
    left: list[Run] = []
    record = Session.record

    def recorded(self: Session, event: Payload) -> None:
        is_late = self.state.generation >= 3
        if is_late:
            left.append(run.copy(tmp_path / f"kill-{len(left)}"))
        record(self, event)
        if isinstance(event, ReevaluationAsked | GenerationTold):
            left.append(run.copy(tmp_path / f"kill-{len(left)}"))

    monkeypatch.setattr(Session, "record", recorded)
    undisturbed = run.drive()
    monkeypatch.setattr(Session, "record", record)
    assert len(left) > 20
    for killed in left[::4]:
        state = killed.drive()
        assert asked(state) == asked(undisturbed)
        assert state.told == undisturbed.told
        assert set(killed.world.trained.values()) == {1}


def test_ledger_refuses_what_trains_nothing_again_and_reports_of_it(runs: Runs) -> None:
    run = runs.new(**PLAIN, generations=5)
    state = run.drive()
    best = state.ranked()[0]
    with Session.open(run.folder) as session:
        told = GenerationTold(generation=5, told=())
        with pytest.raises(LedgerError, match="reported before it was asked"):
            session.record(told)
        plan: dict[str, Any] = {
            **{"id": "g005-e00", "point": best.point, "config": best.config, "lr": best.lr},
            **{"parameters": best.parameters, "repeats": best.id, "reevaluates": best.id},
        }
        for wrong, why in (
            ({"seed": best.seed}, "on seed 42 once more"),
            ({"seed": 43, "lr": 0.5}, "with another configuration"),
            ({"seed": 43, "repeats": None}, "with another configuration"),
            ({"seed": 43, "reevaluates": "g009-e00"}, "there is no evaluation"),
        ):
            wrong_plan = EvaluationPlan(**{**plan, **wrong})
            event = ReevaluationAsked(generation=5, evaluations=(wrong_plan,))
            with pytest.raises(LedgerError, match=why):
                session.record(event)
        right = EvaluationPlan(**plan, seed=43)
        session.record(ReevaluationAsked(generation=5, evaluations=(right,)))
        with pytest.raises(LedgerError, match="g005-e00 is a re-evaluation, and yet it is rep"):
            session.record(GenerationTold(generation=5, told=(("g005-e00", 1.0),)))
        session.record(told)


@given(st.floats(0.0, 0.5), st.integers(1, 500))
def test_one_generation_at_least_is_asked_of_the_optimizer(share: float, generations: int) -> None:
    reserved = reserved_generations(SearchSettings(reevaluate=share), generations)
    assert 0 <= reserved < generations
    assert abs(reserved - share * generations) <= 0.5 or reserved == generations - 1


@given(st.lists(st.integers(1, 9), min_size=1, max_size=12), st.integers(1, 40))
def test_slots_even_out_what_was_trained(trained: list[int], slots: int) -> None:
    given_to = Counter(spread(trained, slots))
    assert sum(given_to.values()) == slots
    after = [number + given_to[index] for index, number in enumerate(trained)]
    # None that got a slot has more than one beyond the least trained.
    assert all(after[index] - 1 <= min(after) for index in given_to)


def test_limit_on_evaluations_leaves_room_for_re_evaluations(runs: Runs) -> None:
    run = runs.new(**{**SEARCH, "generations": 9, "evaluations": 14, "reevaluate": 0.25})
    state = run.drive()
    assert len(run.world.trained) == 14
    assert [each.id for each in again(state)] == ["g003-e00", "g003-e01"]
    assert state.ended_by is not None


def test_sweep_has_its_branches_without_the_re_evaluations(runs: Runs) -> None:
    run = runs.new(**SEARCH, sweep={"n_heads": [4, 5]}, axes={"lr": scripted.AXES["lr"]})
    state = run.drive()
    assert len(again(state)) == 4 and state.turns[4] == NO_BRANCH
    results = branch_results(state)
    assert sorted(each.generations for each in results) == [2, 2]
    assert results[0].best is not None
    assert results[0].best.configuration == by_estimate(state)[0].configuration
