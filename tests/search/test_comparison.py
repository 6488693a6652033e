"""Comparisons of rows: groups of one protocol, ranks, learning curves at equal budgets."""

import math
from collections.abc import Mapping, Sequence
from itertools import pairwise
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from elmanctl.search.comparison import Differing, Row, compare_rows, differing
from elmanctl.search.learning_curve import Curve, common_range, curve_of

PROTOCOL = {"budget": {"steps": 200}, "warmup_steps": 3, "seq_len": 64, "holdout": 0.02}
FLOPS_PER_TOKEN = 1000


def result(losses: Sequence[float], **more: Any) -> dict[str, Any]:
    """Return the result of 512 tokens a step and 0.01 s a step after a warm-up of 5 s.

    It was validated at 64 steps, at each doubling, and at the end with its loss.
    """
    steps = [64 * 2**n for n in range(len(losses))]
    validations = [
        {"step": n, "tokens": 512 * n, "elapsed_s": 5 + 0.01 * (n - 3), "val_loss": loss}
        for n, loss in zip(steps, losses, strict=True)
    ]
    return {
        "loss": losses[-1],
        "validations": validations,
        "steps": steps[-1],
        "tokens": 512 * steps[-1],
        "tokens_per_step": 512,
        "tokens_per_s": 51200.0,
        "elapsed_s": 5 + 0.01 * (steps[-1] - 3),
        **more,
    }


def row(item: str, results: Mapping[int, Mapping[str, Any]], **changes: Any) -> Row:
    fields: dict[str, Any] = {
        "item": item,
        "model": "e88",
        "config": {"dim": 64},
        "lr": 0.01,
        "parameters": 1000,
        "protocol": PROTOCOL,
        "fingerprint": "aaa",
        "basis": "evaluation",
        "results": results,
        "sources": tuple(f"{item}-{seed}" for seed in results),
        "flops_per_token": FLOPS_PER_TOKEN,
    }
    return Row(**(fields | changes))


losses_of_seeds = st.dictionaries(
    st.integers(1, 4),
    st.lists(st.floats(0.5, 6), min_size=1, max_size=5),
    min_size=1,
    max_size=3,
)
rows = st.lists(st.tuples(losses_of_seeds, st.sampled_from("abc")), min_size=1, max_size=6).map(
    lambda drawn: [
        row(
            f"row-{n}",
            {seed: result(losses) for seed, losses in seeds.items()},
            fingerprint=name,
            protocol={**PROTOCOL, "holdout": {"a": 0.02, "b": 0.1, "c": 0.5}[name]},
        )
        for n, (seeds, name) in enumerate(drawn)
    ]
)


@given(rows, st.randoms())
def test_order_of_the_rows_does_not_matter(drawn: list[Row], random: Any) -> None:
    shuffled = list(drawn)
    random.shuffle(shuffled)
    assert compare_rows(shuffled) == compare_rows(drawn)


@given(rows)
def test_unlike_protocols_are_never_ranked_together(drawn: list[Row]) -> None:
    groups = compare_rows(drawn)
    assert sorted(each.row.item for group in groups for each in group.rows) == sorted(
        each.item for each in drawn
    )
    for group in groups:
        ranked = [group.rows, *(found.rows for found in group.equal_budgets)]
        assert {each.row.fingerprint for some in ranked for each in some} == {group.fingerprint}
        for some in ranked:
            means = [each.sample.mean for each in some]
            assert means == sorted(means)
            assert [each.difference is None for each in some] == [n == 0 for n in range(len(some))]
    assert groups[0].differing == ()
    assert all([each.field for each in group.differing] == ["holdout"] for group in groups[1:])


@given(rows)
def test_losses_at_an_equal_budget_are_between_measured_ones(drawn: list[Row]) -> None:
    for group in compare_rows(drawn):
        for found in group.equal_budgets:
            for each in found.rows:
                assert found.low is not None and found.high is not None
                for seed, loss in each.sample.losses.items():
                    curve = each.row.curves(found.measure)[seed]
                    assert curve.budgets[0] <= found.low <= found.high <= curve.budgets[-1]
                    assert min(curve.losses) - 1e-12 <= loss <= max(curve.losses) + 1e-12


