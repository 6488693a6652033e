"""The contract of the port, for every optimizer."""

import json
import math
import os
import random
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import replace
from functools import cache
from pathlib import Path

import numpy as np
import pytest

from elmanctl.constants import GP_OPTUNA, MAX_SEED, OPTIMIZERS, STUDY
from elmanctl.errors import UsageError
from elmanctl.search.optimizers.port import Differs, Optimizer, Point
from elmanctl.search.optimizers.registry import has_start, start_optimizer
from elmanctl.space.coordinate import Coordinate
from tests.search.optimizers.packages import need_packages_of
from tests.search.optimizers.problems import INTEGER, SHARE, SMALL, every, loss, problem, some
from tests.search.optimizers.scripted import (
    ONE_VALUE,
    SCRIPT,
    SHAPES,
    Ask,
    decode,
    drive,
    encode,
    go_on,
    shape,
)

# Models take long to fit: a point of Optuna's GP takes a quarter of a second.
MODELS = ("tpe", "gp", "gp-optuna", "tpe-gp")
MIXED = "integers and shares"
# That of the study returns fewer points where some are refused, as the study did.
PAIRS = [
    (name, case)
    for name in OPTIMIZERS
    for case in SHAPES
    if name != STUDY and (name != GP_OPTUNA or case == MIXED)
]

each_optimizer = pytest.mark.parametrize("name", OPTIMIZERS)
each_pair = pytest.mark.parametrize(("name", "case"), PAIRS)


@pytest.fixture(autouse=True)
def _packages(request: pytest.FixtureRequest) -> None:
    """Skip an optimizer whose packages are not here."""
    if "name" in request.fixturenames:
        need_packages_of(request.getfixturevalue("name"))


def generators() -> object:
    """Return the states of the global generators of numpy and Python."""
    words = np.random.get_state(legacy=False)["state"]
    return words["key"].tolist(), words["pos"], random.getstate()


@cache
def never_stopped(name: str, case: str) -> tuple[Ask, ...]:
    """Return what an optimizer asks that nothing disturbs."""
    return tuple(drive(start_optimizer(name, shape(case)), SCRIPT))


def fill(optimizer: Optimizer, population: int = 4, generations: int = 3) -> list[Point]:
    """Ask and report some generations; return the points."""
    asked: list[Point] = []
    for _ in range(generations):
        points = optimizer.ask(population, every)
        optimizer.report([(point, loss(point)) for point in points])
        asked += points
    return asked


@each_pair
def test_points_are_plain_valid_and_of_the_space(name: str, case: str) -> None:
    asked = never_stopped(name, case)
    assert [len(ask.points) for ask in asked] == [e for e in SCRIPT if isinstance(e, int)]
    for point in (point for ask in asked for point in ask.points):
        assert type(point) is tuple and all(type(x) is float for x in point)
        assert some(point), "a refused point was returned"
        for coordinate, x in zip(SHAPES[case], point, strict=True):
            assert coordinate.low <= x <= coordinate.high
            assert not coordinate.integer or x.is_integer()


@each_pair
def test_rebuilt_after_any_event_it_goes_on_with_the_same_points(name: str, case: str) -> None:
    asked = never_stopped(name, case)
    counts: Sequence[int] = range(len(SCRIPT))
    if name in MODELS:
        # The models come in at the eighth event.
        counts = (8, 12) if case == MIXED else (10,)
    for count in counts:
        assert go_on(name, case, asked, count) == list(asked), f"after {SCRIPT[:count]}"


def test_another_process_asks_the_same_points() -> None:
    """From the start and rebuilt, whatever the hash seed and the global generators there."""
    hash_seed = "4321" if os.environ.get("PYTHONHASHSEED") != "4321" else "1"
    for name in OPTIMIZERS:
        need_packages_of(name)
    pairs = [pair for pair in PAIRS if pair[1] in (MIXED, "three integers")]
    wanted = [(name, case, list(never_stopped(name, case))) for name, case in pairs]
    middle = len(SCRIPT) - 3
    orders = [(name, case, encode(asked), [middle]) for name, case, asked in wanted]
    done = subprocess.run(
        [sys.executable, "-m", "tests.search.optimizers.scripted", hash_seed],
        input=json.dumps(orders),
        env={
            **os.environ,
            "PYTHONHASHSEED": hash_seed,
            "PYTHONPATH": str(Path(__file__).parents[3]),
        },
        capture_output=True,
        text=True,
        check=True,
    )
    for (name, case, asked), answers in zip(wanted, json.loads(done.stdout), strict=True):
        assert [decode(answer) for answer in answers] == [asked, asked], (name, case)


