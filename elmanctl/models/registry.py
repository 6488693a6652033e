"""Which model families exist, and where their configuration and their code are."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from importlib import import_module
from typing import TYPE_CHECKING

from elmanctl.errors import InvalidConfiguration, NotFound, nearest
from elmanctl.models.config import FamilyConfig, ModelConfig

# The command line lists families and must not wait for torch.
if TYPE_CHECKING:
    from torch import nn


@dataclass(frozen=True, slots=True, kw_only=True)
class Family:
    """A kind of model; `model` and `layer` are imported when one is built.

    `model` names a class that is called with the configuration, `layer` the class of its layers,
    both as `module:class`.  Sizes and size checks are the configuration's own.
    """

    name: str
    summary: str
    config_class: type[FamilyConfig]
    layer: str
    model: str = "elmanctl.models.lm:LanguageModel"

    def load_layer(self) -> "Callable[..., nn.Module]":
        """Import and return the class of the layers."""
        return _load_class(self.layer)

    def load_model(self) -> "Callable[..., nn.Module]":
        """Import and return the class of the whole model."""
        return _load_class(self.model)


FAMILIES: Mapping[str, Family] = {
    family.name: family
    for family in (
        Family(
            name="e88",
            summary="Nonlinear recurrence of matrix states with a delta-rule write",
            config_class=ModelConfig,
            layer="elmanctl.models.e88:E88Layer",
        ),
    )
}


def find_family(level: str) -> Family:
    """Return the family of a level, whatever the case of its letters.

    Raises NotFound, with the nearest name in the hint.
    """
    family = FAMILIES.get(level.casefold())
    if family is None:
        near = nearest(level, FAMILIES)
        raise NotFound(
            f"there is no model `{level}`",
            hint=f"did you mean `{near}`?" if near else f"there are: {', '.join(FAMILIES)}",
        )
    return family


def decode_config(level: str, data: Mapping[str, object]) -> FamilyConfig:
    """Return the configuration that plain data describes for a level.

    Raises NotFound on an unknown level, InvalidConfiguration on a setting that cannot be used.
    """
    family = find_family(level)
    told = data.get("level", family.name)
    if not isinstance(told, str) or told.casefold() != family.name:
        raise InvalidConfiguration(f"a configuration of {told!r} was given for {family.name}")
    return family.config_class.decode({**data, "level": family.name})


def build_model(config: FamilyConfig, *, seed: int, backend: str = "auto") -> "nn.Module":
    """Return a new model on the CPU in float32; equal seeds give equal models.

    The random state of the caller is left as it was.
    Raises InvalidConfiguration when the backend does not compute the model's sizes.
    """
    import torch

    model_class = find_family(config.level).load_model()
    with torch.random.fork_rng(devices=()):
        torch.manual_seed(seed)
        return model_class(config, backend=backend)


def _load_class(path: str) -> "Callable[..., nn.Module]":
    module, _, name = path.partition(":")
    found: Callable[..., nn.Module] = getattr(import_module(module), name)
    return found
