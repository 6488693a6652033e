"""CMA-ES as ask and tell: the same points whatever happens to the process, no value that lies."""

import base64
import json
import math
import os
import subprocess
import sys
import warnings
from collections.abc import Iterator
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from elmanctl.errors import UsageError
from elmanctl.search import optimizer as optimizer_module
from elmanctl.search.optimizer import CmaOptimizer
from elmanctl.space.coordinate import Coordinate
from tests.search.restored_optimizer import WAYS, Point

INTEGER = Coordinate(low=-0.5, high=9.5, integer=True)
SHARE = Coordinate(low=0.0, high=1.0, integer=False)
# Few values, so that points repeat within a generation.
SMALL = Coordinate(low=-0.5, high=3.5, integer=True)

CASES: dict[str, tuple[Coordinate, ...]] = {
    "one integer": (SMALL,),
    "one share": (SHARE,),
    "three integers": (INTEGER, INTEGER, SMALL),
    "integers and shares": (INTEGER, SHARE, SMALL, SHARE),
}
POPULATIONS = (4, 7)
GENERATIONS = 8


def start(coordinates: tuple[Coordinate, ...], population: int, seed: int = 5) -> CmaOptimizer:
    middle = [4.0 if c is INTEGER else 1.0 if c is SMALL else 0.5 for c in coordinates]
    return CmaOptimizer.start(coordinates, middle, sigma=0.3, population=population, seed=seed)


def loss(point: Point) -> float:
    return sum((x - 0.2 * (i + 1)) ** 2 for i, x in enumerate(point))


def generations(
    optimizer: CmaOptimizer, population: int, way: str = "all"
) -> Iterator[tuple[bytes, list[Point]]]:
    """Yield the state after asking, and the points, of one generation after the other."""
    for _ in range(GENERATIONS):
        points = WAYS[way](optimizer, population)
        yield optimizer.dump(), points
        optimizer.tell(points, [loss(point) for point in points])


class NeverStopped:
    """Every case, driven without a stop: what a restored optimizer must repeat."""

    def __init__(self) -> None:
        self.orders: list[tuple[str, list[Point], list[float], str]] = []
        self.expected: list[list[Point]] = []
        self.repeated = 0
        for coordinates in CASES.values():
            for population in POPULATIONS:
                for way in WAYS:
                    optimizer = start(coordinates, population)
                    self._add(list(generations(optimizer, population, way)), way)

    def _add(self, told: list[tuple[bytes, list[Point]]], way: str) -> None:
        for (dump, points), (_, following) in pairwise(told):
            values = [loss(point) for point in points]
            self.orders.append((base64.b64encode(dump).decode(), points, values, way))
            self.expected.append(following)
            self.repeated += len(set(points)) < len(points)


@pytest.fixture(scope="module")
def never_stopped() -> NeverStopped:
    return NeverStopped()


@pytest.mark.parametrize("hash_seed", ["1", "4321"])
def test_restored_in_another_process_it_asks_what_one_never_stopped_asks(
    never_stopped: NeverStopped, hash_seed: str
) -> None:
    """Integers, shares and both; refused points, and points that repeat in a generation."""
    assert never_stopped.repeated > 10
    done = subprocess.run(
        [sys.executable, "-m", "tests.search.restored_optimizer", hash_seed],
        input=json.dumps(never_stopped.orders),
        env={
            **os.environ,
            "PYTHONHASHSEED": hash_seed,
            "PYTHONPATH": str(Path(__file__).parents[2]),
        },
        capture_output=True,
        text=True,
        check=True,
    )
    answers = [[tuple(point) for point in points] for points in json.loads(done.stdout)]
    assert answers == never_stopped.expected


def test_told_points_move_it_as_they_move_bare_pycma() -> None:
    """Above all pycma must know its own points again: else it learns from rounded integers."""
    cma = optimizer_module._cma()
    for coordinates in (CASES["three integers"], CASES["integers and shares"]):
        ours = start(coordinates, 7)
        before = np.random.get_state()
        np.random.set_state(np.random.RandomState(6).get_state())
        options = optimizer_module._options(coordinates, 7, 5, np.random.RandomState(5))
        middle = [4.0 if c is INTEGER else 1.0 if c is SMALL else 0.5 for c in coordinates]
        bare = cma.CMAEvolutionStrategy(middle, 0.3, options)
        for _ in range(GENERATIONS):
            points = ours.ask(7)
            drawn = bare.ask(7)
            assert points == [tuple(map(float, x)) for x in drawn]
            values = [loss(point) for point in points]
            ours.tell(points, values)
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")
                bare.tell(drawn, values)
        np.random.set_state(before)


