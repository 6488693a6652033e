"""Idle slots, counted by hand."""

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from elmanctl.ledger.idle import idle_slots, slots_of
from elmanctl.ledger.run_state import RunState


def run(executor: str = "slurm", **settings: dict[str, Any]) -> dict[str, Any]:
    return {"executor": executor, "settings": {"search": {"population": 8}, **settings}}


def state(live: int, **changed: Any) -> RunState:
    described = run(search={"population": 8, "max_jobs": 6})
    values: dict[str, Any] = {"run": described, "generation": 0, "generations": 3, "trained": 1}
    return RunState(**{**values, **changed, "totals": {"live": live}})


@pytest.mark.parametrize(
    ("described", "slots"),
    [
        (run(), 8),
        (run(search={"population": 8, "max_jobs": 5}), 5),
        (run(search={"population": 8, "max_jobs": 64, "mode": "asynchronous"}), 64),
        (run("local", local={"workers": 3}), 3),
        (run("local", local={"workers": 3, "gpus": [0, 1, 2, 3]}), 4),
        (run("local", local={"gpus": [0, 1, 2, 3]}, train={"gpus": 2}), 2),
        (run("local", local={"workers": 30}), 8),
    ],
)
def test_slots_are_what_the_search_may_use_at_one_time(
    described: dict[str, Any], slots: int
) -> None:
    assert slots_of(RunState(run=described)) == slots


@given(live=st.integers(0, 10))
def test_idle_are_those_without_an_attempt_while_points_are_to_come(live: int) -> None:
    assert idle_slots(state(live)) == (6, max(0, 6 - live))
    assert idle_slots(state(live, changes={"search.max_jobs": 2})) == (2, max(0, 2 - live))
    # Nothing counts before the first job, or when nothing more is asked.
    over: list[dict[str, Any]] = [
        {"trained": 0},
        {"generation": 2},
        {"ended_by": "it"},
        {"run": {}},
    ]
    for changed in over:
        assert idle_slots(state(live, **changed)) == (0, 0)
