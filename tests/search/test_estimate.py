"""Estimates: configurations in the order of what several seeds say, not of one lucky loss."""

from collections.abc import Mapping, Sequence

import pytest
from hypothesis import given
from hypothesis import strategies as st

from elmanctl.ledger.records import Attempt, Evaluation, State, Verdict, VerdictKind
from elmanctl.ledger.run_state import RunState
from elmanctl.search.estimate import by_estimate, estimates, ties
from elmanctl.search.noise import noise_of_repeats, noise_of_search

Losses = Mapping[str, Sequence[float | None]]


def ended(name: str, loss: float | None, first: str | None) -> Evaluation:
    """Return an evaluation that completed with a loss, or diverged."""
    kind = VerdictKind.DIVERGED if loss is None else VerdictKind.COMPLETED
    state = State.FAILED if loss is None else State.COMPLETED
    attempt = Attempt(
        number=1,
        submission="s",
        task_index=0,
        state=state,
        verdict=Verdict(kind=kind),
        result={"loss": loss},
    )
    return Evaluation(
        id=name,
        point=(),
        config={},
        lr=0.01,
        parameters=1,
        seed=0,
        generation=0,
        repeats=first,
        state=state,
        attempts=(attempt,),
    )


def state_of(losses: Losses) -> RunState:
    """Return a search with these losses of each configuration, by its first evaluation."""
    state = RunState()
    for name, values in losses.items():
        others = tuple(f"{name}-{number}" for number in range(1, len(values)))
        for each, loss in zip((name, *others), values, strict=True):
            state.put(ended(each, loss, None if each == name else name))
        if others:
            state.repeats[name] = others
    return state


def order(losses: Losses) -> list[str]:
    """Return the configurations, the best first."""
    return [each.evaluations[0].configuration for each in estimates(state_of(losses))]


KNOWN = [1.00, 1.02, 1.01]
OTHERS: Losses = {"bad": [2.0], "worse": [3.0]}


def test_lone_low_loss_is_behind_a_mean_that_is_known_better() -> None:
    # The noise is 0.01: the mean of three seeds is 1.01 and its upper end 1.0158.
    assert order({"known": KNOWN, "lone": [1.007], **OTHERS})[:2] == ["known", "lone"]
    assert order({"known": KNOWN, "lone": [1.005], **OTHERS})[:2] == ["lone", "known"]


def test_all_losses_of_a_configuration_stand_together() -> None:
    state = state_of({"known": KNOWN, "lone": [1.007], **OTHERS})
    names = [each.id for each in by_estimate(state)]
    assert names == ["known", "known-2", "known-1", "lone", "bad", "worse"]
    best = estimates(state)[0]
    assert best.n == 3
    assert best.mean == pytest.approx(1.01)
    assert best.se == pytest.approx(0.01 / 3**0.5)


def test_divergence_on_another_seed_ranks_behind_all_that_never_diverged() -> None:
    assert order({"lucky": [0.5, None], "known": KNOWN, **OTHERS})[-1] == "lucky"


@given(st.lists(st.floats(0.5, 9.0), min_size=1, max_size=20))
def test_one_seed_each_ranks_by_the_loss(losses: list[float]) -> None:
    state = state_of({f"g{number:03}": [loss] for number, loss in enumerate(losses)})
    assert by_estimate(state) == state.ranked()
    assert noise_of_search(state) is None and ties(estimates(state)) == []


@given(st.lists(st.lists(st.integers(0, 50), min_size=1, max_size=4), min_size=2, max_size=9))
def test_order_does_not_depend_on_the_unit_of_the_loss(drawn: list[list[int]]) -> None:
    scaled = [
        order({f"g{number:03}": [scale * x for x in xs] for number, xs in enumerate(drawn)})
        for scale in (1, 4)
    ]
    assert scaled[0] == scaled[1]


def test_noise_is_that_of_the_better_half() -> None:
    state = state_of({"good": [1.0, 1.1], "fair": [1.2], "bad": [5.0, 9.0]})
    assert [each.evaluations for each in noise_of_repeats(state)] == [("good", "good-1")]


def test_ties_are_within_the_standard_error_of_the_difference() -> None:
    # 0.01 and 0.01 / sqrt(3) make a standard error of 0.0115.
    found = estimates(state_of({"known": KNOWN, "near": [1.0214], "far": [1.0217], **OTHERS}))
    assert [each.evaluations[0].id for each in ties(found)] == ["near"]
