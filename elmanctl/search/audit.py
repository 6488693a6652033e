"""The audit of a search space: an axis that changes nothing must not be searched.

Each axis is moved alone, all else being equal, and has to change the number of parameters, the
size of the state, or what a tiny instance of the model computes.  A study once reported the best
value of a parameter that never reached its models.
"""

import importlib.util
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import lru_cache
from itertools import islice, pairwise
from math import lcm
from typing import Any, Literal

from elmanctl.errors import EnvironmentNotReady, InvalidConfiguration
from elmanctl.models.config import FamilyConfig
from elmanctl.models.registry import decode_config, find_family
from elmanctl.search.axis import Axis
from elmanctl.search.space import SearchSpace

Effect = Literal["parameters", "state", "output", "training", "tested", "none"]

# Not a field of any model: the worker reads it.
LEARNING_RATE = "lr"

# A switch may matter only where another one is on, so an axis is moved from several points.
_MOST_BASES = 48

_TINY_DIM, _TINY_DEPTH, _TINY_TOKENS = 32, 1, 24

# In float64; what an axis changes by rounding alone stays under it.
_SMALLEST_CHANGE = 1e-9


@dataclass(frozen=True, slots=True, kw_only=True)
class AxisEffect:
    """What moving an axis changes first of: parameters, state, output; `none` is a dead axis.

    `training` is the learning rate; `tested` an axis of a space as it ships that changes no size,
    where torch is not there to see its output: the tests of elmanctl saw it.
    """

    axis: str
    effect: Effect


def audit_space(space: SearchSpace, multiple_of: int = 1) -> list[AxisEffect]:
    """Return the effect of every axis.

    Raises EnvironmentNotReady when an axis of the user's own space changes no size and torch, which
    is needed to see whether it changes the output, is not installed.
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
    pairs = list(_moves(space, axis, multiple_of))
    for one, other in pairs:
        if _count(one) != _count(other):
            return "parameters"
    for one, other in pairs:
        if one.layer_state_size(_TINY_TOKENS) != other.layer_state_size(_TINY_TOKENS):
            return "state"
    if importlib.util.find_spec("torch") is None:
        return _without_torch(space, axis)
    return "output" if any(_computes_otherwise(one, other) for one, other in pairs) else "none"


def _without_torch(space: SearchSpace, axis: Axis) -> Effect:
    if space.is_shipped:
        return "tested"
    raise EnvironmentNotReady(
        f"axis `{axis.name}` changes no size, so whether it changes the output has to be tried, "
        "and torch is not installed here",
        hint="pip install 'elmanctl[train]' on this machine, or fix the setting in `[model]`",
    )


def _moves(
    space: SearchSpace, axis: Axis, multiple_of: int
) -> Iterator[tuple[FamilyConfig, FamilyConfig]]:
    """Pairs of configurations that differ in the axis alone; what cannot be built is left out."""
    for base in bases(space, axis):
        ends = [{**base, axis.name: value} for value in _extremes(axis)]
        dim = _common_dim(space, ends, multiple_of)
        built = [config for end in ends if (config := _build(space, end, dim)) is not None]
        yield from pairwise(built)


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


def _build(space: SearchSpace, values: Mapping[str, Any], dim: int) -> FamilyConfig | None:
    fields = {name: value for name, value in values.items() if name != LEARNING_RATE}
    try:
        space.check(values)
        return decode_config(space.model, {"dim": dim, **fields})
    except InvalidConfiguration:
        return None


def _count(config: FamilyConfig) -> int:
    return config.depth * config.layer_parameters() + config.norm_parameters()


def _computes_otherwise(one: FamilyConfig, other: FamilyConfig) -> bool:
    # What moves dim or depth is seen in the counts; here both only cost time.
    small = {"dim": _common_width(one, other), "depth": _TINY_DEPTH}
    outputs = [_output(decode_config(c.level, {**c.encode(), **small})) for c in (one, other)]
    return bool((outputs[0] - outputs[1]).abs().max() > _SMALLEST_CHANGE)


def _common_width(one: FamilyConfig, other: FamilyConfig) -> int:
    step = lcm(*(type(c).dim_divisor(c.encode()) for c in (one, other)))
    return -(-_TINY_DIM // step) * step


@lru_cache(maxsize=256)
def _output(config: FamilyConfig) -> Any:
    """The logits [1, T, 256] of a tiny instance in float64, with dropout and noise as in training.

    All parameters are moved off their start by the same noise, since some start at zero and hide
    what lies before them.
    """
    import torch

    from elmanctl.models.registry import build_model

    model = build_model(config, seed=0, backend="torch").double().train()
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad(), torch.random.fork_rng(devices=()):
        for parameter in model.parameters():
            noise = torch.randn(parameter.shape, generator=generator, dtype=torch.float64)
            parameter.add_(0.1 * noise)
        torch.manual_seed(2)
        tokens = torch.randint(256, (1, _TINY_TOKENS), generator=generator)
        logits, _ = model(tokens)
    return logits
