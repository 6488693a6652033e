"""Laws of an asynchronous search, for any order in which its evaluations end, and any failures."""

from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from elmanctl.constants import ASYNCHRONOUS
from elmanctl.ledger.payloads import (
    EvaluationAnswered,
    EvaluationClosed,
    Payload,
    PointsAsked,
    ValueReported,
)
from elmanctl.ledger.records import RunStatus, State
from elmanctl.ledger.run_state import RunState
from elmanctl.search.fitness import feedback_on
from elmanctl.search.rebuild import rebuild_optimizers
from elmanctl.search.session import Session
from elmanctl.verdicts.policy import Feedback
from tests.search.one_by_one import OneByOne, OrderedWorld
from tests.search.scripted import Runs, loss_of

pytestmark = pytest.mark.usefixtures("no_power_failures")

GENERATIONS, POPULATION, REPLACEMENTS = 3, 4, 3
NAMES = [f"g{g:03}-e{e:02}" for g in range(GENERATIONS) for e in range(POPULATION + 1)]
ENDINGS = [
    *(["python_error"], ["python_error", "completed"], ["diverged"], ["node_failure"]),
    ["node_failure", "diverged"],
]
# Nine configurations, so that some are asked again while the first one still runs.
FEW = {
    "n_heads": {"kind": "int", "low": 3, "high": 5},
    "lr": {"kind": "choice", "values": [1e-3, 1e-2, 3e-2]},
}


@settings(
    max_examples=12,
    deadline=None,
    suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow],
)
@given(
    order=st.integers(0, 10_000),
    slots=st.integers(1, 7),
    script=st.dictionaries(st.sampled_from(NAMES), st.sampled_from(ENDINGS), max_size=3),
    axes=st.sampled_from([None, FEW]),
)
def test_each_result_is_reported_once_with_its_own_point_as_soon_as_it_is_decided(
    runs: Runs,
    order: int,
    slots: int,
    script: dict[str, list[str]],
    axes: dict[str, object] | None,
) -> None:
    changes: dict[str, Any] = {} if axes is None else {"axes": axes}
    run = runs.new(
        mode=ASYNCHRONOUS,
        generations=GENERATIONS,
        optimizer="cma",
        retry={"breaker": 0, "replacements": REPLACEMENTS},
        **changes,
    )
    run.world = OrderedWorld(run.folder)
    run.world.order, run.world.script = order, dict(script)
    decided: list[str] = []
    reported: list[str] = []
    record = Session.record

    def watched(self: Session, event: Payload) -> None:
        record(self, event)
        match event:
            case EvaluationClosed(evaluation=name) | EvaluationAnswered(evaluation=name):
                if feedback_on(self.state.evaluations[name]) is not Feedback.NOTHING:
                    decided.append(name)
            case ValueReported(evaluation=name):
                reported.append(name)
            case PointsAsked():
                assert reported == decided, "points are asked before all is reported"
        assert len(self.state.live_attempts()) <= slots

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Session, "record", watched)
        state = run.drive(executor=OneByOne(run.world, slots=slots))
    assert state.status is RunStatus.FINISHED
    assert reported == decided == list(state.reported)
    assert sorted(state.told) == list(range(GENERATIONS)) and not state.open
    assert_values_are_its_own(state)
    assert set(run.world.trained.values()) == {1}
    with Session.open(run.folder) as session:
        (rebuilt,) = rebuild_optimizers(session)
        history = vars(rebuilt)["_history"]
        assert history.points == [e.point for e in state.evaluations.values()]
        known = [(history.points[number], value) for number, value in history.values.items()]
        values = [(state.evaluations[name].point, v) for name, v in state.reported.items()]
        assert known == values


def assert_values_are_its_own(state: RunState) -> None:
    for evaluation in state.evaluations.values():
        value = state.reported.get(evaluation.id)
        if evaluation.state is State.COMPLETED:
            assert value == evaluation.loss == loss_of(evaluation.config, evaluation.lr)
        elif feedback_on(evaluation) is Feedback.LAST:
            before = list(state.reported)[: list(state.reported).index(evaluation.id)]
            newest = [name for name in before if state.evaluations[name].loss is not None]
            assert value is not None
            assert all(value > state.reported[name] for name in newest[-POPULATION:])
        else:
            assert evaluation.state is State.FAILED and value is None
            replaced = [e.replaces for e in state.generation_members(evaluation.generation)]
            # What takes its place may be the same configuration again.
            is_last = sum(name is not None for name in replaced) == REPLACEMENTS
            assert evaluation.id in replaced or is_last
