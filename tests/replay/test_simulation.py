"""Simulated searches: an optimizer is told what a search would tell it."""

import math
from dataclasses import replace

import numpy as np
import pytest

from elmanctl.errors import InvalidConfiguration
from elmanctl.replay.functions import FunctionSource
from elmanctl.replay.objective import Array, Objective
from elmanctl.replay.simulation import Trace, Training, fitness_of, settings_of, simulate
from elmanctl.search.fitness import last_ranks
from elmanctl.space.axis import Axis
from elmanctl.space.candidates import MAX_REFUSED


class Bowl:
    """A surface over one axis of eight values, lowest at 5; nothing below `least` is valid."""

    fingerprint = "bowl"

    def __init__(self, least: int = 0) -> None:
        self._least = least

    def values(self, points: Array) -> Array:
        return np.asarray((points[:, 0] - 5.0) ** 2)

    def is_valid(self, point: object) -> bool:
        assert isinstance(point, tuple)
        return bool(point[0] >= self._least)


def bowl(least: int = 0, noise: float = 0.0, failure_share: float = 0.0) -> Objective:
    """Return the bowl as an objective."""
    return Objective(
        name="bowl",
        axes=(Axis(name="a", kind="int", low=0, high=7),),
        surface=Bowl(least),
        noise=noise,
        failure_share=failure_share,
        best=0.0,
        typical=4.0,
    )


def search(
    objective: Objective, optimizer: str = "cma", *, seed: int = 1, budget: int = 60
) -> Trace:
    """Return one search."""
    settings = settings_of(optimizer, population=8, sigma=None, seed=seed, budget=budget)
    return simulate(objective, settings)


def test_repeats_are_answered_and_a_search_of_nothing_else_ends() -> None:
    trace = search(bowl())
    assert trace.trained <= 8 and trace.retrained == 0
    assert trace.answered == 8 * trace.generations - trace.trained > 0
    assert trace.value(60) == 0.0


def test_invalid_points_are_drawn_again_and_never_trained() -> None:
    trace = search(bowl(least=4))
    assert trace.refused > 0 and trace.trained <= 4
    with pytest.raises(InvalidConfiguration, match=f"{MAX_REFUSED:,} points in one generation"):
        search(bowl(least=99))


def test_budget_counts_trained_evaluations_exactly() -> None:
    objective = FunctionSource(name="quadratic").at(1)
    trace = search(objective, budget=30)
    assert trace.trained == 30 and trace.generations == 4
    assert max(number for number, _ in trace.handed) <= 30


def test_same_seed_gives_the_same_search_and_another_one_another() -> None:
    objective = FunctionSource(name="rugged").at(1)
    one, other = (replace(search(objective, seed=seed), cpu_ms=0.0) for seed in (3, 3))
    assert one == other
    assert search(objective, seed=4).handed != one.handed


def test_without_noise_the_point_handed_over_only_improves() -> None:
    objective = replace(FunctionSource(name="valley").at(2), noise=0.0)
    values = [value for _, value in search(objective, budget=100).handed]
    assert len(values) > 3 and values == sorted(values, reverse=True)


def test_handed_value_is_the_noise_free_one_of_the_lowest_loss() -> None:
    training = Training(bowl(noise=5.0), seed=1, budget=20)
    points = [(float(i % 8),) for i in range(20)]
    losses = training.losses(points, again=True)
    known = [math.inf if loss is None else loss for loss in losses]
    lowest = known.index(min(known))
    assert training.handed[-1] == (lowest + 1, (points[lowest][0] - 5.0) ** 2)


def test_noise_and_failures_of_a_seed_are_those_of_every_optimizer() -> None:
    trainings = [Training(bowl(noise=1.0, failure_share=0.3), seed=7, budget=50) for _ in range(2)]
    ones = trainings[0].losses([(5.0,)] * 50, again=True)
    others = [trainings[1].losses([(4.0,)], again=True)[0] for _ in range(50)]
    assert 5 < sum(loss is None for loss in ones) < 25
    for one, other in zip(ones, others, strict=True):
        assert (one is None) == (other is None)
        assert one is None or other is None or other - one == pytest.approx(1.0)


def test_search_of_the_study_trains_repeats_again_and_tells_failures_as_ten() -> None:
    trace = search(bowl(noise=0.1), "study", budget=24)
    assert trace.trained == 24 and trace.retrained >= 16 and trace.answered == 0
    assert fitness_of([2.0, None, 30.0], failed_loss=10.0) == [2.0, 10.0, 10.0]
    # Its optimizer asks no other point for an invalid one.
    trace = search(bowl(least=4, noise=0.1), "study", budget=24)
    assert trace.trained == 24 and trace.refused > 0


def test_optimizer_brings_its_own_defaults_but_for_what_is_given() -> None:
    def sigma(optimizer: str, given: float | None) -> float:
        return settings_of(optimizer, population=8, sigma=given, seed=1, budget=30).sigma

    assert [sigma("lhs-cma", None), sigma("lhs-cma", 0.2), sigma("cma", None)] == [0.14, 0.2, 0.3]


def test_failures_come_behind_the_worst_loss_of_their_generation() -> None:
    assert fitness_of([2.0, None, 3.0, None]) == [2.0, *last_ranks(3.0, 1), 3.0, 5.0]
    assert fitness_of([None, None]) == last_ranks(0.0, 2)


def test_search_whose_every_training_fails_ends_without_a_value() -> None:
    trace = search(replace(FunctionSource(name="quadratic").at(1), failure_share=1.0), budget=24)
    assert trace.trained == trace.failed == 24
    assert trace.handed == () and trace.value(24) == math.inf


def test_value_is_that_after_so_many_evaluations() -> None:
    trace = Trace(handed=((2, 5.0), (9, 3.0)), trained=10, failed=0, generations=2, cpu_ms=1.0)
    assert [trace.value(n) for n in (1, 2, 8, 9, 10)] == [math.inf, 5.0, 5.0, 3.0, 3.0]
