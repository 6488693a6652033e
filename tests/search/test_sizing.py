"""Smaller requests for jobs, from what evaluations have used."""

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from elmanctl.cli.search_summary import describe_sizing
from elmanctl.ledger.records import Attempt, Evaluation, State, Verdict, VerdictKind
from elmanctl.ledger.run_state import RunState
from elmanctl.ledger.spending import Spent
from elmanctl.search.effective_settings import effective_settings
from elmanctl.search.sizing import LEAST_EVALUATIONS, sizing_of
from elmanctl.search.workload import attempt_resources

GIB = 2**30


def evaluation(number: int, *minutes: float, peak_bytes: int | None = None) -> Evaluation:
    """Return a completed evaluation whose attempts took so long, all but the last preempted."""
    kinds = [VerdictKind.PREEMPTED] * (len(minutes) - 1) + [VerdictKind.COMPLETED]
    attempts = tuple(
        Attempt(
            number=index,
            submission="s0001",
            task_index=number,
            elapsed_s=60 * each,
            verdict=Verdict(kind=kind),
            result={} if peak_bytes is None else {"host_memory_bytes": peak_bytes},
        )
        for index, (each, kind) in enumerate(zip(minutes, kinds, strict=True), start=1)
    )
    return Evaluation(
        id=f"g000-e{number:02}",
        point=(0.0,),
        config={},
        lr=1e-3,
        parameters=1,
        seed=1,
        generation=0,
        state=State.COMPLETED,
        attempts=attempts,
    )


def run_of(
    *evaluations: Evaluation,
    slurm: dict[str, Any] | None = None,
    train: dict[str, Any] | None = None,
    executor: str = "slurm",
    failed: VerdictKind | None = None,
) -> RunState:
    asked = {"timeout_min": 120, "mem_gb": 64.0, **(slurm or {})}
    settings = {"slurm": asked, "train": {"steps": 100, **(train or {})}}
    return RunState(
        run={"executor": executor, "settings": settings},
        evaluations={one.id: one for one in evaluations},
        spent={} if failed is None else {failed.value: Spent(attempts=1)},
    )


def alike(count: int = LEAST_EVALUATIONS, minutes: float = 8.0, gb: int = 4) -> list[Evaluation]:
    return [evaluation(number, minutes, peak_bytes=gb * GIB) for number in range(count)]


def test_requests_that_are_much_too_large_are_told_with_what_is_enough() -> None:
    found = sizing_of(run_of(*alike()))
    assert found is not None
    assert found.advised == {"slurm.timeout_min": 13, "slurm.mem_gb": 7}
    assert describe_sizing(found) == (
        "8 evaluations took at most 8 of 120 min and 4 of 64 GB: "
        "`--set slurm.timeout_min=13 --set slurm.mem_gb=7` is enough"
    )


@pytest.mark.parametrize(
    ("state", "advised"),
    [
        # Only what is known, and what was asked for.
        (run_of(*alike(), evaluation(8, 8.0)), {"slurm.timeout_min"}),
        (run_of(*alike(), slurm={"mem_gb": None}), {"slurm.timeout_min"}),
        (run_of(*alike(), train={"gpus": 2}, slurm={"gres": "gpu:2"}), {"slurm.timeout_min"}),
        # What is nearly as much is left.
        (run_of(*alike(minutes=80.0, gb=40)), set()),
        # What was too small once is not lowered.
        (run_of(*alike(), failed=VerdictKind.TIMEOUT), {"slurm.mem_gb"}),
        (run_of(*alike(), failed=VerdictKind.OOM), {"slurm.timeout_min"}),
        # The attempts of one evaluation count together: it went on where the first was ended.
        (run_of(*alike(), evaluation(8, 50.0, 60.0, peak_bytes=GIB)), {"slurm.mem_gb"}),
        # A time budget has a least limit of its own: 60 min, a tenth of it, and ten minutes.
        (
            run_of(*alike(minutes=61.0), train={"steps": None, "minutes": 60.0}),
            {"slurm.timeout_min", "slurm.mem_gb"},
        ),
    ],
)
def test_advice_is_given_where_something_is_known(state: RunState, advised: set[str]) -> None:
    found = sizing_of(state)
    assert found is not None and set(found.advised) == advised
    attempt_resources(effective_settings(state, found.advised), "slurm", {})


@pytest.mark.parametrize(
    "state", [run_of(*alike(LEAST_EVALUATIONS - 1)), run_of(*alike(), executor="local")]
)
def test_nothing_is_said_of_few_evaluations_or_of_one_machine(state: RunState) -> None:
    assert sizing_of(state) is None
    assert describe_sizing(None) is None


@given(
    used=st.lists(
        st.tuples(st.floats(0.01, 200), st.integers(1, 200 * GIB)), min_size=8, max_size=20
    )
)
def test_advised_requests_are_enough_for_all_that_ran(used: list[tuple[float, int]]) -> None:
    evaluations = [evaluation(n, took, peak_bytes=peak) for n, (took, peak) in enumerate(used)]
    found = sizing_of(run_of(*evaluations))
    assert found is not None
    for took_min, peak_bytes in used:
        assert took_min < found.advised.get("slurm.timeout_min", 10**6)
        assert peak_bytes / GIB < found.advised.get("slurm.mem_gb", 10**6)
    assert found.advised.get("slurm.timeout_min", 0) < 120
    assert found.advised.get("slurm.mem_gb", 0) < 64
