"""A Latin hypercube, then CMA-ES from the best of its points."""

from dataclasses import replace

import pytest

from elmanctl.search.optimizers.lhs_cma import LhsCma
from elmanctl.search.optimizers.port import Point, Problem
from elmanctl.search.optimizers.pycma import Pycma
from elmanctl.space.coordinate import Coordinate
from tests.search.optimizers.problems import CASES, INTEGER, SHARE, every, loss, problem, some


def setting(name: str = "integers and shares") -> Problem:
    return replace(problem(CASES[name], population=6), design=18, starts=2, budget=60, sigma=0.14)


def drive(optimizer: LhsCma, generations: int) -> list[list[Point]]:
    asked = []
    for _ in range(generations):
        points = optimizer.ask(6, every)
        asked.append(points)
        optimizer.report([(point, loss(point)) for point in points])
    return asked


def test_first_points_are_one_in_each_stratum_of_every_coordinate() -> None:
    coordinates = (SHARE, INTEGER)
    whole = replace(problem(coordinates, population=6), design=20, starts=1, budget=60)
    points = [p for generation in range(10) for p in LhsCma(whole).ask(20, every)][:20]
    assert sorted(int(20 * x) for x, _ in points) == list(range(20))
    assert sorted(heads for _, heads in points) == sorted([*range(10)] * 2)


def test_starts_are_the_best_of_them_one_after_the_other_with_equal_shares() -> None:
    whole = setting()
    asked = drive(LhsCma(whole), 10)
    design = sorted((point for points in asked[:3] for point in points), key=loss)
    # 42 evaluations are left for two starts: 21 each, in whole generations.
    for index, generations in enumerate((asked[3:7], asked[7:10])):
        alone = Pycma(replace(whole, start=design[index], seed=whole.seed + index + 1))
        for points in generations:
            assert alone.ask(6, every) == points
            alone.report([(point, loss(point)) for point in points])


def test_starts_share_the_budget_of_an_asynchronous_search_too() -> None:
    optimizer = LhsCma(replace(setting(), is_asynchronous=True))
    waiting = optimizer.ask(4, every)
    begun = []
    for number in range(56):
        point = waiting.pop(number % 3)
        optimizer.report([(point, loss(point))])
        waiting += optimizer.ask(1, every)
        begun.append(len(optimizer._stages))
    # 18 points fill the space, and of the 42 others each start asks 21.
    assert [begun.count(stages) for stages in (0, 1, 2)] == [14, 21, 21]


def test_replacement_belongs_to_the_start_whose_point_failed() -> None:
    optimizer = LhsCma(setting())
    drive(optimizer, 6)
    points = optimizer.ask(6, every)
    begun = len(optimizer._stages)
    assert len(optimizer.ask(1, every)) == 1 and len(optimizer._stages) == begun == 1
    optimizer.report([(point, loss(point)) for point in points])
    optimizer.ask(6, every)
    assert len(optimizer._stages) == 2


def test_design_goes_on_until_one_point_has_a_value_and_late_values_find_their_start() -> None:
    optimizer = LhsCma(setting())
    first = [optimizer.ask(6, every) for _ in range(4)]
    assert not optimizer._stages
    optimizer.report([(first[0][2], 1.0)])
    stage = optimizer.ask(6, every)
    assert len(optimizer._starts) == 1
    optimizer.report([(point, loss(point)) for point in (*first[3], *stage)])
    assert len(optimizer.ask(6, every)) == 6


@pytest.mark.parametrize("name", CASES)
def test_replayed_it_goes_on_with_the_same_points(name: str) -> None:
    optimizer, exchanges = LhsCma(setting(name)), []
    refused = 0

    def counting(point: Point) -> bool:
        nonlocal refused
        refused += not some(point)
        return some(point)

    for turn in range(8):
        refused = 0
        points = optimizer.ask(6, counting)
        results = [(point, loss(point)) for point in points[: 6 - turn % 3]]
        optimizer.report(results[::-1])
        exchanges.append((points, refused, results[::-1]))
        again = LhsCma(setting(name))
        for asked, count, told in exchanges:
            again.replay(asked, count)
            again.report(told)
        assert again._history.values == optimizer._history.values
    assert again.ask(6, every) == optimizer.ask(6, every)


def test_small_space_of_which_all_points_are_known_does_not_hang() -> None:
    small = Coordinate(low=-0.5, high=1.5, integer=True)
    whole = replace(problem((small,), population=4), start=(0.0,), design=12, starts=3, budget=40)
    assert {p for _ in range(3) for p in LhsCma(whole).ask(4, every)} == {(0.0,), (1.0,)}
