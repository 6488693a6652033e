"""Synthetic functions: what is said of their best points is true."""

import numpy as np
import pytest

from elmanctl.errors import NotFound
from elmanctl.replay.functions import FUNCTIONS, FunctionSource, Instance, find_functions
from elmanctl.replay.objective import extent, random_points, values_at

# Rounding of a sum of squares.
ZERO = 1e-12


@pytest.mark.parametrize("name", FUNCTIONS)
@pytest.mark.parametrize("seed", [1, 2])
def test_no_valid_point_is_below_the_best_one(name: str, seed: int) -> None:
    objective = FunctionSource(name=name).at(seed)
    surface, axes = objective.surface, objective.axes
    assert isinstance(surface, Instance)
    best = surface.best
    assert surface.is_valid(best)
    assert surface.values(np.array([best]))[0] == pytest.approx(0, abs=ZERO)
    points = random_points(axes, 2000, np.random.default_rng(seed))
    values = surface.values(points)
    assert values.min() >= -ZERO
    valid = np.array([surface.is_valid(point) for point in points.tolist()])
    assert np.median(values[valid & np.isfinite(values)]) == pytest.approx(1, rel=0.2)
    found, _ = extent(surface, axes)
    assert surface.is_valid(found.tolist())
    assert -ZERO <= surface.values(found[None])[0] < 0.05


@pytest.mark.parametrize("name", FUNCTIONS)
def test_best_point_is_within_the_coordinates_and_differs_between_seeds(name: str) -> None:
    bests = [Instance(name, seed).best for seed in (1, 2)]
    axes = FUNCTIONS[name].axes
    for best in bests:
        for axis, x in zip(axes, best, strict=True):
            assert axis.position(axis.value(x)) == pytest.approx(x)
    assert values_at(axes, bests[0]) != values_at(axes, bests[1])
    assert (
        FunctionSource(name=name).at(1).fingerprint != FunctionSource(name=name).at(2).fingerprint
    )


def test_functions_have_every_kind_of_axis_refusals_and_divergence() -> None:
    kinds = {axis.kind for function in FUNCTIONS.values() for axis in function.axes}
    assert kinds == {"int", "pow2", "choice", "bool", "float", "log"}
    steps, cliff = (FunctionSource(name=name).at(1) for name in ("steps", "cliff"))
    draw = np.random.default_rng(0)
    assert not all(steps.surface.is_valid(p) for p in random_points(steps.axes, 200, draw).tolist())
    assert np.isinf(cliff.surface.values(random_points(cliff.axes, 200, draw))).any()


def test_functions_are_found_by_name_once_each() -> None:
    assert find_functions(["cliff", "all"])[0] == "cliff"
    assert sorted(find_functions(["cliff", "all"])) == sorted(FUNCTIONS)
    with pytest.raises(NotFound, match="no function named `clif`") as told:
        find_functions(["clif"])
    assert "`cliff`" in (told.value.hint or "")
