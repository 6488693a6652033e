"""What the tests of single families share: parts of their equations, and what all must keep to."""

import math
from collections.abc import Mapping
from typing import Any, TypeVar

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from elmanctl.models import registry
from elmanctl.models.config import FamilyConfig
from elmanctl.models.params import count_parameters

Module = TypeVar("Module", bound=nn.Module)


def randomized(module: Module, scale: float = 0.3) -> Module:
    """The module in float64 whose every parameter is random, so that none can hide."""
    module = module.double()
    with torch.no_grad():
        for parameter in module.parameters():
            parameter.add_(scale * torch.randn_like(parameter))
    return module


def build_model(config: FamilyConfig, **options: Any) -> Any:
    """The model of a configuration, untyped: torch knows no types of what modules hold."""
    return registry.build_model(config, **options)


def xavier_bound(n_in: int, n_out: int) -> float:
    return math.sqrt(6 / (n_in + n_out))


def assert_fills(bounds: Mapping[str, float], weights: Mapping[str, Tensor], share: float) -> None:
    """The largest entry of each weight is within its bound and over that share of it."""
    for name, bound in bounds.items():
        assert share * bound < weights[name].abs().max() <= bound, name


def assert_decay_starts_in_range(decay: Any, max_rate: float = 16.0, max_step: float = 0.1) -> None:
    """Rates of many heads fill 0 to max_rate, steps 0.001 to max_step."""
    rate, step = decay.log_rate.exp(), F.softplus(decay.step_bias)
    assert 0 < rate.min() < max_rate / 160
    assert 0.993 * max_rate < rate.max() <= max_rate * (1 + 1e-6)
    assert 0.999e-3 <= step.min() < 1.1e-3
    assert 0.9 * max_step < step.max() <= max_step * (1 + 1e-5)


def count(config: FamilyConfig) -> int:
    """The parameters of a model, as the formula of its family has them."""
    return count_parameters(config.level, config.encode())


def logits(config: FamilyConfig) -> Tensor:
    """What a new model says to the same twenty bytes, whatever its configuration."""
    tokens = torch.randint(256, (1, 20), generator=torch.Generator().manual_seed(0))
    found: Tensor = build_model(config, seed=0, backend="torch").eval()(tokens)[0]
    return found


def is_reached(base: FamilyConfig, changed: FamilyConfig) -> bool:
    """Whether what sets two configurations apart reaches what new models compute."""
    return bool((logits(base) - logits(changed)).abs().max() > 1e-6)


def assert_every_parameter_is_counted_and_moved(config: FamilyConfig) -> None:
    """A new model has as many parameters as the formula says, and the loss moves each tensor."""
    model = build_model(config, seed=0, backend="torch")
    model.loss(torch.randint(256, (2, 21))).backward()
    for name, parameter in model.named_parameters():
        assert parameter.grad is not None and parameter.grad.abs().max() > 0, name
    assert count(config) == sum(p.numel() for p in model.parameters())


def saved_bytes(model: Any, batch: int, length: int) -> float:
    """What a forward pass saves for the backward pass, in bytes a token, each storage once."""
    model = model.train()
    known = {parameter.untyped_storage().data_ptr() for parameter in model.parameters()}
    storages: dict[int, int] = {}

    def keep(tensor: Tensor) -> Tensor:
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in known:
            storages[storage.data_ptr()] = storage.nbytes()
        return tensor

    tokens = torch.randint(256, (batch, length + 1), generator=torch.Generator().manual_seed(1))
    tokens = tokens.to(next(model.parameters()).device)
    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        # The graph holds what was saved: no storage may be given to another tensor meanwhile.
        objective = model.loss(tokens) + model.auxiliary_loss()
    assert objective.requires_grad
    return sum(storages.values()) / (batch * length)


def state_in_bfloat16(layer: Any) -> Any:
    """The state after two pieces with weights in bfloat16, whose output is in bfloat16 too."""
    layer, state = layer.bfloat16(), None
    for _ in range(2):
        y, state = layer(torch.randn(2, 5, layer.config.dim, dtype=torch.bfloat16), state)
        assert y.dtype == torch.bfloat16 and y.isfinite().all()
    return state


def assert_autocast_trains(config: FamilyConfig) -> None:
    """Under autocast a model has nearly the loss that it has in float32, and finite gradients."""
    model = build_model(config, seed=0, backend="torch")
    tokens = torch.randint(256, (2, 41))
    exact = (model.loss(tokens) + model.auxiliary_loss()).item()
    with torch.autocast("cpu", dtype=torch.bfloat16):
        loss = model.loss(tokens)
    objective = loss + model.auxiliary_loss()
    objective.backward()
    assert objective.item() == pytest.approx(exact, rel=0.01)
    assert all(p.grad is not None and p.grad.isfinite().all() for p in model.parameters())
