"""Summaries: medians, regrets, and the test on pairs."""

import math

import numpy as np
import pytest
from scipy.stats import wilcoxon

from elmanctl.replay.functions import FunctionSource
from elmanctl.replay.runner import Simulations, Task
from elmanctl.replay.simulation import Trace
from elmanctl.replay.summary import overall, rows_of, signed_rank_p

SIMULATIONS = Simulations(sources={"cliff": FunctionSource(name="cliff")}, procedures={})


def traces(optimizer: str, values: list[float]) -> dict[Task, Trace]:
    """Return a search for each value that is handed over."""
    return {
        Task(source="cliff", optimizer=optimizer, seed=seed, budget=8, population=8): Trace(
            handed=((1, 9.0), (8, value)),
            trained=8,
            failed=0,
            retrained=2,
            generations=1,
            cpu_ms=4.0,
        )
        for seed, value in enumerate(values, start=1)
    }


def test_row_has_the_quartiles_of_what_was_handed_over() -> None:
    (row,) = rows_of(SIMULATIONS, traces("cma", [4.0, 1.0, 2.0, 3.0, 5.0]))
    assert (row.low, row.median, row.high, row.searches) == (2.0, 3.0, 4.0, 5)
    assert row.regret == pytest.approx(3.0) and row.wasted == 2.0 and row.cpu_ms == 4.0


def test_failed_searches_are_counted_and_enter_no_number() -> None:
    found = traces("cma", [4.0, 1.0])
    failed = Trace(handed=(), trained=0, failed=0, generations=0, cpu_ms=0.0, error="E: why")
    found[next(iter(found))] = failed
    (row,) = rows_of(SIMULATIONS, found)
    assert (row.searches, row.failed_searches, row.median, row.low) == (1, 1, 1.0, 1.0)
    (row,) = rows_of(SIMULATIONS, dict.fromkeys(found, failed))
    assert row.searches == 0 and math.isnan(row.median) and math.isnan(row.regret)


def test_optimizers_are_compared_on_the_pairs_that_both_have() -> None:
    found = traces("cma", [4.0, 2.0, 3.0]) | traces("other", [2.0, 1.0])
    base, other = overall(SIMULATIONS, found, "cma")
    assert base.ratio is None and base.p is None and base.pairs == 3
    assert other.ratio == pytest.approx(0.5) and other.pairs == 2
    assert other.p is not None


@pytest.mark.parametrize("digits", [0, 1, 8])
def test_signed_rank_test_is_that_of_scipy(digits: int) -> None:
    draw = np.random.default_rng(4)
    own = np.round(draw.normal(size=80), digits)
    other = np.round(own + draw.normal(0.2, 1.0, size=80), digits)
    expected = wilcoxon(own, other, correction=False, method="asymptotic").pvalue
    assert signed_rank_p(list(zip(own.tolist(), other.tolist(), strict=True))) == pytest.approx(
        expected, rel=1e-9
    )
    assert signed_rank_p([(1.0, 1.0)] * 5) is None
