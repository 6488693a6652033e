"""Idle slots, counted by hand."""

from datetime import UTC, datetime, timedelta
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from elmanctl.ledger.idle import (
    end_lane,
    held_idle_s,
    hold_jobs,
    idle_slots,
    release_jobs,
    slots_of,
)
from elmanctl.ledger.run_state import RunState
from elmanctl.ledger.submissions import Resources, Submission, Task


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


def submission(attempts: int, per_job: int) -> Submission:
    tasks = tuple(Task(index=i, evaluation=f"g000-e{i:02}", attempt=1) for i in range(attempts))
    return Submission(id="s0001", job_name="job", tasks=tasks, resources=Resources(per_job=per_job))


@given(
    per_job=st.integers(2, 4),
    ends_s=st.lists(st.integers(0, 10_000), min_size=1, max_size=9),
    devices=st.integers(1, 2),
)
def test_attempts_of_a_job_hold_their_gpus_until_the_last_one_ends(
    per_job: int, ends_s: list[int], devices: int
) -> None:
    run_state, asked = RunState(run=run()), submission(len(ends_s), per_job)
    hold_jobs(run_state, asked)
    for index, end_s in sorted(enumerate(ends_s), key=lambda pair: pair[1]):
        end_lane(run_state, asked, index, devices, moment(end_s))
    jobs = [ends_s[first : first + per_job] for first in range(0, len(ends_s), per_job)]
    wanted = sum(max(job) - end_s for job in jobs for end_s in job)
    assert run_state.held_idle_s == pytest.approx(wanted * devices)
    assert run_state.held_jobs == {}


def moment(seconds: float) -> str:
    return (datetime(2026, 1, 1, tzinfo=UTC) + timedelta(seconds=seconds)).isoformat()


def test_jobs_of_one_attempt_and_refused_ones_hold_nothing() -> None:
    run_state = RunState(run=run())
    hold_jobs(run_state, submission(3, 1))
    assert run_state.held_jobs == {}
    hold_jobs(run_state, submission(3, 2))
    assert [job.lanes for job in run_state.held_jobs.values()] == [2, 1]
    release_jobs(run_state, submission(3, 2))
    assert run_state.held_jobs == {}
    end_lane(run_state, submission(3, 2), 0, 1, moment(5))
    assert run_state.held_idle_s == 0.0


def test_allocation_holds_its_idle_slots() -> None:
    assert held_idle_s(state(2), 4, 10.0) == 0.0
    inside = state(2, controller={"allocation": "4711", "slots": 4})
    # Of the six that the search may use the allocation has four.
    assert idle_slots(inside) == (4, 2)
    assert held_idle_s(inside, 2, 10.0) == 20.0
