"""CMA-ES with a surrogate: what the surrogate fits, and what is left to ask in a small space."""

import math
from typing import Any

import numpy as np
import pytest

from elmanctl.search.optimizers import surrogate, surrogate_cma
from elmanctl.search.optimizers.pycma import Pycma
from elmanctl.search.optimizers.surrogate import Surrogate
from elmanctl.search.optimizers.surrogate_cma import SurrogateCma
from tests.search.optimizers.problems import CASES, SMALL, every, loss, problem


def density(shares: Any, values: Any, at: Any) -> float:
    """Return the negative logarithm of the posterior density, by its definition."""
    axes = shares.shape[1]
    covariance = surrogate._kernel(shares, shares, np.exp(at[:-1]))
    covariance += (math.exp(at[-1]) + surrogate._JITTER) * np.eye(len(values))
    _, determinant = np.linalg.slogdet(covariance)
    fit = 0.5 * values @ np.linalg.solve(covariance, values) + 0.5 * determinant
    centre = math.sqrt(2.0) + 0.5 * math.log(axes)
    mean, sd = surrogate._NOISE_PRIOR
    prior = ((at[:-1] - centre) ** 2).sum() / 6.0 + (at[-1] - mean) ** 2 / (2.0 * sd**2)
    return float(fit + prior)


def test_slope_of_the_density_is_that_of_its_differences() -> None:
    draw = np.random.default_rng(3)
    shares, values = draw.random((12, 3)), draw.normal(size=12)
    squares = (shares[:, None, :] - shares[None, :, :]) ** 2
    at = np.array([-0.5, 0.1, 0.7, -2.0])
    step = 1e-5 * np.eye(4)
    expected = [
        (density(shares, values, at + s) - density(shares, values, at - s)) / 2e-5 for s in step
    ]
    assert surrogate._slope(squares, values, at) == pytest.approx(expected, rel=1e-5, abs=1e-6)


def test_surrogate_finds_which_axis_matters_and_predicts_between_values() -> None:
    draw = np.random.default_rng(1)
    shares = draw.random((60, 3))
    values = np.cos(5.0 * shares[:, 0]) + 1e-3 * draw.normal(size=60)
    fitted = Surrogate(shares, values)
    assert fitted._lengths[0] < 0.2 * fitted._lengths[1:].min()
    asked = draw.random((40, 3))
    order = np.argsort(fitted.posterior(asked).mean)
    best = np.cos(5.0 * asked[:, 0])[order]
    assert np.corrcoef(np.arange(40), best)[0, 1] > 0.9


def test_belief_keeps_the_mean_and_takes_the_variance_around_a_place() -> None:
    draw = np.random.default_rng(2)
    shares, values = draw.random((20, 2)), draw.normal(size=20)
    asked = draw.random((30, 2))
    fitted = Surrogate(shares, values)
    posterior = fitted.posterior(asked)
    mean, before = posterior.mean.copy(), posterior.variance.copy()
    for place in (4, 11):
        posterior.believe(place)
    assert (posterior.mean == mean).all()
    assert (posterior.variance <= before + 1e-12).all()
    # As if values had come at both places.
    more = np.concatenate([shares, asked[[4, 11]]])
    covariance = surrogate._kernel(more, more, fitted._lengths)
    covariance += (fitted._noise + surrogate._JITTER) * np.eye(len(more))
    across = surrogate._kernel(more, asked, fitted._lengths)
    expected = 1.0 - (across * np.linalg.solve(covariance, across)).sum(axis=0)
    assert posterior.variance == pytest.approx(np.maximum(expected, 1e-10), abs=1e-6)


@pytest.mark.parametrize("values", [[1.0] * 8, [0.0, 1e308, -1e308, 1.0], [2.0, 2.0, 2.0, 9.0]])
def test_warped_values_are_numbers_in_their_order(values: list[float]) -> None:
    bent = surrogate.warped(np.array(values))
    assert np.isfinite(bent).all()
    order = np.argsort(values, kind="stable")
    assert (np.diff(bent[order]) >= 0).all()


def test_rebuild_fits_no_surrogate(monkeypatch: pytest.MonkeyPatch) -> None:
    optimizer, generations = SurrogateCma(problem(CASES["integers and shares"])), []
    for _ in range(6):
        points = optimizer.ask(6, every)
        generations.append(points)
        optimizer.report([(point, loss(point)) for point in points])
    expected = optimizer.ask(6, every)
    again = SurrogateCma(problem(CASES["integers and shares"]))
    with monkeypatch.context() as patch:
        patch.setattr(surrogate_cma, "Surrogate", None)
        for points in generations:
            again.replay(points, 0)
            again.report([(point, loss(point)) for point in points])
    assert again.ask(6, every) == expected


def test_every_point_of_a_small_space_is_asked_before_one_is_repeated() -> None:
    optimizer = SurrogateCma(problem((SMALL, SMALL), population=4))
    asked = []
    for _ in range(5):
        points = optimizer.ask(4, lambda point: point != (3.0, 3.0))
        asked += points
        optimizer.report([(point, loss(point)) for point in points])
    assert len(set(asked[:15])) == 15
    # Then the best one, which costs nothing.
    assert set(asked[15:]) == {min(asked, key=loss)}


def test_it_needs_fewer_evaluations_than_cma_es_alone() -> None:
    """The lowest loss after 48 evaluations, above the least that whole numbers allow."""

    def lowest(optimizer: SurrogateCma | Pycma) -> float:
        found = math.inf
        for _ in range(8):
            points = optimizer.ask(6, every)
            found = min(found, *map(loss, points))
            optimizer.report([(point, loss(point)) for point in points])
        return found - 0.2

    seeds = range(1, 6)
    case = CASES["integers and shares"]
    screened = [lowest(SurrogateCma(problem(case, seed=seed))) for seed in seeds]
    alone = [lowest(Pycma(problem(case, seed=seed))) for seed in seeds]
    assert sum(screened) < 0.5 * sum(alone)


def test_points_asked_one_by_one_are_by_turns_from_the_better_half_of_a_generation() -> None:
    case = CASES["integers and shares"]
    places = []
    for asked in (9, 10, 12, 13, 15, 16):
        generation, alone = (SurrogateCma(problem(case, population=8)) for _ in range(2))
        for optimizer in (generation, alone):
            points = optimizer.ask(asked, every)
            optimizer.report([(point, loss(point)) for point in points])
        points, (point,) = generation.ask(8, every), alone.ask(1, every)
        places.append(points.index(point))
    assert min(places) == 0 and len(set(places)) >= 3
