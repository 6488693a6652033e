"""Audit of a search space: find dead axes, which change nothing in the model.

Each axis is moved on its own and must change the number of parameters, the size of the state, or
the output of a tiny instance of the model.  A study once reported the best value of a parameter
that never reached its models.
"""

import importlib.util
from collections.abc import Mapping
from itertools import pairwise
from math import lcm
from typing import Literal

from elmanctl.constants import INSTALL_TRAIN
from elmanctl.errors import EnvironmentNotReady, InvalidConfiguration
from elmanctl.models.config import FamilyConfig
from elmanctl.models.registry import decode_config, find_family
from elmanctl.space.axis import Axis
from elmanctl.space.space import LEARNING_RATE, SearchSpace, model_fields

# The first difference seen; `none` is a dead axis.  `training` is the learning rate, or an axis of
# the auxiliary loss; `tested` an axis of a shipped space that changes no size, where torch is not
# installed: elmanctl's own tests saw its effect.
Effect = Literal["parameters", "state", "output", "training", "tested", "none"]

_Pair = tuple[FamilyConfig, FamilyConfig]

# The backend that supports every model on any machine.
_BACKEND = "torch"

_TINY_DIM, _TINY_DEPTH, _TINY_TOKENS = 32, 1, 16


def audit_space(space: SearchSpace, multiple_of: int = 1) -> dict[str, Effect]:
    """Return the effect of every axis, by its name, from models that are built and run.

    Without torch only the sizes declared by the configurations are compared.  Raises
    EnvironmentNotReady when an axis of the user's own space then changes no size, and
    InvalidConfiguration for an axis along which no model can be built, or a model whose size is not
    the declared one.
    """
    return {axis.name: _effect(space, axis, multiple_of) for axis in space.axes}


def refuse_dead_axes(effects: Mapping[str, Effect]) -> None:
    """Raise InvalidConfiguration naming the dead axes."""
    dead = [f"`{axis}`" for axis, effect in effects.items() if effect == "none"]
    if dead:
        raise InvalidConfiguration(
            f"moving {' or '.join(dead)} changes neither parameters nor state nor output "
            "of the model",
            hint="fix it in `[model]`, or take it out of `[search.axes]`",
        )


def _effect(space: SearchSpace, axis: Axis, multiple_of: int) -> Effect:
    if axis.name == LEARNING_RATE:
        return "training"
    pairs = _moves(space, axis, multiple_of)
    if importlib.util.find_spec("torch") is None:
        return _declared_effect(pairs) or _without_torch(space, axis)
    # Pairs with a declared difference are the likeliest to show one, so they are built first.
    pairs.sort(key=lambda pair: _declared_effect([pair]) is None)
    seen = (_measured_effect(axis, one, other) for one, other in pairs)
    return next((effect for effect in seen if effect is not None), "none")


def _declared_effect(pairs: list[_Pair]) -> Effect | None:
    """Return the effect by the sizes that the configurations declare."""
    if any(one.parameters() != other.parameters() for one, other in pairs):
        return "parameters"
    if any(_state_size(one) != _state_size(other) for one, other in pairs):
        return "state"
    return None


def _measured_effect(axis: Axis, one: FamilyConfig, other: FamilyConfig) -> Effect | None:
    from elmanctl.models import trial

    small = [_small(axis, config, (one, other)) for config in (one, other)]
    # Running is most of the work: skip it when the built models differ already.
    if len({_built_parameters(config) for config in small}) > 1:
        return "parameters"
    first, second = (trial.run(config, _BACKEND, _TINY_TOKENS) for config in small)
    if first.state_size != second.state_size:
        return "state"
    if trial.differ(first.logits, second.logits):
        return "output"
    return "training" if trial.differ(first.auxiliary_loss, second.auxiliary_loss) else None


def _built_parameters(config: FamilyConfig) -> int:
    """Build a model and count its parameters; raise InvalidConfiguration if it declares others."""
    from elmanctl.models import trial

    parameters = trial.count_built(config, _BACKEND)
    if parameters != config.parameters():
        raise InvalidConfiguration(
            f"{config.level} has {parameters} parameters, and its configuration declares "
            f"{config.parameters()}",
            hint="fix `layer_parameters` of the configuration",
        )
    return parameters


def _without_torch(space: SearchSpace, axis: Axis) -> Effect:
    if space.is_shipped:
        return "tested"
    raise EnvironmentNotReady(
        f"axis `{axis.name}` changes no size; to see whether it changes the output, models have "
        "to be run, and torch is not installed here",
        hint=f"{INSTALL_TRAIN} on this machine, or fix the setting in `[model]`",
    )


def _moves(space: SearchSpace, axis: Axis, multiple_of: int) -> list[_Pair]:
    """Return pairs of configurations that differ in this axis only.

    Configurations that cannot be built are skipped; raises InvalidConfiguration, naming the axis,
    when none is left.
    """
    pairs: list[_Pair] = []
    refusals: list[InvalidConfiguration] = []
    for base in space.bases(axis):
        ends = [{**base, axis.name: value} for value in axis.samples]
        dim = _common_dim(space, ends, multiple_of)
        built = []
        for end in ends:
            try:
                built.append(_build(space, end, dim))
            except InvalidConfiguration as exc:
                refusals.append(exc)
        pairs += pairwise(built)
    if not pairs:
        raise InvalidConfiguration(
            f"axis `{axis.name}`: no model can be built along it; {refusals[0].message}",
            hint=refusals[0].hint,
        )
    return pairs


def _common_dim(space: SearchSpace, ends: list[dict[str, object]], multiple_of: int) -> int:
    """Return a small width that all of these values allow."""
    config_class = find_family(space.model).load_config()
    return _tiny(lcm(multiple_of, *(config_class.dim_divisor(end) for end in ends)))


def _tiny(step: int) -> int:
    """Return the least multiple of `step` that is wide enough."""
    return -(-_TINY_DIM // step) * step


def _build(space: SearchSpace, values: Mapping[str, object], dim: int) -> FamilyConfig:
    config = decode_config(space.model, {"dim": dim, **model_fields(values)})
    space.check({**values, **config.encode()})
    config.check_backend(_BACKEND)
    return config


def _small(axis: Axis, config: FamilyConfig, pair: _Pair) -> FamilyConfig:
    """Return the tiny variant that is built: as narrow as allowed, and one layer deep."""
    step = lcm(*(type(each).dim_divisor(each.encode()) for each in pair))
    # An axis of dim or depth is audited on two small values: full size would take minutes.
    is_second = config is pair[1]
    depth = _TINY_DEPTH + (axis.name == "depth" and is_second)
    width = _tiny(step) + step * (axis.name == "dim" and is_second)
    return decode_config(config.level, {**config.encode(), "dim": width, "depth": depth})


def _state_size(config: FamilyConfig) -> int:
    return config.depth * config.layer_state_size(_TINY_TOKENS)
