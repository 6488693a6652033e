"""Reports that come late and in any order, for every optimizer of an asynchronous search."""

from collections.abc import Sequence
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from elmanctl.constants import GP_OPTUNA, OPTIMIZERS, STUDY
from elmanctl.search.optimizers import pycma
from elmanctl.search.optimizers.port import Point
from elmanctl.search.optimizers.registry import start_optimizer
from tests.search.optimizers.packages import need_packages_of
from tests.search.optimizers.problems import CASES, every, loss, problem

POPULATION = 4
CASE = CASES["integers and shares"]

# A point of Optuna's GP takes a quarter of a second, one of the other models less.
EXAMPLES = {GP_OPTUNA: 1, "tpe": 3, "gp": 3, "tpe-gp": 3}


def of_space(row: Sequence[float]) -> Point:
    """Return the point of a row of pycma in the coordinates themselves, with whole numbers."""
    return tuple(round(x) if c.integer else x for c, x in zip(CASE, row, strict=True))


@pytest.mark.parametrize("name", [name for name in OPTIMIZERS if name != STUDY])
def test_value_is_paired_with_its_own_point_in_any_order_of_reports(
    name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    need_packages_of(name)
    learned: list[tuple[Sequence[float], float]] = []
    learn = pycma.Strategy.learn

    def noted(self: pycma.Strategy, rows: Sequence[Any], values: Sequence[float]) -> None:
        learned.extend(zip(rows, values, strict=True))
        learn(self, rows, values)

    monkeypatch.setattr(pycma.Strategy, "learn", noted)

    @settings(
        max_examples=EXAMPLES.get(name, 12),
        suppress_health_check=[HealthCheck.too_slow],
    )
    @given(data=st.data())
    def search(data: st.DataObject) -> None:
        learned.clear()
        optimizer = start_optimizer(name, problem(CASE, POPULATION))
        # More points are in flight than a generation has, and each one that ends is replaced.
        pending = optimizer.ask(POPULATION + 2, every)
        asked = list(pending)
        while len(asked) < 4 * POPULATION:
            ended = data.draw(st.integers(0, len(pending) - 1))
            point = pending.pop(ended)
            optimizer.report([(point, loss(point))])
            (new,) = optimizer.ask(1, every)
            pending.append(new)
            asked.append(new)
        for point in data.draw(st.permutations(pending)):
            optimizer.report([(point, loss(point))])
        history = vars(optimizer)["_history"]
        assert history.points == asked
        assert history.values == {number: loss(point) for number, point in enumerate(asked)}
        for row, value in learned:
            assert value in {loss(point) for point in asked if _is_near(point, row)}
        with pytest.raises(ValueError, match="has its value"):
            optimizer.report([(asked[0], 0.0)])

    search()
    assert bool(learned) == (name in ("cma", "cma-gp", "lhs-cma"))


def _is_near(point: Point, row: Sequence[float]) -> bool:
    """Whether pycma drew a row as a point, in the coordinates or in shares of their ranges."""
    shares = [c.low + x * (c.high - c.low) for c, x in zip(CASE, row, strict=True)]
    return any(
        all(
            abs(a - b) < (0.5001 if c.integer else 1e-6)
            for a, b, c in zip(point, at, CASE, strict=True)
        )
        for at in (shares, of_space(row))
    )