def test_rows_are_compared_to_the_lowest_mean() -> None:
    (group,) = compare_rows(
        [
            row("one", {1: result([2.0]), 2: result([2.2])}),
            row("two", {1: result([1.8]), 2: result([1.9])}),
            row("alone", {1: result([1.95])}),
        ]
    )
    assert [each.row.item for each in group.rows] == ["two", "alone", "one"]
    one = group.rows[2].difference
    assert one is not None and one.test == "paired t"
    # Differences 0.2 and 0.3: their mean over their standard error is 5.
    assert one.nats == pytest.approx(0.25) and one.se == pytest.approx(0.05)
    assert one.p == pytest.approx(2 / math.pi * math.atan(1 / 5))
    alone = group.rows[1].difference
    assert alone is not None and alone.p is None and alone.se is not None
    assert group.noise is not None and group.noise.degrees == 2
    assert group.noise.sd == pytest.approx(math.sqrt((0.02 + 0.005) / 2))


def test_rows_of_unlike_batches_are_not_paired() -> None:
    seeds = (1, 2, 3)
    (group,) = compare_rows(
        [
            row("small", {seed: result([2.0 + seed]) for seed in seeds}),
            row("large", {seed: result([2.5 + seed], tokens_per_step=256) for seed in seeds}),
        ]
    )
    assert group.rows[1].difference is not None
    assert group.rows[1].difference.test == "Welch t"


def test_curves_are_compared_where_all_rows_have_measurements() -> None:
    # The FLOPs of a token of the second are twice those of the first.
    (group,) = compare_rows(
        [
            row("long", {1: result([3.0, 2.5, 2.0]), 2: result([3.2, 2.7, 2.2])}),
            row("short", {1: result([2.8, 2.4])}, flops_per_token=2 * FLOPS_PER_TOKEN),
            row("old", {1: {"loss": 1.0, "steps": 9}}),
        ]
    )
    tokens, time, flops = group.equal_budgets
    assert (tokens.low, tokens.high) == (64 * 512, 128 * 512)
    assert [(each.row.item, each.sample.losses) for each in tokens.rows] == [
        ("short", {1: 2.4}),
        ("long", {1: 2.5, 2: 2.7}),
    ]
    # Seconds after the warm-up, in which three steps were made.
    assert time.low == pytest.approx(0.61) and time.high == pytest.approx(1.25)
    assert [each.sample.losses for each in time.rows] == [
        {1: pytest.approx(2.4)},
        {1: pytest.approx(2.5), 2: pytest.approx(2.7)},
    ]
    assert (flops.low, flops.high) == (128 * 512_000, 256 * 512_000)
    assert flops.rows[0].sample.losses == {1: pytest.approx(2.0), 2: pytest.approx(2.2)}
    assert {found.missing for found in group.equal_budgets} == {(("old", "nothing was validated"),)}


def test_rows_that_share_no_range_are_not_compared_at_a_budget() -> None:
    (group,) = compare_rows(
        [
            row("first", {1: result([2.0])}),
            row("second", {1: result([2.5])}, flops_per_token=FLOPS_PER_TOKEN + 1),
        ]
    )
    tokens, _, flops = group.equal_budgets
    assert tokens.low == tokens.high == 64 * 512 and len(tokens.rows) == 2
    assert (flops.low, flops.high, flops.rows) == (None, None, ())


@given(st.lists(st.floats(0.5, 6), min_size=2, max_size=6), st.floats(0, 1))
def test_curve_is_linear_in_the_logarithm_of_the_budget(losses: list[float], share: float) -> None:
    curve = curve_of(result(losses), "tokens", None, 3)
    for (low, before), (high, after) in pairwise(zip(curve.budgets, curve.losses, strict=True)):
        assert (curve.at(low), curve.at(high)) == (before, after)
        budget = min(high, max(low, math.exp(math.log(low) + share * math.log(high / low))))
        assert curve.at(budget) == pytest.approx(before + share * (after - before), abs=1e-9)


def test_curve_says_why_there_is_none() -> None:
    measured = result([2.0])
    assert curve_of({}, "tokens", 1, 3).missing == "nothing was validated"
    assert curve_of(measured, "flops", None, 3).missing == "FLOPs are not counted"
    cold = {**measured, "tokens_per_s": None}
    assert curve_of(cold, "time", 1, 3).missing == "the training ended within its warm-up"
    late = {**measured, "elapsed_s": 60.0, "validations": measured["validations"]}
    assert curve_of(late, "time", 1, 3).missing == "nothing was validated after the warm-up"
    assert common_range([Curve(budgets=(1.0, 2.0), losses=(3.0, 2.0))]) == (1, 2)


def test_key_that_an_older_protocol_lacks_means_what_was_done_then() -> None:
    older = {key: value for key, value in PROTOCOL.items() if key != "holdout"}
    assert differing(older, PROTOCOL) == (Differing(field="holdout", value=0.0, first=0.02),)
    assert differing({**older, "holdout": 0.0}, older) == ()
