"""Trial runs of small models: actual parameter counts, and outputs with perturbed parameters."""

from functools import lru_cache
from typing import Any, NamedTuple

import torch

from elmanctl.models.config import FamilyConfig
from elmanctl.models.registry import build_model

# In float64 rounding differences are smaller than this.
_TOLERANCE = 1e-9


class Observation(NamedTuple):
    """State size and outputs of a model run; tensors are float64."""

    state_size: int
    logits: torch.Tensor  # [1, T, 256]
    auxiliary_loss: torch.Tensor


@lru_cache(maxsize=256)
def count_built(config: FamilyConfig, backend: str) -> int:
    """Build a model and return its parameter count."""
    model = build_model(config, seed=0, backend=backend)
    return sum(parameter.numel() for parameter in model.parameters())


@lru_cache(maxsize=256)
def run(config: FamilyConfig, backend: str, tokens: int) -> Observation:
    """Build a model and run it on `tokens` bytes in training mode, with dropout and noise.

    All parameters are perturbed by the same noise, since parameters initialized to zero would mask
    everything upstream of them.
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
    """Whether two outputs differ by more than rounding; NaN equals NaN."""
    return not torch.allclose(one, other, rtol=0.0, atol=_TOLERANCE, equal_nan=True)


def _numel(state: Any) -> int:
    """Return the number of elements of a nested state."""
    if isinstance(state, list | tuple):
        return sum(_numel(part) for part in state)
    return 0 if state is None else int(state.numel())
