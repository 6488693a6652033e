"""Surrogates: the arrays that are kept predict what scikit-learn does."""

import sys

import numpy as np
import pytest
from sklearn.ensemble import ExtraTreesRegressor

from elmanctl.errors import EnvironmentNotReady, UsageError
from elmanctl.replay.objective import Array, random_points
from elmanctl.replay.surrogate import (
    SURROGATES,
    check_losses,
    explained,
    features,
    fit_process,
    fit_trees,
)
from elmanctl.space.axis import Axis

AXES = (
    Axis(name="depth", kind="int", low=4, high=24),
    Axis(name="cell", kind="choice", values=("gru", "lstm", "rnn")),
    Axis(name="lr", kind="log", low=1e-4, high=1e-1),
)


def made_up(count: int = 60, noise: float = 0.0) -> tuple[Array, Array]:
    """Points, and losses of a bowl whose bottom depends on the cell."""
    draw = np.random.default_rng(5)
    points = random_points(AXES, count, draw)
    bottom = np.array([0.2, 0.5, 0.8])[points[:, 1].astype(int)]
    losses = 1.0 + (points[:, 0] / 20 - 0.5) ** 2 + (points[:, 2] - bottom) ** 2
    return points, losses + noise * draw.normal(size=count)


def test_words_are_features_without_an_order() -> None:
    shown = features(AXES, np.array([[20.0, 1.0, 0.25], [0.0, 2.0, 1.0]]))
    assert shown.tolist() == [[1.0, 0.0, 1.0, 0.0, 0.25], [0.0, 0.0, 0.0, 1.0, 1.0]]


def test_trees_predict_what_those_of_scikit_learn_do() -> None:
    points, losses = made_up()
    trees = fit_trees(AXES, points, losses)
    forest = ExtraTreesRegressor(200, min_samples_leaf=2, random_state=0)
    forest.fit(features(AXES, points), losses)
    elsewhere = random_points(AXES, 40, np.random.default_rng(6))
    expected = forest.predict(features(AXES, elsewhere))
    assert trees.values(elsewhere) == pytest.approx(expected, abs=1e-12)


def test_process_comes_near_a_smooth_surface_between_its_points() -> None:
    points, losses = made_up(80, noise=0.001)
    process = fit_process(AXES, points, losses)
    draw = np.random.default_rng(7)
    elsewhere = random_points(AXES, 100, draw)
    bottom = np.array([0.2, 0.5, 0.8])[elsewhere[:, 1].astype(int)]
    expected = 1.0 + (elsewhere[:, 0] / 20 - 0.5) ** 2 + (elsewhere[:, 2] - bottom) ** 2
    # At the corners losses are above the fence, and count as less.
    assert np.quantile(np.abs(process.values(elsewhere) - expected), 0.8) < 0.01


@pytest.mark.parametrize("name", SURROGATES)
def test_explained_share_tells_a_surface_from_noise(name: str) -> None:
    points, losses = made_up()
    assert explained(SURROGATES[name], AXES, points, losses) > 0.6
    shuffled = np.random.default_rng(8).permutation(losses)
    assert explained(SURROGATES[name], AXES, points, shuffled) < 0.2


@pytest.mark.parametrize("name", SURROGATES)
def test_fingerprint_is_that_of_the_values(name: str) -> None:
    points, losses = made_up()
    fit = SURROGATES[name]
    assert fit(AXES, points, losses).fingerprint == fit(AXES, points, losses).fingerprint
    assert fit(AXES, points, losses).fingerprint != fit(AXES, points, losses + 1e-3).fingerprint


def test_too_few_or_equal_losses_are_refused() -> None:
    with pytest.raises(UsageError, match="has 9 losses, and a surrogate needs 10"):
        check_losses("short", [1.0 + i for i in range(9)])
    with pytest.raises(UsageError, match="all losses of `flat` are equal"):
        check_losses("flat", [1.0] * 30)


def test_missing_package_is_named_with_what_installs_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "sklearn", None)
    with pytest.raises(EnvironmentNotReady, match="scikit-learn") as told:
        fit_trees(AXES, *made_up())
    assert told.value.hint == "pip install 'scikit-learn>=1.5'"
