"""Synthetic functions over mixed axes, for searches whose best point is known.

Each seed has its own instance: the best point, rotations and orders are drawn from it.  The best
value is 0, and the median at random points is 1.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache

import numpy as np

from elmanctl.errors import NotFound, meant
from elmanctl.replay.objective import Array, Objective, random_points, shares
from elmanctl.space.axis import Axis

NOISE = 0.05
FAILURE_SHARE = 0.03

_SAMPLE = 1024


@dataclass(frozen=True, slots=True, kw_only=True)
class Draw:
    """What an instance draws from its seed.

    `best` [axes] is the best point in shares of each axis' range, `rotation` [axes, axes] is
    orthogonal, `order` [axes] a permutation, `weights` [axes] are from 0.5 to 1.5.
    """

    best: Array
    rotation: Array
    order: np.ndarray[tuple[int], np.dtype[np.int64]]
    weights: Array


@dataclass(frozen=True, slots=True, kw_only=True)
class Function:
    """A family of surfaces: `formula` gives values [n] at shares [n, axes], 0 at the best point.

    `allows` says of shares [n, axes] where a configuration is valid; None: everywhere.  `least` is
    the least share of a range at which the best point lies.
    """

    summary: str
    axes: tuple[Axis, ...]
    formula: Callable[[Array, Draw], Array]
    allows: Callable[[Array, Draw], Array] | None = None
    least: float = 0.0


class Instance:
    """The surface of a function for one seed."""

    def __init__(self, name: str, seed: int) -> None:
        self._name, self._seed = name, seed
        function = FUNCTIONS[name]
        draw = np.random.default_rng([seed, *name.encode()])
        axes = function.axes
        # Not at the very bounds, where half of what surrounds a point is missing.
        share = function.least + (0.95 - function.least) * (0.05 + 0.95 * draw.random(len(axes)))
        rotation, _ = np.linalg.qr(draw.normal(size=(len(axes), len(axes))))
        self.drawn = Draw(
            best=np.array([_snapped(a, x) for a, x in zip(axes, share.tolist(), strict=True)]),
            rotation=rotation,
            order=draw.permutation(len(axes)),
            weights=0.5 + draw.random(len(axes)),
        )
        sample = shares(axes, random_points(axes, _SAMPLE, draw))
        if function.allows is not None:
            sample = sample[function.allows(sample, self.drawn)]
        values = function.formula(sample, self.drawn)
        self._scale = float(np.median(values[np.isfinite(values)]))

    @property
    def fingerprint(self) -> str:
        """The name and the seed."""
        return f"{self._name} {self._seed}"

    @property
    def best(self) -> tuple[float, ...]:
        """The best point, in the optimizer's coordinates."""
        last = [1 if a.levels is None else len(a.levels) - 1 for a in FUNCTIONS[self._name].axes]
        return tuple(float(x) for x in self.drawn.best * last)

    def values(self, points: Array) -> Array:
        """Return the values [n] at points [n, axes]; infinity where training diverges."""
        function = FUNCTIONS[self._name]
        return function.formula(shares(function.axes, points), self.drawn) / self._scale

    def is_valid(self, point: Sequence[float]) -> bool:
        """Whether the configuration at a point is valid."""
        function = FUNCTIONS[self._name]
        if function.allows is None:
            return True
        return bool(function.allows(shares(function.axes, np.array([point])), self.drawn)[0])


@dataclass(frozen=True, slots=True, kw_only=True)
class FunctionSource:
    """A synthetic function, with another instance for every seed."""

    name: str
    noise: float = NOISE
    failure_share: float = FAILURE_SHARE

    @property
    def axes(self) -> tuple[Axis, ...]:
        """The axes of the function."""
        return FUNCTIONS[self.name].axes

    def at(self, seed: int) -> Objective:
        """Return the instance of a seed."""
        return Objective(
            name=self.name,
            axes=self.axes,
            surface=_instance(self.name, seed),
            noise=self.noise,
            failure_share=self.failure_share,
            best=0.0,
            typical=1.0,
        )


@lru_cache(maxsize=4096)
def _instance(name: str, seed: int) -> Instance:
    return Instance(name, seed)


def _snapped(axis: Axis, share: float) -> float:
    """Return the share of a range nearest to one that has a value."""
    last = None if axis.levels is None else len(axis.levels) - 1
    return share if last is None else round(share * last) / last


def find_functions(names: Sequence[str]) -> list[str]:
    """Return the named functions, `all` for every one; raise NotFound for an unknown name."""
    found: dict[str, None] = {}
    for name in names:
        if name != "all" and name not in FUNCTIONS:
            known = f"functions: {', '.join(FUNCTIONS)}"
            raise NotFound(f"no function named `{name}`", hint=meant(name, FUNCTIONS, known))
        found |= dict.fromkeys(FUNCTIONS if name == "all" else [name])
    return list(found)


def _integer(name: str, low: int, high: int, multiple_of: int = 1) -> Axis:
    return Axis(name=name, kind="int", low=low, high=high, multiple_of=multiple_of)


def _power(name: str, low: int, high: int) -> Axis:
    return Axis(name=name, kind="pow2", low=low, high=high)


def _number(name: str, low: float, high: float, kind: str = "float") -> Axis:
    return Axis(name=name, kind=kind, low=low, high=high)


