"""Trial runs of small models: their real size, and what they compute off their start."""

from functools import lru_cache
from typing import Any, NamedTuple

import torch

from elmanctl.models.config import FamilyConfig
from elmanctl.models.registry import build_model

# In float64; what changes by rounding alone stays under it.
_SMALLEST_CHANGE = 1e-9


class Observation(NamedTuple):
    """State and output of a model that ran; the tensors are float64."""

    state_size: int
    logits: torch.Tensor  # [1, T, 256]
    auxiliary_loss: torch.Tensor


@lru_cache(maxsize=256)
def count_built(config: FamilyConfig, backend: str) -> int:
    """Build a model and return the number of its parameters."""
    model = build_model(config, seed=0, backend=backend)
    return sum(parameter.numel() for parameter in model.parameters())


@lru_cache(maxsize=256)
def run(config: FamilyConfig, backend: str, tokens: int) -> Observation:
    """Build a model and run it on `tokens` bytes as in training, with dropout and noise.

    All parameters are moved off their start by the same noise, since some start at zero and hide
    what lies before them.
    """
    model = build_model(config, seed=0, backend=backend).double().train()
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad(), torch.random.fork_rng(devices=()):
        for parameter in model.parameters():
            noise = torch.randn(parameter.shape, generator=generator, dtype=torch.float64)
            parameter.add_(0.1 * noise)
        torch.manual_seed(2)
        inputs = torch.randint(256, (1, tokens), generator=generator)
        logits, states = model(inputs)
        auxiliary_loss = torch.as_tensor(model.auxiliary_loss(), dtype=torch.float64)  # type: ignore[operator]
    return Observation(_numel(states), logits, auxiliary_loss)


def differ(one: torch.Tensor, other: torch.Tensor) -> bool:
    """Return whether two outputs differ by more than rounding; NaN equals NaN."""
    return not torch.allclose(one, other, rtol=0.0, atol=_SMALLEST_CHANGE, equal_nan=True)


def _numel(state: Any) -> int:
    """Return how many numbers a state holds, however it is nested."""
    if isinstance(state, list | tuple):
        return sum(_numel(part) for part in state)
    return 0 if state is None else int(state.numel())