@each_optimizer
def test_global_generators_are_left_as_they_are(name: str) -> None:
    np.random.seed(99)
    random.seed(99)
    before = generators()
    fill(start_optimizer(name, shape(MIXED)), generations=4)
    assert generators() == before


@each_optimizer
def test_other_seed_asks_other_points(name: str) -> None:
    points = [
        start_optimizer(name, problem(SHAPES[MIXED], seed=seed)).ask(6, every) for seed in (5, 5, 6)
    ]
    assert points[0] == points[1] != points[2]


@each_optimizer
@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
def test_value_that_is_not_finite_is_refused_and_nothing_learned(name: str, value: float) -> None:
    one, other = (start_optimizer(name, shape(MIXED)) for _ in range(2))
    points = one.ask(4, every)
    assert other.ask(4, every) == points
    with pytest.raises(ValueError, match="finite"):
        one.report([(points[0], 0.5), (points[1], value)])
    for optimizer in (one, other):
        optimizer.report([(point, loss(point)) for point in points])
    assert one.ask(4, every) == other.ask(4, every)


@each_optimizer
def test_points_that_were_not_asked_or_have_their_value_are_refused(name: str) -> None:
    optimizer = start_optimizer(name, shape(MIXED))
    points = optimizer.ask(4, every)
    with pytest.raises(ValueError, match="not asked"):
        optimizer.report([((9.0, 0.123, 3.0, 0.456), 1.0)])
    optimizer.report([(points[2], 1.0)])
    with pytest.raises(ValueError, match="has its value"):
        optimizer.report([(points[2], 1.0)])


@each_optimizer
def test_lists_of_the_caller_are_not_changed(name: str) -> None:
    optimizer = start_optimizer(name, shape(MIXED))
    for _ in range(2):
        points = optimizer.ask(4, every)
        results = [(point, -float(number)) for number, point in enumerate(points)]
        copies = list(points), list(results)
        optimizer.report(results)
        optimizer.ask(1, every)
        assert (points, results) == copies


@each_optimizer
def test_replay_of_other_points_is_refused(name: str) -> None:
    setting = shape(MIXED)
    points = start_optimizer(name, setting).ask(4, every)
    moved = [*points[:3], (points[3][0], points[3][1] / 2, *points[3][2:])]
    with pytest.raises(Differs):
        start_optimizer(name, setting).replay(moved, 0)
    start_optimizer(name, setting).replay(points, 0)


@each_optimizer
def test_test_of_points_may_end_an_ask(name: str) -> None:
    class Empty(Exception):
        pass

    def refuse(point: Point) -> bool:
        raise Empty

    with pytest.raises(Empty):
        start_optimizer(name, shape(MIXED)).ask(1, refuse)


@each_optimizer
@pytest.mark.parametrize("value", [0.0, -2.5, 1e300])
def test_equal_values_teach_nothing_and_stop_nothing(name: str, value: float) -> None:
    optimizer = start_optimizer(name, shape(MIXED))
    for _ in range(4):
        points = optimizer.ask(4, every)
        optimizer.report([(point, value) for point in points])
    (point,) = optimizer.ask(1, every)
    assert all(c.low <= x <= c.high for c, x in zip(SHAPES[MIXED], point, strict=True))


@each_optimizer
def test_first_generation_without_a_value_stops_nothing(name: str) -> None:
    optimizer = start_optimizer(name, shape(MIXED))
    failed = optimizer.ask(8, every)
    later = fill(optimizer)
    assert len(later) == 12 and not set(failed) & set(later)


