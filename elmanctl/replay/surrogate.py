"""Surrogates: surfaces fitted to recorded losses, by extra trees or by a Gaussian process.

scikit-learn fits them (extra `replay`).  What is kept is plain arrays: a surrogate goes to other
processes, and predicts a few points at a time, in less than a tenth of scikit-learn's time.
"""

import hashlib
import math
import warnings
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, fields
from typing import Any

import numpy as np

from elmanctl.constants import INSTALL_REPLAY
from elmanctl.errors import EnvironmentNotReady, UsageError
from elmanctl.replay.objective import Array, shares
from elmanctl.space.axis import Axis

_TREES = 200
# Two losses at least in each leaf: with one, a lucky loss would become a dip of the surface.
_LEAF = 2

_FOLDS = 5
_SEED = 0

# Fewer losses than this give no surface.
LEAST_LOSSES = 10


@dataclass(frozen=True, slots=True, kw_only=True)
class _Fitted:
    """A surface made of arrays, over the features of a space."""

    axes: tuple[Axis, ...]

    @property
    def fingerprint(self) -> str:
        """A digest of every array."""
        digest = hashlib.sha256(type(self).__name__.encode())
        for each in fields(self):
            if each.name != "axes":
                digest.update(np.ascontiguousarray(getattr(self, each.name)).tobytes())
        return digest.hexdigest()

    def is_valid(self, point: Sequence[float]) -> bool:
        """Whether a point can be trained: always."""
        return True


@dataclass(frozen=True, slots=True, kw_only=True)
class Trees(_Fitted):
    """Extra trees (Geurts, Ernst and Wehenkel, Machine Learning 63, 2006), as arrays of nodes.

    `feature` [nodes] is -1 at a leaf, `left` and `right` are numbers of nodes, `roots` [trees].
    """

    feature: Any
    threshold: Any
    left: Any
    right: Any
    value: Any
    roots: Any

    def values(self, points: Array) -> Array:
        """Return the mean of the trees [n] at points [n, axes]."""
        # In single precision, as the trees were grown.
        rows = features(self.axes, points).astype(np.float32)
        node = np.tile(self.roots, (len(rows), 1))
        row = np.arange(len(rows))[:, None]
        while (inner := self.feature[node] >= 0).any():
            is_left = rows[row, np.maximum(self.feature[node], 0)] <= self.threshold[node]
            node = np.where(inner, np.where(is_left, self.left[node], self.right[node]), node)
        return np.asarray(self.value[node].mean(axis=1))


@dataclass(frozen=True, slots=True, kw_only=True)
class GaussianProcess(_Fitted):
    """The mean of a Gaussian process with a Matérn kernel of smoothness 5/2.

    k(r) = s (1 + r + r^2 / 3) exp(-r), r = sqrt(5) |(x - x') / lengths| (Rasmussen and Williams,
    Gaussian Processes for Machine Learning, 2006, equation 4.17); `weights` [losses] include s.
    """

    places: Array
    lengths: Array
    weights: Array
    mean: float

    def values(self, points: Array) -> Array:
        """Return the mean [n] at points [n, axes]."""
        rows = features(self.axes, points)
        difference = (rows[:, None] - self.places[None]) / self.lengths
        r = np.sqrt(5.0 * (difference**2).sum(-1))
        return np.asarray((1.0 + r + r**2 / 3.0) * np.exp(-r) @ self.weights + self.mean)


Fit = Callable[[tuple[Axis, ...], Array, Array], Trees | GaussianProcess]


def fit_trees(axes: tuple[Axis, ...], points: Array, losses: Array) -> Trees:
    """Return extra trees fitted to losses [n] at points [n, axes]."""
    _require_sklearn()
    from sklearn.ensemble import ExtraTreesRegressor

    forest = ExtraTreesRegressor(_TREES, min_samples_leaf=_LEAF, random_state=_SEED)
    forest.fit(features(axes, points), losses)
    trees = [each.tree_ for each in forest.estimators_]
    roots = np.cumsum([0, *(tree.node_count for tree in trees)])[:-1]

    def joined(name: str, *, shifted: bool = False) -> Any:
        parts = [getattr(tree, name) for tree in trees]
        return np.concatenate([p + r * shifted for p, r in zip(parts, roots, strict=True)])

    is_leaf = joined("children_left") < 0
    return Trees(
        axes=axes,
        feature=np.where(is_leaf, -1, joined("feature")),
        threshold=joined("threshold"),
        left=joined("children_left", shifted=True),
        right=joined("children_right", shifted=True),
        value=np.concatenate([tree.value[:, 0, 0] for tree in trees]),
        roots=roots,
    )


