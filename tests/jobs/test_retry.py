"""Whether an attempt is the last one: a declared table, and nothing else."""

from dataclasses import fields

import pytest
from hypothesis import given
from hypothesis import strategies as st

from elmanctl.jobs.retry import SYSTEMATIC, Decision, decide, systematic_failure
from elmanctl.ledger.records import State, Verdict, VerdictKind
from elmanctl.settings import RetrySettings

DEFAULT = RetrySettings()
FINAL = {VerdictKind.COMPLETED: State.COMPLETED, VerdictKind.CANCELLED: State.CANCELLED}
FAILURES = [kind for kind in VerdictKind if kind not in FINAL]


def verdicts(*kinds: VerdictKind) -> list[Verdict]:
    return [Verdict(kind=kind) for kind in kinds]


@pytest.mark.parametrize("kind", FAILURES)
def test_every_failure_has_a_line_in_the_table(kind: VerdictKind) -> None:
    assert kind.value in {item.name for item in fields(RetrySettings)}


@pytest.mark.parametrize("kind", FAILURES)
def test_failure_is_tried_again_as_often_as_the_table_says(kind: VerdictKind) -> None:
    allowed = getattr(DEFAULT, kind.value)
    for count in range(1, allowed + 3):
        decision = decide(verdicts(*[kind] * count), DEFAULT, mem_gb=None)
        assert decision.close is (None if count <= allowed else State.FAILED)


@pytest.mark.parametrize(("kind", "state"), FINAL.items())
def test_completed_and_cancelled_attempts_are_final_whatever_came_before(
    kind: VerdictKind, state: State
) -> None:
    tried = verdicts(VerdictKind.PYTHON_ERROR, VerdictKind.NODE_FAILURE, kind)
    assert decide(tried, DEFAULT, mem_gb=8.0) == Decision(close=state)


def test_divergence_is_final_and_is_not_tried_again() -> None:
    assert decide(verdicts(VerdictKind.DIVERGED), DEFAULT, mem_gb=None).close is State.FAILED


def test_each_kind_of_failure_is_counted_by_itself() -> None:
    tried = verdicts(VerdictKind.KILLED, VerdictKind.NODE_FAILURE, VerdictKind.LOST)
    assert decide(tried, DEFAULT, mem_gb=None).close is None
    tried += verdicts(VerdictKind.KILLED)
    assert decide(tried, DEFAULT, mem_gb=None).close is State.FAILED


def test_out_of_memory_is_tried_again_with_more_of_it() -> None:
    decision = decide(verdicts(VerdictKind.OOM), DEFAULT, mem_gb=32.0)
    assert decision == Decision(close=None, changes={"mem_gb": 48.0})
    table = RetrySettings(oom=5, mem_factor=2.0)
    tried = verdicts(VerdictKind.OOM, VerdictKind.OOM)
    assert decide(tried, table, mem_gb=48.0).changes == {"mem_gb": 96.0}


def test_out_of_memory_changes_nothing_where_no_memory_was_asked_for() -> None:
    assert decide(verdicts(VerdictKind.OOM), DEFAULT, mem_gb=None) == Decision(close=None)


def test_other_failures_are_tried_again_with_the_same_memory() -> None:
    assert decide(verdicts(VerdictKind.NODE_FAILURE), DEFAULT, mem_gb=32.0).changes == {}


@given(st.lists(st.sampled_from(FAILURES), min_size=1, max_size=40))
def test_no_evaluation_is_tried_for_ever(kinds: list[VerdictKind]) -> None:
    total = sum(getattr(DEFAULT, kind.value) for kind in FAILURES)
    closed = [
        decide(verdicts(*kinds[: count + 1]), DEFAULT, mem_gb=None).close
        for count in range(len(kinds))
    ]
    if len(kinds) > total:
        assert State.FAILED in closed


@pytest.mark.parametrize("kind", sorted(SYSTEMATIC - {VerdictKind.DISK_FULL}))
def test_several_failures_of_one_systematic_kind_in_a_row_are_a_systematic_failure(
    kind: VerdictKind,
) -> None:
    assert systematic_failure([kind] * 2, 3) is None
    assert systematic_failure([kind] * 3, 3) is kind
    assert systematic_failure([VerdictKind.DIVERGED, *[kind] * 3], 3) is kind
    assert systematic_failure([kind, kind, VerdictKind.DIVERGED, kind], 3) is None


@pytest.mark.parametrize("kind", sorted(set(FAILURES) - SYSTEMATIC))
def test_failures_that_say_something_of_the_point_or_the_node_are_not_systematic(
    kind: VerdictKind,
) -> None:
    assert systematic_failure([kind] * 10, 3) is None


def test_full_disk_counts_at_once() -> None:
    assert systematic_failure([VerdictKind.DISK_FULL], 3) is VerdictKind.DISK_FULL


def test_breaker_of_zero_never_trips_but_for_a_full_disk() -> None:
    assert systematic_failure([VerdictKind.PYTHON_ERROR] * 9, 0) is None
    assert systematic_failure([], 0) is None
