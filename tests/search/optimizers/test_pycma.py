"""CMA-ES by pycma behind the port: the points of bare pycma, on every processor."""

import json
import os
import subprocess
import sys
import warnings
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from elmanctl.errors import UsageError
from elmanctl.search.optimizers import pycma
from elmanctl.search.optimizers.port import Differs, Problem
from elmanctl.search.optimizers.pycma import Pycma
from elmanctl.search.optimizers.registry import start_optimizer
from tests.search.optimizers.problems import CASES, SHARE, every, loss, problem, some

GENERATIONS = 8

# Rebuilds from points on record, reports the newest generation, and prints what it asks next.
GO_ON = """
import json, sys
from tests.search.optimizers.problems import CASES, every, loss, problem
from elmanctl.search.optimizers.pycma import Pycma
name, generations = json.load(sys.stdin)
optimizer = Pycma(problem(CASES[name]))
for points in generations:
    points = [tuple(point) for point in points]
    optimizer.replay(points, 0)
    optimizer.report([(point, loss(point)) for point in points])
json.dump(optimizer.ask(6, every), sys.stdout)
"""


@pytest.mark.parametrize("name", ["three integers", "integers and shares"])
def test_reported_points_move_it_as_they_move_bare_pycma(name: str) -> None:
    """Above all pycma must know its own points again: else it learns from rounded integers."""
    setting = problem(CASES[name], population=7)
    ours = Pycma(setting)
    before = np.random.get_state()
    np.random.set_state(np.random.RandomState(6).get_state())
    options = pycma._options(setting.coordinates, 7, 5, np.random.RandomState(5))
    bare = pycma.load_cma().CMAEvolutionStrategy(list(setting.start), 0.3, options)
    for _ in range(GENERATIONS):
        points = ours.ask(7, every)
        drawn = bare.ask(7)
        assert points == [tuple(map(float, x)) for x in drawn]
        ours.report([(point, loss(point)) for point in points])
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            bare.tell(drawn, [loss(point) for point in points])
    np.random.set_state(before)


@pytest.mark.parametrize("name", CASES)
def test_rebuilt_on_another_type_of_processor_it_goes_on(name: str) -> None:
    """OpenBLAS picks its kernels by the processor, and points differ in their last digits."""
    optimizer, generations = Pycma(problem(CASES[name])), []
    for _ in range(GENERATIONS):
        points = optimizer.ask(6, every)
        generations.append(points)
        optimizer.report([(point, loss(point)) for point in points])
    expected = optimizer.ask(6, every)
    for core in ("Haswell", "Nehalem"):
        done = subprocess.run(
            [sys.executable, "-c", GO_ON],
            input=json.dumps([name, generations]),
            env={
                **os.environ,
                "OPENBLAS_CORETYPE": core,
                "PYTHONPATH": str(Path(__file__).parents[3]),
            },
            capture_output=True,
            text=True,
            check=True,
        )
        assert [tuple(point) for point in json.loads(done.stdout)] == [
            pytest.approx(point, abs=1e-9) for point in expected
        ]


def test_replay_of_other_points_is_refused() -> None:
    points = Pycma(problem(CASES["integers and shares"])).ask(6, some)
    other = problem(CASES["integers and shares"], seed=6)
    with pytest.raises(Differs, match="not those that the seed gives"):
        Pycma(other).replay(points, 2)
    moved = [(points[0][0], points[0][1] + 1e-3, *points[0][2:]), *points[1:]]
    with pytest.raises(Differs):
        Pycma(problem(CASES["integers and shares"])).replay(moved, 2)


@pytest.mark.parametrize("name", CASES)
@pytest.mark.parametrize("population", [4, 5, 9])
def test_half_a_generation_is_enough_to_learn_from(name: str, population: int) -> None:
    """A search goes on when at least half of a generation gave a loss."""
    optimizer = Pycma(problem(CASES[name], population))
    before = optimizer.ask(population, every)
    for _ in range(GENERATIONS):
        optimizer.report([(point, loss(point)) for point in before[: population // 2]])
        before = optimizer.ask(population, every)
    assert optimizer._strategy._strategy.countiter == GENERATIONS


@pytest.mark.parametrize("name", CASES)
@pytest.mark.parametrize("extra", [1, 6])
def test_more_points_than_a_generation_are_learned_from(name: str, extra: int) -> None:
    """A failed evaluation may be replaced, queued again by hand, and complete after all."""
    optimizer = Pycma(problem(CASES[name], 4))
    for _ in range(GENERATIONS):
        points = optimizer.ask(4, every)
        for _ in range(extra):
            points += optimizer.ask(1, every)
        optimizer.report([(point, loss(point)) for point in points])
    assert optimizer._strategy._strategy.countiter == GENERATIONS


@pytest.mark.parametrize("name", ["one integer", "one share"])
def test_one_axis_is_searched_to_its_best_value(name: str) -> None:
    optimizer = Pycma(problem(CASES[name]))
    for _ in range(GENERATIONS):
        points = optimizer.ask(6, every)
        optimizer.report([(point, loss(point)) for point in points])
    best = 0.0 if CASES[name][0].integer else 0.2
    assert min(abs(x - best) for (x,) in points) < 0.05


BAD_PROBLEMS: list[tuple[dict[str, Any], str]] = [
    ({"population": 3}, "at least 4"),
    ({"seed": -1}, "seed"),
    ({"seed": 2**32}, "seed"),
    ({"sigma": 0.0}, "sigma"),
    ({"sigma": float("nan")}, "sigma"),
    ({"coordinates": (), "start": ()}, "no axis"),
]


@pytest.mark.parametrize(("changes", "message"), BAD_PROBLEMS)
def test_problem_that_cannot_work_is_refused(changes: dict[str, Any], message: str) -> None:
    values: dict[str, Any] = {"sigma": 0.3, "population": 4, "seed": 1, "budget": 80}
    values |= {"coordinates": (SHARE, SHARE), "start": (0.5, 0.5), **changes}
    with pytest.raises(UsageError, match=message):
        start_optimizer("cma", Problem(**values))


def test_unknown_optimizer_is_refused_with_the_nearest_name() -> None:
    with pytest.raises(UsageError, match="no optimizer named `cmaes`") as caught:
        start_optimizer("cmaes", problem(CASES["one share"]))
    assert caught.value.hint is not None and "cma" in caught.value.hint
