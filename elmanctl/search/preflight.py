"""What is checked of a space and of every sampled point before a job could be spent on it."""

from math import lcm
from typing import Any

from elmanctl.errors import InvalidConfiguration
from elmanctl.models.backends import AUTO
from elmanctl.models.config import FamilyConfig
from elmanctl.models.memory import training_memory_bytes
from elmanctl.models.registry import FAMILIES, decode_config, find_family
from elmanctl.search.space import SearchSpace
from elmanctl.settings import Settings

_GB = 10**9


class Preflight:
    """The checks of one search on a configuration: its backend computes it, its GPU holds it."""

    def __init__(self, settings: Settings, executor: str) -> None:
        self._train = settings.train
        place = settings.local if executor == "local" else settings.slurm
        self._gpu_memory_gb = place.gpu_memory_gb

    def check(self, config: FamilyConfig) -> None:
        """Raise InvalidConfiguration for a model that could not run."""
        self.check_backend(config)
        if self._gpu_memory_gb is not None:
            self._check_memory(config, self._gpu_memory_gb * _GB)

    def check_backend(self, config: FamilyConfig) -> None:
        """Raise InvalidConfiguration for a model that the backend does not compute."""
        name = self._train.backend
        # What `auto` picks is known on the node alone; it can always pick the last one.
        config.check_backend(FAMILIES[config.level].backends[-1] if name == AUTO else name)

    def _check_memory(self, config: FamilyConfig, limit_bytes: float) -> None:
        train = self._train
        needed = training_memory_bytes(
            config,
            micro_batch=train.micro_batch or train.batch,
            seq_len=train.seq_len,
            precision="fp32" if train.precision == "fp32" else "bf16",
        )
        if needed > limit_bytes:
            raise InvalidConfiguration(
                f"{config.level} would need about {needed / _GB:.0f} GB of the GPU's "
                f"{limit_bytes / _GB:.0f} GB",
                hint="set a smaller `train.micro_batch`; the tokens of a step stay the same",
            )


def check_space(space: SearchSpace, settings: Settings, executor: str) -> None:
    """Raise InvalidConfiguration, naming the axis, for a value that no model can run with."""
    preflight = Preflight(settings, executor)
    config_class = find_family(space.model).load_config()
    middle = space.values(space.middle)

    def build(values: dict[str, Any]) -> None:
        dim = lcm(settings.search.multiple_of, config_class.dim_divisor(values))
        fields = {name: value for name, value in values.items() if name != "lr"}
        preflight.check_backend(decode_config(space.model, {"dim": dim, **fields}))

    if space.allows(middle):
        build(middle)
    for axis in space.axes:
        for level in axis.levels or ():
            values = {**middle, axis.name: level}
            if not space.allows(values):
                continue
            try:
                build(values)
            except InvalidConfiguration as exc:
                raise InvalidConfiguration(
                    f"axis `{axis.name}` at {level}: {exc.message}",
                    hint=exc.hint or "take it out of the axis in `[search.axes]`",
                ) from exc