def fit_process(axes: tuple[Axis, ...], points: Array, losses: Array) -> GaussianProcess:
    """Return a Gaussian process fitted to losses [n] at points [n, axes].

    Losses far above most others count as the last of those (Tukey's fence): a process would ring
    at a cliff.
    """
    _require_sklearn()
    from sklearn.exceptions import ConvergenceWarning
    from sklearn.gaussian_process import GaussianProcessRegressor
    from sklearn.gaussian_process.kernels import ConstantKernel, Matern, WhiteKernel

    low, high = np.quantile(losses, (0.25, 0.75))
    losses = np.minimum(losses, high + 1.5 * (high - low))
    places = features(axes, points)
    kernel = ConstantKernel(1.0, (1e-3, 1e3)) * Matern(
        np.full(places.shape[1], 0.5), (5e-2, 1e2), nu=2.5
    ) + WhiteKernel(0.1, (1e-4, 1e1))
    process = GaussianProcessRegressor(
        kernel, normalize_y=True, n_restarts_optimizer=1, random_state=_SEED
    )
    with warnings.catch_warnings():
        # An axis without effect drives its length to the bound.
        warnings.simplefilter("ignore", ConvergenceWarning)
        process.fit(places, losses)
    scale = float(np.std(losses)) or 1.0
    fitted = process.kernel_.k1
    return GaussianProcess(
        axes=axes,
        places=places,
        lengths=np.broadcast_to(fitted.k2.length_scale, places.shape[1]).copy(),
        weights=np.ravel(process.alpha_) * fitted.k1.constant_value * scale,
        mean=float(np.mean(losses)),
    )


SURROGATES: Mapping[str, Fit] = {"trees": fit_trees, "gp": fit_process}


def explained(fit: Fit, axes: tuple[Axis, ...], points: Array, losses: Array) -> float:
    """Return the share of the variance of losses that the others predict, over five folds.

    R^2 = 1 - sum of (loss - prediction)^2 / sum of (loss - mean)^2; below 0 the mean of all losses
    predicts better.
    """
    order = np.random.default_rng(_SEED).permutation(len(losses))
    predicted = np.empty(len(losses))
    for fold in np.array_split(order, _FOLDS):
        rest = np.setdiff1d(order, fold)
        predicted[fold] = fit(axes, points[rest], losses[rest]).values(points[fold])
    spread = float(((losses - losses.mean()) ** 2).sum())
    return 1.0 - float(((losses - predicted) ** 2).sum()) / spread if spread else math.nan


def features(axes: Sequence[Axis], points: Array) -> Array:
    """Return points [n, axes] as features [n, features]: a share of its range for each axis.

    A choice between words has no order, so it is one feature for each word.
    """
    scaled = shares(axes, points)
    columns = []
    for index, axis in enumerate(axes):
        if axis.kind == "choice" and any(isinstance(value, str) for value in axis.values):
            numbers = np.arange(len(axis.values))
            columns.append((np.rint(points[:, index])[:, None] == numbers).astype(np.float64))
        else:
            columns.append(scaled[:, index : index + 1])
    return np.concatenate(columns, axis=1)


def check_losses(name: str, losses: Sequence[float]) -> None:
    """Raise UsageError where there are too few losses for a surface, or all are equal."""
    if len(losses) < LEAST_LOSSES:
        raise UsageError(
            f"`{name}` has {len(losses)} losses, and a surrogate needs {LEAST_LOSSES}",
            hint="replay a longer search, or a function: `elmanctl replay --function all`",
        )
    if len(set(losses)) == 1:
        raise UsageError(f"all losses of `{name}` are equal: there is nothing to search for")


def _require_sklearn() -> None:
    try:
        import sklearn  # noqa: F401
    except ImportError as exc:
        raise EnvironmentNotReady(
            f"a surrogate needs scikit-learn, which cannot be imported here: {exc}",
            hint=INSTALL_REPLAY,
        ) from exc
