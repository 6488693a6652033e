"""A Gaussian process by scikit-learn, which chooses points by expected improvement.

References: Rasmussen and Williams, "Gaussian Processes for Machine Learning", MIT Press 2006;
Ginsbourger, Le Riche and Carraro, "Kriging Is Well-Suited to Parallelize Optimization", 2010, for
several points at a time: a point without a value is believed to have the one that is predicted.

It works on the grid that the space really has: only points of the space are compared, so an integer
is never rounded after the choice, and the last digits of a processor hardly ever change a choice.
"""

import math
import warnings
from collections.abc import Iterator
from typing import Any

from elmanctl.search.optimizers.history import History
from elmanctl.search.optimizers.model_based import clipped, seed_of
from elmanctl.search.optimizers.port import Point, Problem
from elmanctl.search.optimizers.unit_cube import from_shares, levels, to_shares

# Time grows with the cube of the values learned: the best and the newest are enough.
_BEST, _NEWEST = 150, 100

# Candidates: anywhere, and around the best points, which are moved in some coordinates.
_ANYWHERE = 1_000
_AROUND = 5
_STEPS = (0.3, 0.1, 0.03)
_EACH = 60

# Of a value at a point that is known well; the values have a variance of 1.
_LEAST_VARIANCE = 1e-10

# Below it, the logarithm of the improvement is taken from its asymptote.
_FAR = -5.0


class GaussianProcess:
    """A Gaussian process fitted to a history."""

    def __init__(self, problem: Problem, history: History) -> None:
        numpy = _numpy()
        self._problem = problem
        known = _learned(history)
        values = clipped([history.values[number] for number in known])
        spread = values.std()
        self._y = (values - values.mean()) / (spread if spread > 0 else 1.0)
        self._x = to_shares(problem, [history.points[number] for number in known])
        self._regressor = _fitted(self._x, self._y)
        order = numpy.argsort(self._predict(self._x)[0], kind="stable")
        self._leaders = self._x[order[:_AROUND]]
        for point in history.pending:
            self.add(point)

    def points(self, number: int) -> Iterator[Point]:
        """Yield candidates in the order of their expected improvement."""
        numpy = _numpy()
        candidates = self._candidates(number)
        shares = to_shares(self._problem, candidates)
        best = self._predict(self._x)[0].min()
        gain = _log_improvement(best, *self._predict(shares))
        for index in numpy.argsort(-gain, kind="stable"):
            yield candidates[index]

    def add(self, point: Point) -> None:
        """Believe the value that is predicted for a point."""
        numpy = _numpy()
        shares = to_shares(self._problem, [point])
        mean, _ = self._predict(shares)
        self._x = numpy.vstack([self._x, shares])
        self._y = numpy.concatenate([self._y, mean])
        self._regressor = _regressor(self._regressor.kernel_, optimizer=None)
        self._regressor.fit(self._x, self._y)

    def _predict(self, shares: Any) -> tuple[Any, Any]:
        """Return mean and standard deviation of the function, without the noise of a value."""
        numpy = _numpy()
        with warnings.catch_warnings():
            # Of two equal points the variance comes out a little below zero.
            warnings.filterwarnings("ignore", message="Predicted variances smaller than 0")
            mean, spread = self._regressor.predict(shares, return_std=True)
        variance = spread**2 - self._regressor.kernel_.k2.noise_level
        return mean, numpy.sqrt(numpy.maximum(variance, _LEAST_VARIANCE))

    def _candidates(self, number: int) -> list[Point]:
        numpy = _numpy()
        generator = numpy.random.default_rng(seed_of(self._problem, number))
        coordinates = self._problem.coordinates
        dimension = len(coordinates)
        rows = [generator.random((_ANYWHERE, dimension))]
        # At least to the next value of an integer.
        least = numpy.array([1 / len(levels(c)) if c.integer else 0.0 for c in coordinates])
        for leader in self._leaders:
            for step in numpy.maximum.outer(_STEPS, least):
                moved = generator.random((_EACH, dimension)) < max(0.3, 1 / dimension)
                moves = generator.normal(0.0, step, (_EACH, dimension))
                rows.append(numpy.clip(leader + moved * moves, 0.0, 1.0))
        found = (from_shares(self._problem, shares) for shares in numpy.vstack(rows))
        return list(dict.fromkeys(found))


def _learned(history: History) -> list[int]:
    """Return the numbers of the points to learn from."""
    numbers = sorted(history.values)
    if len(numbers) <= _BEST + _NEWEST:
        return numbers
    best = sorted(numbers, key=lambda number: (history.values[number], number))[:_BEST]
    return sorted({*best, *numbers[-_NEWEST:]})


def _fitted(x: Any, y: Any) -> Any:
    """Return a regressor whose kernel has the highest likelihood."""
    from sklearn.exceptions import ConvergenceWarning
    from sklearn.gaussian_process.kernels import ConstantKernel, Matern, WhiteKernel

    scales = [0.5] * x.shape[1]
    kernel = ConstantKernel(1.0, (0.05, 20.0)) * Matern(scales, (0.05, 10.0), nu=2.5)
    regressor = _regressor(kernel + WhiteKernel(0.1, (1e-4, 2.0)), optimizer="fmin_l_bfgs_b")
    with warnings.catch_warnings():
        # A length scale at its bound is one of a coordinate that does not matter.
        warnings.simplefilter("ignore", ConvergenceWarning)
        return regressor.fit(x, y)


def _regressor(kernel: Any, optimizer: str | None) -> Any:
    from sklearn.gaussian_process import GaussianProcessRegressor

    return GaussianProcessRegressor(kernel, alpha=1e-8, optimizer=optimizer)


def _log_improvement(best: float, mean: Any, spread: Any) -> Any:
    """Return the logarithm of the expected improvement on `best`, without its underflow.

    Reference: Ament et al., "Unexpected Improvements to Expected Improvement", NeurIPS 2023.
    """
    from scipy.special import ndtr

    numpy = _numpy()
    z = (best - mean) / spread
    near = numpy.maximum(z, _FAR)
    density = numpy.exp(-(near**2) / 2) / math.sqrt(2 * math.pi)
    low = numpy.minimum(z, _FAR)
    far = -(low**2) / 2 - math.log(2 * math.pi) / 2 - 2 * numpy.log(-low)
    return numpy.log(spread) + numpy.where(z > _FAR, numpy.log(density + near * ndtr(near)), far)


def _numpy() -> Any:
    import numpy

    return numpy
