"""Laws of the policy over every mix of verdicts: through the real loop, and through pycma."""

import math
from dataclasses import replace
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from elmanctl.errors import SearchPaused
from elmanctl.ledger.records import Evaluation, RunStatus, State, VerdictKind
from elmanctl.ledger.run_state import RunState
from elmanctl.ledger.state import load_run
from elmanctl.search.fitness import fitness_values, last_step
from elmanctl.search.optimizers.port import Problem
from elmanctl.search.optimizers.pycma import Pycma
from elmanctl.space.coordinate import Coordinate
from tests.search.scripted import Runs
from tests.search.test_fitness import evaluation

pytestmark = pytest.mark.usefixtures("no_power_failures")

POPULATION = 4
WORDS = sorted({*(kind.value for kind in VerdictKind), "oom gpu"})
PAUSES = 12

verdicts = st.lists(st.sampled_from(WORDS), min_size=1, max_size=3)
# First places and their replacements, of two generations.
scripts = st.dictionaries(
    st.sampled_from([f"g{g:03}-e{n:02}" for g in range(2) for n in range(6)]), verdicts
)


def check_told(state: RunState) -> None:
    """Assert that the reported fitness values are true, finite, in order and no more than asked."""
    for told in state.told.values():
        assert POPULATION // 2 <= len(told) <= POPULATION
        assert all(type(value) is float and math.isfinite(value) for _, value in told)
        members = [state.evaluations[name] for name, _ in told]
        good = {e.id for e in members if e.state is State.COMPLETED}
        for member, (_, value) in zip(members, told, strict=True):
            if member.id in good:
                assert value == member.loss
            else:
                last = member.attempts[-1].verdict
                assert last is not None and last.kind is VerdictKind.DIVERGED
                assert all(value > other for name, other in told if name in good)
        behind = [(v, e) for (n, v), e in zip(told, members, strict=True) if n not in good]
        behind.sort(key=lambda pair: pair[0])
        steps = [last_step(e) for _, e in behind]
        assert steps == sorted(steps, reverse=True)


@settings(
    max_examples=15,
    deadline=None,
    suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow],
)
@given(script=scripts, everywhere=st.sampled_from([None, *WORDS]), slurm=st.booleans())
def test_search_ends_or_pauses_and_is_told_the_truth_whatever_happens(
    runs: Runs, script: dict[str, list[str]], everywhere: str | None, slurm: bool
) -> None:
    on_slurm: dict[str, Any] = {"slurm": {"mem_gb": 8.0}} if slurm else {}
    run = runs.new(population=POPULATION, **on_slurm)
    run.world.script = dict(script)
    run.world.everywhere = everywhere
    paused = 0
    while paused < PAUSES:
        try:
            if run.drive().status is RunStatus.FINISHED:
                break
        except SearchPaused:
            paused += 1
    state = load_run(run.folder).state
    check_told(state)
    # Nobody is tried more often than all rows of the table together allow.
    assert all(len(e.attempts) <= 30 for e in state.evaluations.values())
    # Whatever was asked in place of others stays within the bound.
    for generation in range(state.generation + 1):
        asked = [e for e in state.evaluations.values() if e.generation == generation]
        assert len(asked) <= POPULATION + 2


losses = st.floats(-1e300, 1e300) | st.floats(1.0, 9.0)
endings = st.sampled_from(VerdictKind).flatmap(
    lambda kind: st.tuples(
        st.just(kind),
        st.fixed_dictionaries({"loss": losses, "steps": st.integers(0, 10**6)}),
    )
)
places = st.lists(st.lists(endings, min_size=1, max_size=2), min_size=8, max_size=8)


def members_of(ends: list[list[Any]], points: list[tuple[float, ...]]) -> list[Evaluation]:
    """Return a generation of four, and what was asked in place of those that have no value."""
    found = [replace(evaluation(n, *ends[n]), point=points[n]) for n in range(POPULATION)]
    for n in range(POPULATION, len(ends)):
        replaced = {e.replaces for e in found}
        silent = [e for e in found if e.state is State.FAILED and e.id not in replaced]
        if not silent:
            break
        place = silent[n % len(silent)].id
        found.append(replace(evaluation(n, *ends[n]), point=points[n], replaces=place))
    return found


@settings(max_examples=40, deadline=None)
@given(ends=places)
def test_pycma_takes_what_it_is_told_and_goes_on(ends: list[list[Any]]) -> None:
    share = Coordinate(low=0.0, high=1.0, integer=False)
    optimizer = Pycma(
        Problem(
            coordinates=(share, share),
            start=(0.5, 0.5),
            sigma=0.3,
            population=POPULATION,
            seed=1,
            budget=100,
        )
    )
    members = members_of(ends, optimizer.ask(len(ends), lambda point: True))
    told = fitness_values(members)
    assert len(told) <= POPULATION
    assert all(type(value) is float and math.isfinite(value) for _, value in told)
    kinds = {e.id: e.state for e in members}
    losses = (State.COMPLETED, State.STOPPED)
    good = [value for name, value in told if kinds[name] in losses]
    bad = [value for name, value in told if kinds[name] not in losses]
    assert not good or not bad or max(good) < min(bad)
    if len(told) < POPULATION // 2:
        return
    points = {e.id: e.point for e in members}
    optimizer.report([(points[name], value) for name, value in told])
    after = optimizer.ask(POPULATION, lambda point: True)
    assert len(set(after)) > 1
    assert all(0.0 <= x <= 1.0 for point in after for x in point)


def test_failure_in_first_place_and_nothing_but_failures_never_reach_the_optimizer(
    runs: Runs,
) -> None:
    run = runs.new(population=POPULATION, retry={"replacements": 0})
    run.world.script = {"g000-e00": ["timeout"], "g000-e01": ["timeout"]}
    state = run.drive()
    assert [name for name, _ in state.told[0]] == ["g000-e02", "g000-e03"]
    empty = runs.new(population=POPULATION)
    empty.world.everywhere = "timeout"
    with pytest.raises(SearchPaused, match="only 0 of 4"):
        empty.drive()
    assert load_run(empty.folder).state.told == {}
