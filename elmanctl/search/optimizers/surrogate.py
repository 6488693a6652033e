"""Surrogate of a search: a Gaussian process over shares of the axes, in numpy.

The kernel is Matérn's of smoothness 5/2 with a length for each axis,

    k(r) = (1 + sqrt(5) r + 5/3 r^2) exp(-sqrt(5) r),   r^2 = sum_i ((x_i - x'_i) / l_i)^2

(Rasmussen and Williams, "Gaussian Processes for Machine Learning", 2006, equation 4.17).  Lengths
and noise are those of the highest posterior density under the priors of Hvarfner, Hellsten and
Nardi, "Vanilla Bayesian Optimization Performs Great in High Dimensions", ICML 2024, found by Adam
(Kingma and Ba, ICLR 2015).
"""

import math
from typing import Any

import numpy as np
import numpy.typing as npt

Array = npt.NDArray[np.float64]

_ROOT_5 = math.sqrt(5.0)

# Steps of Adam, and its rate in logarithms of the parameters.
_STEPS = 50
_RATE = 0.15

# Bounds of the logarithms of lengths and of the variance of the noise; values have a variance of 1.
_LENGTHS = (math.log(0.02), math.log(50.0))
_NOISE = (math.log(1e-4), 0.0)

# Mean and standard deviation of the logarithm of the noise's variance.
_NOISE_PRIOR = (-4.0, 1.0)

_LEAST_VARIANCE = 1e-10

# What is learned at most: far beyond any loss, and its square is a number.
_LARGEST = 1e100
_JITTER = 1e-8


class Surrogate:
    """A Gaussian process fitted to values [n] at shares [n, axes]."""

    def __init__(self, shares: Array, values: Array) -> None:
        self._x = shares
        self._y = warped(values)
        self._lengths, self._noise = _fitted(shares, self._y)
        covariance = _kernel(shares, shares, self._lengths)
        covariance[np.diag_indices_from(covariance)] += self._noise + _JITTER
        self._inverse = np.linalg.inv(covariance)
        self._weights = self._inverse @ self._y
        # The lowest mean where a value is known, not the lowest value, which was lucky.
        self.lowest = float(self._mean(_kernel(shares, shares, self._lengths)).min())

    def posterior(self, shares: Array) -> "Posterior":
        """Return the posterior at shares [m, axes]."""
        return Posterior(self, shares)

    def _mean(self, covariance: Array) -> Array:
        return np.asarray(covariance.T @ self._weights)


class Posterior:
    """Mean [m] and variance [m] of the function at some places, as more of them get believed."""

    def __init__(self, surrogate: Surrogate, shares: Array) -> None:
        self._surrogate = surrogate
        self._shares = shares
        self._known = _kernel(surrogate._x, shares, surrogate._lengths)
        self._solved = surrogate._inverse @ self._known
        self._columns: list[Array] = []
        self.mean = surrogate._mean(self._known)
        variance = 1.0 - (self._known * self._solved).sum(axis=0)
        self.variance = np.maximum(variance, _LEAST_VARIANCE)

    def believe(self, index: int) -> None:
        """Take the mean at a place for its value: it stays, and the variance around falls.

        Ginsbourger, Le Riche and Carraro, "Kriging Is Well-Suited to Parallelize Optimization",
        2010, call this the kriging believer.
        """
        place = self._shares[index : index + 1]
        column = _kernel(self._shares, place, self._surrogate._lengths)[:, 0]
        column = column - self._known.T @ self._solved[:, index]
        for each in self._columns:
            column = column - each * each[index]
        column = column / math.sqrt(self.variance[index] + self._surrogate._noise)
        self._columns.append(column)
        self.variance = np.maximum(self.variance - column**2, _LEAST_VARIANCE)

    def improvement(self) -> Array:
        """Return the logarithm of the expected improvement on the lowest mean."""
        spread = np.sqrt(self.variance)
        z = (self._surrogate.lowest - self.mean) / spread
        density = np.exp(-0.5 * z**2) / math.sqrt(2.0 * math.pi)
        gain = spread * (z * _normal_cdf(z) + density)
        # Far above the lowest mean the gain is 0 in floating point: then the nearest comes first.
        return np.asarray(np.log(np.maximum(gain, 1e-300)) + 1e-9 * z)