def test_two_optimizers_in_one_process_do_not_disturb_each_other() -> None:
    coordinates = CASES["integers and shares"]
    alone = [points for _, points in generations(start(coordinates, 5), 5)]
    one, other = start(coordinates, 5), start(coordinates, 5, seed=77)
    together = []
    for (_, points), _ in zip(generations(one, 5), generations(other, 5, "buildable"), strict=True):
        np.random.random(3)
        together.append(points)
    assert together == alone


def test_global_generator_of_numpy_is_left_as_it_was() -> None:
    np.random.seed(99)
    expected = np.random.RandomState(99).random(4).tolist()
    optimizer = start(CASES["three integers"], 4)
    points = optimizer.ask(4)
    optimizer.tell(points, [loss(point) for point in points])
    CmaOptimizer.load(optimizer.dump())
    assert np.random.random(4).tolist() == expected


def test_other_seed_asks_other_points() -> None:
    coordinates = CASES["integers and shares"]
    assert start(coordinates, 6, seed=1).ask(6) != start(coordinates, 6, seed=2).ask(6)


@pytest.mark.parametrize("name", CASES)
def test_points_lie_within_the_bounds_and_integers_are_whole(name: str) -> None:
    coordinates = CASES[name]
    for _, points in generations(start(coordinates, 6), 6):
        for point in points:
            assert len(point) == len(coordinates)
            for x, coordinate in zip(point, coordinates, strict=True):
                assert type(x) is float
                assert coordinate.low <= x <= coordinate.high
                assert not coordinate.integer or x == round(x)


@pytest.mark.parametrize("name", ["one integer", "one share"])
def test_one_axis_is_searched_to_its_best_value(name: str) -> None:
    (coordinate,) = CASES[name]
    found = [points for _, points in generations(start((coordinate,), 6), 6)]
    best = 0.0 if coordinate.integer else 0.2
    assert min(abs(x - best) for (x,) in found[-1]) < 0.05


@pytest.mark.parametrize("name", CASES)
@pytest.mark.parametrize("population", [4, 5, 6, 9])
def test_half_a_generation_is_enough_to_learn_from(name: str, population: int) -> None:
    """A search goes on when at least half of a generation gave a loss."""
    optimizer = start(CASES[name], population)
    for _ in range(GENERATIONS):
        points = optimizer.ask(population)[: population // 2]
        optimizer.tell(points, [loss(point) for point in points])


@pytest.mark.parametrize("name", CASES)
@pytest.mark.parametrize("extra", [1, 2, 6])
def test_more_points_than_a_generation_are_learned_from(name: str, extra: int) -> None:
    """A failed evaluation may be replaced, queued again by hand, and complete after all."""
    optimizer = start(CASES[name], 4)
    for _ in range(GENERATIONS):
        points = optimizer.ask(4)
        for _ in range(extra):
            points += optimizer.ask(1)
        optimizer.tell(points, [loss(point) for point in points])
        restored = CmaOptimizer.load(optimizer.dump())
        assert restored.ask(4) == CmaOptimizer.load(optimizer.dump()).ask(4)


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
def test_value_that_is_not_finite_is_refused_and_nothing_is_learned(value: float) -> None:
    optimizer = start(CASES["integers and shares"], 4)
    points = optimizer.ask(4)
    before = optimizer.dump()
    with pytest.raises(ValueError, match="finite"):
        optimizer.tell(points, [1.0, 2.0, value, 3.0])
    assert optimizer.dump() == before
    optimizer.tell(points, [1.0, 2.0, 4.0, 3.0])


def test_point_that_was_never_asked_is_refused() -> None:
    optimizer = start(CASES["one share"], 4)
    points = optimizer.ask(4)
    with pytest.raises(ValueError, match="not asked"):
        optimizer.tell([*points[:3], (0.123,)], [1.0, 2.0, 3.0, 4.0])


def test_values_of_the_caller_are_left_alone() -> None:
    optimizer = start(CASES["one integer"], 4)
    points = optimizer.ask(4)
    values = [3.0, 1.0, 2.0, 2.0]
    optimizer.tell(points, values)
    assert values == [3.0, 1.0, 2.0, 2.0]


BAD_STARTS: list[tuple[dict[str, Any], str]] = [
    ({"population": 3}, "at least 4"),
    ({"seed": -1}, "seed"),
    ({"seed": 2**32}, "seed"),
    ({"sigma": 0.0}, "sigma"),
    ({"sigma": math.nan}, "sigma"),
]


@pytest.mark.parametrize(("changes", "message"), BAD_STARTS)
def test_start_that_cannot_work_is_refused(changes: dict[str, Any], message: str) -> None:
    values: dict[str, Any] = {"sigma": 0.3, "population": 4, "seed": 1, **changes}
    with pytest.raises(UsageError, match=message):
        CmaOptimizer.start([SHARE, SHARE], [0.5, 0.5], **values)


def test_space_without_an_axis_is_refused() -> None:
    with pytest.raises(UsageError, match="no axis"):
        CmaOptimizer.start([], [], sigma=0.3, population=4, seed=1)
