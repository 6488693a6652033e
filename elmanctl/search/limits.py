"""Checks of a search's settings and learning rates, before it starts and when they change."""

from collections.abc import Mapping
from typing import Any

from elmanctl.config import refuse_outside
from elmanctl.errors import ConfigError
from elmanctl.settings import Settings, flat
from elmanctl.space.space import LEARNING_RATE, SearchSpace


def check_limits(settings: Settings, changes: Mapping[str, Any] | None = None) -> None:
    """Raise ConfigError for settings out of bounds, naming their keys.

    With `changes` only these are checked: the other settings of a run may stay as they are.
    """
    refuse_outside(dict(flat(settings.encode())) if changes is None else changes)
    settings.train.check_together()
    settings.local.check_together()
    settings.metrics.check_together()


def check_learning_rates(space: SearchSpace) -> None:
    """Raise ConfigError for a learning rate, searched or fixed, out of bounds."""
    if LEARNING_RATE in space.fixed:
        check_learning_rate(space.fixed[LEARNING_RATE], "`[model]`: ")
    for axis in space.axes:
        if axis.name == LEARNING_RATE:
            ends = (axis.value(axis.coordinate.low), axis.value(axis.coordinate.high))
            for rate in (*ends, *axis.values):
                check_learning_rate(rate, f"axis `{axis.name}`: ")


def check_learning_rate(rate: object, where: str = "") -> float:
    """Return a learning rate; raise ConfigError for one out of the bounds of `train.lr`."""
    if isinstance(rate, bool) or not isinstance(rate, int | float):
        raise ConfigError(f"{where}`lr` is a number, not `{rate}`")
    refuse_outside({"train.lr": rate}, where)
    return float(rate)