def warped(values: Array) -> Array:
    """Return values [n] on a logarithmic scale above the lowest, with mean 0 and variance 1.

    Most of the scale goes to what is better than the median; failures, which are ranked behind all
    losses, and other values far above it count as the last of those.
    """
    values = np.clip(values, -_LARGEST, _LARGEST)
    low, median = float(values.min()), float(np.median(values))
    width = (median - low) or float(values.max() - low) or 1.0
    bent = np.log(np.minimum(values - low, 3.0 * width) + 0.2 * width)
    spread = float(bent.std())
    return np.asarray((bent - bent.mean()) / (spread if spread > 1e-12 else 1.0))


def _kernel(one: Array, other: Array, lengths: Array) -> Array:
    """Return the kernel [n, m] between shares [n, axes] and [m, axes]."""
    a, b = one / lengths, other / lengths
    squares = (a**2).sum(axis=1)[:, None] + (b**2).sum(axis=1)[None] - 2.0 * a @ b.T
    r = np.sqrt(np.maximum(squares, 0.0))
    return np.asarray((1.0 + _ROOT_5 * r + 5.0 / 3.0 * r**2) * np.exp(-_ROOT_5 * r))


def _fitted(shares: Array, values: Array) -> tuple[Array, float]:
    """Return the lengths [axes] and the variance of the noise of the highest posterior density."""
    axes = shares.shape[1]
    squares = (shares[:, None, :] - shares[None, :, :]) ** 2
    low = np.array([_LENGTHS[0]] * axes + [_NOISE[0]])
    high = np.array([_LENGTHS[1]] * axes + [_NOISE[1]])
    at = np.array([math.log(0.5 * math.sqrt(axes))] * axes + [-3.0])
    mean, square = np.zeros_like(at), np.zeros_like(at)
    for step in range(1, _STEPS + 1):
        slope = _slope(squares, values, at)
        mean = 0.9 * mean + 0.1 * slope
        square = 0.9 * square + 0.1 * slope**2
        move = mean / (1.0 - 0.9**step) / (np.sqrt(square / (1.0 - 0.9**step)) + 1e-8)
        # The rate falls to a tenth, so that the last steps settle.
        at = np.clip(at - _RATE * (1.0 - 0.9 * step / _STEPS) * move, low, high)
    return np.exp(at[:-1]), float(math.exp(at[-1]))


def _slope(squares: Array, values: Array, at: Array) -> Array:
    """Return the gradient of the negative log posterior density in the log parameters.

    Rasmussen and Williams, equation 5.9, with the priors' part.
    """
    count, axes = len(values), len(at) - 1
    inverse_squares = np.exp(-2.0 * at[:-1])
    noise = math.exp(at[-1])
    r = np.sqrt(squares @ inverse_squares)
    decay = np.exp(-_ROOT_5 * r)
    covariance = (1.0 + _ROOT_5 * r + 5.0 / 3.0 * r**2) * decay
    covariance[np.diag_indices(count)] += noise + _JITTER
    inverse = np.linalg.inv(covariance)
    weights = inverse @ values
    sensitivity = inverse - np.outer(weights, weights)
    part = sensitivity * (5.0 / 3.0 * (1.0 + _ROOT_5 * r) * decay)
    lengths = 0.5 * np.einsum("ij,ijk->k", part, squares) * inverse_squares
    slope = np.append(lengths, 0.5 * np.trace(sensitivity) * noise)
    centre = math.sqrt(2.0) + 0.5 * math.log(axes)
    slope[:-1] += (at[:-1] - centre) / 3.0
    slope[-1] += (at[-1] - _NOISE_PRIOR[0]) / _NOISE_PRIOR[1] ** 2
    return slope


def _normal_cdf(z: Any) -> Array:
    return np.array([0.5 * math.erfc(-x / math.sqrt(2.0)) for x in z.tolist()])