_DEPTH = _integer("depth", 8, 40)
_HEADS = _integer("n_heads", 16, 160)
_DIM = _integer("dim", 1024, 3072, 128)
_STATE = _power("n_state", 16, 256)
_LR = _number("lr", 1e-5, 1e-2, "log")
_DROPOUT = _number("dropout", 0.0, 0.3)
_GATE = Axis(name="gate", kind="bool")
_CELL = Axis(name="cell", kind="choice", values=("gru", "lstm", "rnn", "ssm"))
_DECAY = _number("weight_decay", 1e-4, 1.0, "log")


def _quadratic(x: Array, draw: Draw) -> Array:
    """Return a rotated quadratic function with a condition number of 30."""
    turned = (x - draw.best) @ draw.rotation
    return np.asarray((turned**2 * np.geomspace(1.0, 30.0, x.shape[1])).sum(1))


def _rugged(x: Array, draw: Draw) -> Array:
    """Return a quadratic function with the ripples of Rastrigin's, five to each range."""
    d = x - draw.best
    return np.asarray((d**2 + 0.04 * (1.0 - np.cos(10.0 * np.pi * d))).sum(1))


def _valley(x: Array, draw: Draw) -> Array:
    """Return the logarithm of a curved, ill-conditioned valley like Rosenbrock's."""
    z = 2.0 * (x - draw.best)[:, draw.order]
    along, across = z[:, :-1], z[:, 1:] - z[:, :-1] ** 2
    return np.asarray(np.log1p((along**2 + 100.0 * across**2).sum(1)))


def _conditional(x: Array, draw: Draw) -> Array:
    """Return a quadratic function of axes that matter under one category and not the other.

    Axes: cell, gate, expansion, n_heads, depth, lr.  Each cell has its own best depth and learning
    rate; `expansion` matters with the gate alone, `n_heads` in two of the cells.
    """
    d = x - draw.best
    steps = np.rint(np.abs(d[:, 0]) * 3)
    depth = d[:, 4] + 0.25 * steps * np.sign(d[:, 0])
    lr = d[:, 5] - 0.2 * steps
    has_gate, has_heads = x[:, 1] > 0.5, np.rint(x[:, 0] * 3) % 2 == np.rint(draw.best[0] * 3) % 2
    inner = depth**2 + 2.0 * lr**2 + np.where(has_gate, d[:, 2] ** 2, 0.1)
    inner = inner + np.where(has_heads, d[:, 3] ** 2, 0.15)
    best = np.where(draw.best[1] > 0.5, 0.0, 0.1)
    return np.asarray(inner - best + 0.08 * steps + 0.15 * np.abs(d[:, 1]))


def _steps(x: Array, draw: Draw) -> Array:
    """Return plateaus: a staircase of ten steps to each range."""
    return np.asarray((np.floor(10.0 * np.abs(x - draw.best)) * draw.weights).sum(1))


def _fits(x: Array, draw: Draw) -> Array:
    """Return where depth and width fit the memory, which the best point just does."""
    return np.asarray(x[:, 0] + x[:, 1] <= draw.best[0] + draw.best[1] + 0.1)


def _cliff(x: Array, draw: Draw) -> Array:
    """Return a function that falls with the learning rate up to where training diverges.

    Axes: lr, depth, and others.  Deeper models diverge at lower rates.
    """
    d = x - draw.best
    above = d[:, 0] + 0.4 * d[:, 1]
    values = 3.0 * above**2 + (d[:, 1:] ** 2 * draw.weights[1:]).sum(1)
    return np.where(above > 0.05, np.inf, values)


def _sparse(x: Array, draw: Draw) -> Array:
    """Return a function of ten axes of which three matter."""
    d = (x - draw.best)[:, draw.order]
    return np.asarray((d[:, :3] ** 2).sum(1) + np.abs(d[:, 0] * d[:, 1]) + 1e-3 * (d**2).sum(1))


FUNCTIONS: Mapping[str, Function] = {
    "quadratic": Function(
        summary="rotated quadratic, condition number 30",
        axes=(_HEADS, _DEPTH, _DIM, _STATE, _LR, _DROPOUT),
        formula=_quadratic,
    ),
    "rugged": Function(
        summary="many local minima, as Rastrigin's function",
        axes=(_HEADS, _DEPTH, _integer("expansion", 1, 6), _LR, _DROPOUT),
        formula=_rugged,
    ),
    "valley": Function(
        summary="curved, ill-conditioned valley, as Rosenbrock's function",
        axes=(_HEADS, _DEPTH, _LR, _DECAY),
        formula=_valley,
    ),
    "conditional": Function(
        summary="axes that matter under one category alone",
        axes=(_CELL, _GATE, _integer("expansion", 1, 6), _power("n_heads", 1, 64), _DEPTH, _LR),
        formula=_conditional,
    ),
    "steps": Function(
        summary="plateaus, with invalid configurations beside the best",
        axes=(_DEPTH, _DIM, _HEADS, _STATE, _DROPOUT),
        formula=_steps,
        allows=_fits,
        least=0.3,
    ),
    "cliff": Function(
        summary="training diverges just above the best learning rate",
        axes=(_LR, _DEPTH, _DIM, _DECAY),
        formula=_cliff,
        least=0.3,
    ),
    "sparse": Function(
        summary="ten axes, of which three matter",
        axes=(
            *(_HEADS, _DEPTH, _DIM, _STATE, _GATE, _LR, _DROPOUT, _DECAY),
            *(_number("momentum", 0.8, 0.999), _integer("warmup", 0, 1000, 50)),
        ),
        formula=_sparse,
    ),
}
