"""Settings that no search can work with, found before it starts."""

from collections.abc import Mapping
from typing import Any

from elmanctl.config import refuse_outside
from elmanctl.errors import ConfigError
from elmanctl.schedulers.gpus import GPU_NAME
from elmanctl.settings import Settings, setting_bounds
from elmanctl.space.audit import LEARNING_RATE
from elmanctl.space.space import SearchSpace


def check_limits(settings: Settings) -> None:
    """Raise ConfigError for settings that no search can work with, naming their keys."""
    tables = settings.encode()
    parts = (key.split(".") for key in setting_bounds())
    refuse_outside({f"{section}.{name}": tables[section][name] for section, name in parts})
    _check_together(settings)


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


def check_changed_limits(settings: Settings, changes: Mapping[str, Any]) -> None:
    """Raise ConfigError for changes that a run cannot have; what it began with may stay."""
    refuse_outside(changes)
    _check_together(settings)


def _check_together(settings: Settings) -> None:
    batch, micro_batch = settings.train.batch, settings.train.micro_batch
    if micro_batch and batch % micro_batch:
        raise ConfigError(
            f"`train.micro_batch` {micro_batch} does not divide `train.batch` {batch}"
        )
    gpus = settings.local.gpus
    for gpu in gpus:
        if gpu < 0 if isinstance(gpu, int) else not GPU_NAME.fullmatch(gpu):
            raise ConfigError(
                f"`local.gpus` holds `{gpu}`, which is no GPU",
                hint="numbers from 0, or names as `nvidia-smi -L` shows them: GPU-..., MIG-...",
            )
    if len(set(gpus)) < len(gpus):
        raise ConfigError(
            "`local.gpus` names a GPU twice", hint="each GPU runs one evaluation at a time"
        )
