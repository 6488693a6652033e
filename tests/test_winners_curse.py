"""The measurement of the winner's curse, where the answer is known."""

import importlib
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest

BENCHMARKS = Path(__file__).parents[1] / "benchmarks"

# The mean of the least of so many standard normal numbers, less its sign (David and Nagaraja,
# Order Statistics, 2003, table of expected values).
LEAST_OF_100 = 2.5076
LEAST_OF_3 = 0.8463


@pytest.fixture
def curse(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    """The script, imported."""
    monkeypatch.syspath_prepend(str(BENCHMARKS))
    return importlib.import_module("winners_curse")


def test_the_lowest_of_equal_points_flatters_by_what_is_known(curse: ModuleType) -> None:
    found = curse.simulate(np.zeros(100), np.arange(100), 0.01, simulations=4000, seed=1)
    assert found.flattery == pytest.approx(0.01 * LEAST_OF_100, rel=0.02)
    assert found.confirmed_flattery == pytest.approx(0.01 * LEAST_OF_3 / 3**0.5, rel=0.05)
    assert (found.better, found.worse, found.lost) == (0, 0, 0)


def test_a_point_that_is_best_by_far_needs_no_confirmation(curse: ModuleType) -> None:
    values = np.array([0.0, *[1.0] * 50])
    found = curse.simulate(values, np.arange(51), 0.01, simulations=4000, seed=1)
    assert found.flattery == pytest.approx(0, abs=0.001)
    assert (found.better, found.worse, found.lost, found.confirmed_lost) == (0, 0, 0, 0)


def test_fit_finds_the_surface_and_the_noise_of_a_made_up_search(curse: ModuleType) -> None:
    draw = np.random.default_rng(2)
    places = [tuple(row) for row in draw.integers(0, 8, (60, 2)).tolist()]

    def value(place: tuple[int, ...]) -> float:
        return 1.3 + 0.003 * sum((x - 4) ** 2 for x in place)

    evaluations: list[dict[str, Any]] = [
        {"params": {"a": a, "b": b}, "status": "loss", "loss": value((a, b)) + draw.normal(0, 0.01)}
        for a, b in places * 2
    ]
    search = curse.decode({"model": "made up", "complete": True, "evals": evaluations})
    assert search.noise == pytest.approx(0.01, rel=0.3)
    assert len(search.losses) == 120
    found = curse.truth(search)
    different = list(dict.fromkeys(places))
    best = sorted(range(len(different)), key=lambda number: value(different[number]))[:20]
    errors = [found[number] - value(different[number]) for number in best]
    assert np.std(errors) < 0.006
    assert curse.decode({"model": "short", "complete": True, "evals": evaluations[:99]}) is None
