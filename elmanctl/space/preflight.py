"""Preflight checks of a search space and of every sampled point, before any job is submitted."""

from collections.abc import Sequence
from dataclasses import fields, replace
from functools import lru_cache
from math import lcm

from elmanctl.errors import ConfigError, InvalidConfiguration, meant
from elmanctl.models.backends import AUTO
from elmanctl.models.config import FamilyConfig
from elmanctl.models.memory import training_memory_bytes
from elmanctl.models.params import count_parameters
from elmanctl.models.registry import FAMILIES, decode_config, find_family
from elmanctl.run.training import Training
from elmanctl.settings import Settings
from elmanctl.space.axis import Axis, Value
from elmanctl.space.space import SearchSpace, model_fields

_MOST_LEVELS = 1000

_GB = 10**9


class Preflight:
    """Checks a configuration against the backend and the GPU memory of one search."""

    def __init__(self, settings: Settings, executor: str) -> None:
        self._train = settings.train
        place = settings.local if executor == "local" else settings.slurm
        self._gpu_memory_gb = None if settings.train.device == "cpu" else place.gpu_memory_gb

    def check(self, config: FamilyConfig) -> None:
        """Raise InvalidConfiguration for a model that could not run."""
        self.check_backend(config)
        self.micro_batch(config)

    def micro_batch(self, config: FamilyConfig) -> int:
        """Return the micro-batch, 0 for the whole batch; raise InvalidConfiguration if none fits.

        If it is not set and the GPU memory is known, it is the largest divisor of the batch that
        fits, so that a large model trains on as many tokens a step as a small one: with activations
        that are recomputed if that is asked for, or if not even one sequence fits otherwise.
        """
        train = self._train
        if train.batch_rule is not None:
            batch = train.batch_for(count_parameters(config.level, config.encode()))
            train = replace(train, batch=batch)
        return _micro_batch(train, self._gpu_memory_gb, config)

    def check_backend(self, config: FamilyConfig) -> None:
        """Raise InvalidConfiguration for a model that the backend does not support."""
        name = self._train.backend
        # `auto` is resolved on the node; its last resort is the last backend of the family.
        config.check_backend(FAMILIES[config.level].backends[-1] if name == AUTO else name)


@lru_cache(maxsize=4096)
def _micro_batch(train: Training, gpu_memory_gb: float | None, config: FamilyConfig) -> int:
    if gpu_memory_gb is None:
        return train.micro_batch
    limit_bytes = gpu_memory_gb * _GB
    batch = train.batch // train.ranks
    whole = train.micro_batch or batch
    divisors = [size for size in range(batch, 0, -1) if batch % size == 0]
    sizes = [whole] if train.micro_batch else divisors
    always, by_need = (train.activation_checkpointing == word for word in ("on", "auto"))
    needed = {size: _memory_bytes(train, config, size, is_recomputing=always) for size in sizes}
    fitting = [size for size in sizes if needed[size] <= limit_bytes]
    one_fits = _memory_bytes(train, config, 1, is_recomputing=always or by_need) <= limit_bytes
    if by_need and one_fits and not fitting and 1 in sizes:
        fitting = [1]
    if fitting:
        return train.micro_batch if max(fitting) == whole else max(fitting)
    raise InvalidConfiguration(
        f"{config.level} would need about {needed[sizes[-1]] / _GB:.1f} GB "
        f"of the GPU's {limit_bytes / _GB:.1f} GB",
        hint="set a smaller `train.micro_batch`; the tokens of a step stay the same"
        if one_fits
        else "even a single sequence does not fit: shorten `train.seq_len`, or search "
        "smaller models",
    )


def _memory_bytes(
    train: Training, config: FamilyConfig, micro_batch: int, *, is_recomputing: bool
) -> int:
    return training_memory_bytes(
        config,
        micro_batch=micro_batch,
        seq_len=train.seq_len,
        precision="fp32" if train.precision == "fp32" else "bf16",
        is_recomputing=is_recomputing,
    )


def mixed_backends(settings: Settings, models: Sequence[FamilyConfig]) -> str | None:
    """Return a warning when `auto` would pick different backends for these models.

    Under a time budget the search would then compare implementations along with models.
    """
    train = settings.train
    if train.backend != AUTO or train.device == "cpu":
        return None
    for backend in FAMILIES[models[0].level].backends[:-1]:
        beyond = sum(not model.is_supported_by(backend) for model in models)
        if 0 < beyond < len(models):
            return (
                f"{beyond} of the first {len(models)} points are not computed by backend "
                f"`{backend}`; where it can run, `auto` trains these on another than the rest"
            )
    return None


def check_space(space: SearchSpace, settings: Settings, executor: str) -> None:
    """Raise InvalidConfiguration, naming the axis, for a value that no model can run with.

    Each value is combined with the middle of the other axes, then with their other values; one
    that runs in some combination is valid.
    """
    preflight = Preflight(settings, executor)
    _check_limited_axes(space)
    for axis in space.axes:
        levels = _sampled(axis.levels or ())
        found = [(level, _fault(space, axis, level, settings, preflight)) for level in levels]
        faults = [(level, fault) for level, fault in found if fault is not None]
        if not faults:
            continue
        level, fault = faults[0]
        if len(faults) == len(levels):
            # No value of this axis runs, so the cause lies elsewhere, mostly in a constant.
            raise fault
        raise InvalidConfiguration(
            f"axis `{axis.name}` at {level}: {fault.message}",
            hint=fault.hint or "take it out of the axis in `[search.axes]`",
        ) from fault


def _sampled(levels: Sequence[Value]) -> Sequence[Value]:
    """Return all levels, or an even sample of very many, both ends included."""
    last = len(levels) - 1
    if last < _MOST_LEVELS:
        return levels
    return [levels[index * last // _MOST_LEVELS] for index in range(_MOST_LEVELS + 1)]


def _check_limited_axes(space: SearchSpace) -> None:
    """Raise ConfigError for an axis whose `at_most` is not a number of the model."""
    middle = space.values(space.middle)
    defaults = {item.name: item.default for item in fields(find_family(space.model).load_config())}
    for axis in space.axes:
        limit = axis.at_most
        if limit is None:
            continue
        if limit not in defaults:
            raise ConfigError(
                f"axis `{axis.name}`: {space.model} has no setting `{limit}` to be limited by",
                hint=meant(limit, defaults),
            )
        value = middle.get(limit, defaults[limit])
        is_number = isinstance(value, int | float) and not isinstance(value, bool)
        # `dim` may be solved later, so it has no value here.
        if limit != "dim" and not is_number:
            raise ConfigError(f"axis `{axis.name}`: at_most names `{limit}`, which is no number")


def _fault(
    space: SearchSpace, axis: Axis, level: Value, settings: Settings, preflight: Preflight
) -> InvalidConfiguration | None:
    """Return why no model runs with a value of an axis; None if one does, or none is allowed."""
    config_class = find_family(space.model).load_config()
    first = None
    for base in space.bases(axis):
        values = {**base, axis.name: level}
        if not space.allows(values):
            continue
        dim = lcm(settings.search.multiple_of, config_class.dim_divisor(values))
        try:
            config = decode_config(space.model, {"dim": dim, **model_fields(values)})
            preflight.check_backend(config)
        except InvalidConfiguration as exc:
            first = first or exc
        else:
            return None
    return first
