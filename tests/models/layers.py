"""Helpers of the tests of families: random layers, initial ranges, and shared assertions."""

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
    """Return the module in float64 with noise added to every parameter, so that none is zero."""
    module = module.double()
    with torch.no_grad():
        for parameter in module.parameters():
            parameter.add_(scale * torch.randn_like(parameter))
    return module


def build_model(config: FamilyConfig, **options: Any) -> Any:
    """Build the model of a configuration, untyped, since torch does not type submodules."""
    return registry.build_model(config, **options)


def xavier_bound(n_in: int, n_out: int) -> float:
    return math.sqrt(6 / (n_in + n_out))


def assert_fills(bounds: Mapping[str, float], weights: Mapping[str, Tensor], share: float) -> None:
    """Assert that the largest entry of each weight is within its bound and over `share` of it."""
    for name, bound in bounds.items():
        assert share * bound < weights[name].abs().max() <= bound, name


def assert_decay_starts_in_range(decay: Any, max_rate: float = 16.0, max_step: float = 0.1) -> None:
    """Assert that the rates of many heads fill 0 to max_rate, and the steps 0.001 to max_step."""
    rate, step = decay.log_rate.exp(), F.softplus(decay.step_bias)
    assert 0 < rate.min() < max_rate / 160
    assert 0.993 * max_rate < rate.max() <= max_rate * (1 + 1e-6)
    assert 0.999e-3 <= step.min() < 1.1e-3
    assert 0.9 * max_step < step.max() <= max_step * (1 + 1e-5)


def count(config: FamilyConfig) -> int:
    """Return the parameter count of a model by the formula of its family."""
    return count_parameters(config.level, config.encode())


def logits(config: FamilyConfig) -> Tensor:
    """Return the logits of a new model for the same twenty bytes."""
    tokens = torch.randint(256, (1, 20), generator=torch.Generator().manual_seed(0))
    found: Tensor = build_model(config, seed=0, backend="torch").eval()(tokens)[0]
    return found


def is_reached(base: FamilyConfig, changed: FamilyConfig) -> bool:
    """Whether new models of two configurations compute different logits."""
    return bool((logits(base) - logits(changed)).abs().max() > 1e-6)


def assert_every_parameter_is_counted_and_moved(config: FamilyConfig) -> None:
    """Assert that the count of a new model is exact and that each parameter gets a gradient."""
    model = build_model(config, seed=0, backend="torch")
    model.loss(torch.randint(256, (2, 21))).backward()
    for name, parameter in model.named_parameters():
        assert parameter.grad is not None and parameter.grad.abs().max() > 0, name
    assert count(config) == sum(p.numel() for p in model.parameters())


def saved_bytes(model: Any, batch: int, length: int) -> float:
    """Return the bytes per token that a forward pass saves, counting each storage once."""
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
    """Run a layer with bfloat16 weights on two pieces; return the state after the second."""
    layer, state = layer.bfloat16(), None
    for _ in range(2):
        y, state = layer(torch.randn(2, 5, layer.config.dim, dtype=torch.bfloat16), state)
        assert y.dtype == torch.bfloat16 and y.isfinite().all()
    return state


def assert_autocast_trains(config: FamilyConfig) -> None:
    """Assert that autocast barely changes the loss of a model and keeps its gradients finite."""
    model = build_model(config, seed=0, backend="torch")
    tokens = torch.randint(256, (2, 41))
    exact = (model.loss(tokens) + model.auxiliary_loss()).item()
    with torch.autocast("cpu", dtype=torch.bfloat16):
        loss = model.loss(tokens)
    objective = loss + model.auxiliary_loss()
    objective.backward()
    assert objective.item() == pytest.approx(exact, rel=0.01)
    assert all(p.grad is not None and p.grad.isfinite().all() for p in model.parameters())
