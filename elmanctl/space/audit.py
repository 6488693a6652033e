"""The audit of a search space: an axis that changes nothing must not be searched.

Each axis is moved alone, all else being equal, and has to change the number of parameters, the
size of the state, or what a tiny instance of the model computes.  A study once reported the best
value of a parameter that never reached its models.
"""

import importlib.util
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from itertools import islice, pairwise
from math import lcm
from typing import Any, Literal

from elmanctl.constants import INSTALL_TRAIN, VOCABULARY
from elmanctl.errors import EnvironmentNotReady, InvalidConfiguration
from elmanctl.models.config import FamilyConfig
from elmanctl.models.registry import decode_config, find_family
from elmanctl.space.axis import Axis
from elmanctl.space.space import LEARNING_RATE, SearchSpace, model_fields

Effect = Literal["parameters", "state", "output", "training", "tested", "none"]

_Pair = tuple[FamilyConfig, FamilyConfig]

# It computes every model on any machine.
_BACKEND = "torch"

# A switch may matter only where another one is on, so an axis is moved from several points.
_MOST_BASES = 48

_TINY_DIM, _TINY_DEPTH, _TINY_TOKENS = 32, 1, 16


@dataclass(frozen=True, slots=True, kw_only=True)
class AxisEffect:
    """What moving an axis changes first of: parameters, state, output; `none` is a dead axis.

    `training` is the learning rate; `tested` an axis of a space as it ships that changes no size,
    where torch is not there to see its output: the tests of elmanctl saw it.
    """

    axis: str
    effect: Effect


def audit_space(space: SearchSpace, multiple_of: int = 1) -> list[AxisEffect]:
    """Return the effect of every axis, as seen in models that were built.

    Where torch is not installed, the sizes are those that the configurations tell.
    Raises EnvironmentNotReady when an axis of the user's own space then changes no size, and
    InvalidConfiguration for an axis along which no model can be built, or a model that has not
    the size that its configuration tells.
    """
    return [
        AxisEffect(axis=axis.name, effect=_effect(space, axis, multiple_of)) for axis in space.axes
    ]


def refuse_dead_axes(effects: list[AxisEffect]) -> None:
    """Raise InvalidConfiguration naming the axes that change nothing."""
    dead = [f"`{found.axis}`" for found in effects if found.effect == "none"]
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
        return _told_effect(pairs) or _without_torch(space, axis)
    # What tells a difference is the likeliest to show one, and is built first.
    pairs.sort(key=lambda pair: _told_effect([pair]) is None)
    seen = (_seen_effect(axis, one, other) for one, other in pairs)
    return next((effect for effect in seen if effect is not None), "none")


def _told_effect(pairs: list[_Pair]) -> Effect | None:
    """The effect by what configurations tell of their sizes."""
    if any(_count(one) != _count(other) for one, other in pairs):
        return "parameters"
    if any(_state_size(one) != _state_size(other) for one, other in pairs):
        return "state"
    return None


def _seen_effect(axis: Axis, one: FamilyConfig, other: FamilyConfig) -> Effect | None:
    from elmanctl.models import trial

    small = [_small(axis, config, (one, other)) for config in (one, other)]
    # Built first, and run only when nothing is seen yet: running is most of the work.
    if len({_built_parameters(config) for config in small}) > 1:
        return "parameters"
    first, second = (trial.run(config, _BACKEND, _TINY_TOKENS) for config in small)
    if first.state_size != second.state_size:
        return "state"
    if trial.differ(first.logits, second.logits):
        return "output"
    return "training" if trial.differ(first.auxiliary_loss, second.auxiliary_loss) else None


def _built_parameters(config: FamilyConfig) -> int:
    """Build a model and count; raise InvalidConfiguration where its configuration tells another."""
    from elmanctl.models import trial

    parameters = trial.count_built(config, _BACKEND)
    if parameters != _count(config):
        raise InvalidConfiguration(
            f"{config.level} has {parameters} parameters, and its configuration tells "
            f"{_count(config)}",
            hint="mend `layer_parameters` of the configuration",
        )
    return parameters


def _without_torch(space: SearchSpace, axis: Axis) -> Effect:
    if space.is_shipped:
        return "tested"
    raise EnvironmentNotReady(
        f"axis `{axis.name}` changes no size, so whether it changes the output has to be tried, "
        "and torch is not installed here",
        hint=f"{INSTALL_TRAIN} on this machine, or fix the setting in `[model]`",
    )


def _moves(space: SearchSpace, axis: Axis, multiple_of: int) -> list[_Pair]:
    """Pairs of configurations that differ in the axis alone.

    What cannot be built is left out; raises InvalidConfiguration, naming the axis, when all is.
    """
    pairs: list[_Pair] = []
    refusals: list[InvalidConfiguration] = []
    for base in bases(space, axis):
        ends = [{**base, axis.name: value} for value in _extremes(axis)]
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


def bases(space: SearchSpace, moved: Axis) -> Iterator[dict[str, Any]]:
    """Return values to move an axis from: the middle first, then those with one axis elsewhere.

    Of an axis with few values each is among them, of another the ends; there are 48 at most.
    """
    return islice(_bases(space, moved), _MOST_BASES)


def _bases(space: SearchSpace, moved: Axis) -> Iterator[dict[str, Any]]:
    middle = space.values(space.middle)
    yield middle
    others = [axis for axis in space.axes if axis is not moved]
    for axis in others:
        for value in _extremes(axis):
            if value != middle[axis.name]:
                yield {**middle, axis.name: value}
    # Last, all others low or high at once, for what needs several of them.
    for end in (0, -1):
        yield {**middle, **{axis.name: _extremes(axis)[end] for axis in others}}


def _extremes(axis: Axis) -> list[Any]:
    """All values of a short axis, both ends and the middle of a long one."""
    levels = axis.levels
    if levels is not None and len(levels) <= 8:
        return list(levels)
    coordinate = axis.coordinate
    return [axis.value(x) for x in (coordinate.low, axis.middle, coordinate.high)]


def _common_dim(space: SearchSpace, ends: list[dict[str, Any]], multiple_of: int) -> int:
    config_class = find_family(space.model).load_config()
    step = lcm(multiple_of, *(config_class.dim_divisor(end) for end in ends))
    return -(-_TINY_DIM // step) * step


def _build(space: SearchSpace, values: Mapping[str, Any], dim: int) -> FamilyConfig:
    config = decode_config(space.model, {"dim": dim, **model_fields(values)})
    space.check({**values, **config.encode()})
    config.check_backend(_BACKEND)
    return config


def _small(axis: Axis, config: FamilyConfig, pair: _Pair) -> FamilyConfig:
    """A configuration as the audit builds it: narrow and one layer deep, where it may be."""
    step = lcm(*(type(each).dim_divisor(each.encode()) for each in pair))
    dim = -(-_TINY_DIM // step) * step
    # Two widths and two depths stand for those that an axis of dim or depth moves between: built
    # at their full size they would take minutes.
    is_second = config is pair[1]
    depth = _TINY_DEPTH + (axis.name == "depth" and is_second)
    width = dim + step * (axis.name == "dim" and is_second)
    return decode_config(config.level, {**config.encode(), "dim": width, "depth": depth})


def _count(config: FamilyConfig) -> int:
    return (
        VOCABULARY * config.dim
        + config.depth * config.layer_parameters()
        + config.norm_parameters()
    )


def _state_size(config: FamilyConfig) -> int:
    return config.depth * config.layer_state_size(_TINY_TOKENS)
