"""Candidates: a point becomes a configuration within the budget, or is refused."""

from collections.abc import Sequence
from typing import Any

import pytest

from elmanctl.errors import InvalidConfiguration
from elmanctl.models.params import count_parameters
from elmanctl.run.training import Training
from elmanctl.settings import SearchSettings, Settings
from elmanctl.space import candidates
from elmanctl.space.candidates import CandidateBuilder, Screen, ask_candidates
from elmanctl.space.space import SearchSpace, load_space

SEARCH: dict[str, Any] = {"params": "100K", "tolerance": 0.1, "multiple_of": 8}


def tiny(
    axes: dict[str, Any] | None = None, fixed: dict[str, Any] | None = None, **search: Any
) -> tuple[SearchSpace, CandidateBuilder]:
    settings = Settings(
        search=SearchSettings(**{**SEARCH, **search}), train=Training(steps=1, lr=5e-3)
    )
    space = load_space("e88", "tiny", axes=axes or {}, fixed=fixed or {})
    return space, CandidateBuilder(space, settings, "local")


class Scripted:
    """An optimizer that asks given points, one after the other."""

    def __init__(self, points: Sequence[tuple[float, ...]]) -> None:
        self._points = list(points)
        self.drawn = 0

    def ask(self, count: int, is_valid: Screen) -> list[tuple[float, ...]]:
        chosen: list[tuple[float, ...]] = []
        while len(chosen) < count:
            point = self._points.pop(0)
            self.drawn += 1
            if is_valid(point):
                chosen.append(point)
        return chosen


def test_dim_meets_the_budget_and_the_count_is_exact() -> None:
    space, builder = tiny()
    for point in (space.middle, (0.0, 1.0, 2.0, 0.1), (6.0, 0.0, 0.0, 0.9)):
        candidate = builder.build(point)
        config = candidate.config
        assert "lr" not in config
        assert candidate.point == point
        assert candidate.parameters == count_parameters("e88", config)
        assert abs(candidate.parameters - 100_000) <= 10_000
        assert config["dim"] in range(8, 512, 8)


def test_learning_rate_comes_from_its_axis() -> None:
    space, builder = tiny()
    assert builder.build(space.middle).lr == pytest.approx((3e-3 * 3e-2) ** 0.5)


def test_learning_rate_comes_from_the_settings_where_it_is_no_axis() -> None:
    space, builder = tiny(fixed={"lr": 7e-3})
    assert "lr" not in [axis.name for axis in space.axes]
    assert builder.build(space.middle).lr == 7e-3


def test_dim_that_is_fixed_is_kept_without_a_budget() -> None:
    space, builder = tiny(fixed={"dim": 40}, params=None)
    assert builder.build(space.middle).config["dim"] == 40


def test_fixed_dim_that_misses_the_budget_is_refused() -> None:
    space, builder = tiny(fixed={"dim": 8})
    with pytest.raises(InvalidConfiguration, match=r"not within 10\.0% of 100,000"):
        builder.build(space.middle)


def test_budget_that_no_dim_meets_is_refused() -> None:
    space, builder = tiny(tolerance=1e-6)
    with pytest.raises(InvalidConfiguration, match="no dim that is a multiple of 8"):
        builder.build(space.middle)


def test_neither_budget_nor_dim_is_refused_before_any_point() -> None:
    with pytest.raises(
        InvalidConfiguration, match="neither a parameter budget nor `dim`"
    ) as caught:
        tiny(params=None)
    assert caught.value.hint is not None and "--params" in caught.value.hint


def test_refused_points_are_asked_again_one_at_a_time_and_counted() -> None:
    # Two heads with 16 keys each cannot share 33 values.
    axes = {"expansion": {"kind": "choice", "values": [1.0, 1.03125]}}
    _, builder = tiny(axes=axes)
    good, bad = (0.0, 1.0, 1.0, 0.5, 0.0), (0.0, 1.0, 1.0, 0.5, 1.0)
    optimizer = Scripted([good, bad, bad, good, bad, good, good])
    built, refused = ask_candidates(optimizer.ask, builder, 4)
    assert [candidate.point for candidate in built] == [good] * 4
    assert refused == 3
    assert optimizer.drawn == 7


def test_space_that_holds_nothing_ends_with_the_last_reason(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(candidates, "MAX_REFUSED", 20)
    space, builder = tiny(tolerance=1e-9)
    optimizer = Scripted([space.middle] * 24)
    with pytest.raises(InvalidConfiguration, match="20 points cannot be built") as caught:
        ask_candidates(optimizer.ask, builder, 4)
    assert "no dim that is a multiple" in caught.value.message
    assert caught.value.hint is not None


def test_space_that_holds_nothing_tells_its_two_most_frequent_reasons(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(candidates, "MAX_REFUSED", 8)
    axes = {"expansion": {"kind": "choice", "values": [1.0, 1.03125]}}
    _, builder = tiny(axes=axes, tolerance=1e-9)
    off_budget, uneven = (0.0, 1.0, 1.0, 0.5, 0.0), (0.0, 1.0, 1.0, 0.5, 1.0)
    optimizer = Scripted([off_budget, uneven] * 2 + [off_budget] * 4)
    with pytest.raises(InvalidConfiguration, match="8 points cannot be built") as caught:
        ask_candidates(optimizer.ask, builder, 4)
    assert "most often: no dim that is a multiple" in caught.value.message
    assert "; 2 times: " in caught.value.message
    assert "cannot be divided evenly" in caught.value.message
    assert caught.value.hint is not None and "nearest valid expansions" in caught.value.hint
