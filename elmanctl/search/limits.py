"""Settings that no search can work with, found before it starts."""

from collections.abc import Mapping
from typing import Any

from elmanctl.config import refuse_outside
from elmanctl.errors import ConfigError
from elmanctl.settings import Settings
from elmanctl.space.audit import LEARNING_RATE
from elmanctl.space.space import SearchSpace


def check_limits(settings: Settings, changes: Mapping[str, Any] | None = None) -> None:
    """Raise ConfigError for settings that no search can work with, naming their keys.

    With `changes` these alone are held to their bounds: what a run began with may stay.
    """
    if changes is None:
        tables = settings.encode().items()
        changes = {f"{name}.{key}": value for name, table in tables for key, value in table.items()}
    refuse_outside(changes)
    settings.train.check_together()
    settings.local.check_together()


def check_learning_rates(space: SearchSpace) -> None:
    """Raise ConfigError for a learning rate, searched or fixed, that `train.lr` could not be."""
    told: dict[str, tuple[object, ...]] = {}
    if LEARNING_RATE in space.fixed:
        told["`[model]`"] = (space.fixed[LEARNING_RATE],)
    for axis in space.axes:
        if axis.name == LEARNING_RATE:
            ends = [end for end in (axis.low, axis.high) if end is not None]
            told[f"axis `{axis.name}`"] = (*ends, *axis.values)
    for where, rates in told.items():
        for rate in rates:
            check_learning_rate(rate, f"{where}: ")


def check_learning_rate(rate: object, where: str = "") -> float:
    """Return a learning rate; raise ConfigError for one that `train.lr` could not be."""
    if isinstance(rate, bool) or not isinstance(rate, int | float):
        raise ConfigError(f"{where}`lr` is a number, not `{rate}`")
    refuse_outside({"train.lr": rate}, where)
    return float(rate)
