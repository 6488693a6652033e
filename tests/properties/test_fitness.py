"""Laws of what the optimizer is told, over every mix of verdicts."""

import math
from typing import Any

from hypothesis import given, settings
from hypothesis import strategies as st

from elmanctl.ledger.records import Evaluation, VerdictKind
from elmanctl.search.fitness import fitness_values, last_step
from tests.search.test_fitness import evaluation

losses = st.floats(-1e6, 1e6)
steps = st.one_of(st.none(), st.integers(0, 10**9), st.just("many"))


def results(kind: VerdictKind) -> st.SearchStrategy[dict[str, Any] | None]:
    """What a worker's result may hold, a completed one always with its loss."""
    if kind is VerdictKind.COMPLETED:
        return st.fixed_dictionaries({"loss": losses, "steps": steps})
    known = st.fixed_dictionaries({"loss": st.one_of(st.none(), losses), "steps": steps})
    return st.one_of(st.none(), known)


attempts = st.sampled_from(VerdictKind).flatmap(
    lambda kind: st.tuples(st.just(kind), results(kind))
)


@st.composite
def generations(draw: st.DrawFn) -> list[Evaluation]:
    several = draw(st.lists(st.lists(attempts, min_size=1, max_size=3), max_size=8))
    return [evaluation(index, *tried) for index, tried in enumerate(several)]


def last_kind(member: Evaluation) -> VerdictKind:
    last = member.last_attempt
    assert last is not None and last.verdict is not None
    return last.verdict.kind


@settings(max_examples=60)
@given(generations())
def test_every_told_value_is_a_finite_number(members: list[Evaluation]) -> None:
    for _, value in fitness_values(members):
        assert type(value) is float and math.isfinite(value)


@settings(max_examples=60)
@given(generations())
def test_exactly_completed_stopped_and_diverged_evaluations_are_told_in_order(
    members: list[Evaluation],
) -> None:
    spoken = {VerdictKind.COMPLETED, VerdictKind.STOPPED, VerdictKind.DIVERGED}
    expected = [member.id for member in members if last_kind(member) in spoken]
    assert [name for name, _ in fitness_values(members)] == expected


@settings(max_examples=60)
@given(generations())
def test_every_diverged_evaluation_ranks_behind_all_that_completed_or_were_stopped(
    members: list[Evaluation],
) -> None:
    told = dict(fitness_values(members))
    kinds = {member.id: last_kind(member) for member in members}
    losses = (VerdictKind.COMPLETED, VerdictKind.STOPPED)
    good = [v for name, v in told.items() if kinds[name] in losses]
    bad = [v for name, v in told.items() if kinds[name] is VerdictKind.DIVERGED]
    assert not good or not bad or max(good) < min(bad)


@settings(max_examples=60)
@given(generations())
def test_of_two_diverged_evaluations_the_later_divergence_is_better(
    members: list[Evaluation],
) -> None:
    told = dict(fitness_values(members))
    gone = [member for member in members if last_kind(member) is VerdictKind.DIVERGED]
    for one in gone:
        for other in gone:
            if last_step(one) > last_step(other):
                assert told[one.id] < told[other.id]