@each_optimizer
def test_values_as_far_apart_as_floats_go_stop_nothing(name: str) -> None:
    """A failed evaluation may be ranked behind a loss that is itself enormous."""
    optimizer = start_optimizer(name, shape(MIXED))
    largest = sys.float_info.max
    for _ in range(4):
        points = optimizer.ask(4, every)
        optimizer.report(list(zip(points, [3.0, largest, largest / 2, -largest], strict=True)))
    assert len(optimizer.ask(1, every)) == 1


@each_optimizer
def test_population_larger_than_the_budget_asks_what_it_is_asked(name: str) -> None:
    setting = replace(problem(SHAPES[MIXED], population=9), budget=5)
    optimizer = start_optimizer(name, setting)
    points = optimizer.ask(5, every)
    optimizer.report([(point, loss(point)) for point in points])
    assert len(optimizer.ask(3, every)) == 3


@each_optimizer
@pytest.mark.parametrize("start", [(9.0, 1.0, 0.0, 0.0), (0.0, 0.0, 3.0, 1.0)])
def test_start_on_the_bounds_is_left(name: str, start: Point) -> None:
    """What varies with the distance to the next bound would never move from there."""
    setting = replace(shape(MIXED), start=start)
    optimizer = start_optimizer(name, setting)
    points = optimizer.ask(16, every)
    assert all(len({point[axis] for point in points}) > 1 for axis in range(4))
    optimizer.report([(point, loss(point)) for point in points])
    fill(optimizer, generations=1)


@each_optimizer
def test_small_space_may_end(name: str) -> None:
    """After its four points were asked, they are asked again."""
    optimizer = start_optimizer(name, problem((SMALL,), population=4))
    points = fill(optimizer, generations=4)
    assert len(points) == 16 and {x for (x,) in points} <= {0.0, 1.0, 2.0, 3.0}


# Those that fill the space never ask a known point on purpose; the study learned of invalid ones.
@pytest.mark.parametrize("name", [n for n in OPTIMIZERS if has_start(n) and n != STUDY])
def test_valid_points_may_end_before_the_invalid_ones(name: str) -> None:
    """Then known ones are asked again: a search refuses a thousand points in a row, no more."""
    refusals = 0

    def few(point: Point) -> bool:
        nonlocal refusals
        refusals += max(point) >= 2.0
        assert refusals < 1_000
        return max(point) < 2.0

    many = Coordinate(low=-0.5, high=39.5, integer=True)
    optimizer = start_optimizer(name, replace(problem((many, many), 4), start=(1.0, 1.0)))
    for _ in range(6):
        refusals = 0
        points = optimizer.ask(4, few)
        assert len(points) == 4
        optimizer.report([(point, loss(point)) for point in points])


@each_optimizer
def test_space_without_an_axis_to_move_is_refused(name: str) -> None:
    with pytest.raises(UsageError, match="no axis to move"):
        start_optimizer(name, problem((ONE_VALUE, ONE_VALUE)))


@each_optimizer
def test_seeds_reach_to_their_limits(name: str) -> None:
    for seed in (0, MAX_SEED):
        assert fill(start_optimizer(name, problem(SHAPES[MIXED], 4, seed)), generations=1)


WIDE = Coordinate(low=-0.5, high=10**9 - 0.5, integer=True)


@each_optimizer
def test_axis_of_a_billion_values_is_searched(name: str) -> None:
    setting = replace(problem((WIDE, SHARE), population=4), start=(5e8, 0.5))
    optimizer = start_optimizer(name, setting)
    for _ in range(3):
        points = optimizer.ask(4, every)
        assert all(x.is_integer() and 0 <= x < 10**9 for x, _ in points)
        optimizer.report([(point, point[0] / 1e9 + point[1]) for point in points])


@each_optimizer
def test_start_is_where_it_begins_or_it_says_that_it_has_none(name: str) -> None:
    """An optimizer for which `--start-from-best` is not refused asks near that point first."""
    start = (0.9, 7.0, 0.1)
    coordinates = (SHARE, INTEGER, SHARE)
    near = replace(problem(coordinates, population=8), start=start, sigma=0.01)
    points = start_optimizer(name, near).ask(8, every)
    distance = min(
        max(
            abs(x - y) / (c.high - c.low) for c, x, y in zip(coordinates, start, point, strict=True)
        )
        for point in points
    )
    assert (distance < 0.02) == has_start(name)
