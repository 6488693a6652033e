"""Activations that are computed again in the backward pass: the same gradients from less memory."""

from typing import Any

import pytest
import torch

from elmanctl.models.config import FamilyConfig
from elmanctl.models.registry import FAMILIES
from tests.models.layers import build_model, saved_bytes
from tests.models.samples import small_config

CHANGES: dict[str, dict[str, Any]] = {
    "transformer": {"dropout": 0.2},
    "mom-e88": {"depth": 2, "balance_weight": 0.5, "router_noise": 0.1},
}


def gradients(config: FamilyConfig, *, is_recomputing: bool) -> tuple[Any, ...]:
    """Return the objectives, the gradients and the buffers after two micro-batches with noise."""
    model = build_model(config, seed=0, backend="torch").train()
    model.is_recomputing = is_recomputing
    torch.manual_seed(5)
    values = []
    for tokens in torch.randint(256, (4, 25), generator=torch.Generator().manual_seed(0)).split(2):
        objective = model.loss(tokens) + model.auxiliary_loss()
        objective.backward()
        values.append(objective.detach())
    return (*values, *(parameter.grad for parameter in model.parameters()), *model.buffers())


@pytest.mark.parametrize("family", FAMILIES)
def test_gradients_are_the_same_to_the_bit(family: str) -> None:
    config = small_config(family, **CHANGES.get(family, {}))
    kept = gradients(config, is_recomputing=False)
    recomputed = gradients(config, is_recomputing=True)
    assert len(kept) > 2 and all(map(torch.equal, kept, recomputed))


@pytest.mark.parametrize("family", FAMILIES)
def test_layers_keep_only_the_residual_stream(family: str) -> None:
    config = small_config(family, **CHANGES.get(family, {}) | {"depth": 4})
    model = build_model(config, seed=0, backend="torch")
    length = 64
    everything = saved_bytes(model, 2, length)
    model.is_recomputing = True
    stream = 4 * config.dim * len(model.layers)
    head = 4 * 256 * 3 + 4 * config.dim * 3
    assert saved_bytes(model, 2, length) <= stream + head < everything


def test_auxiliary_loss_stays_that_of_the_forward_pass() -> None:
    config = small_config("mom-e88", **CHANGES["mom-e88"])
    model = build_model(config, seed=0, backend="torch").train()
    model.is_recomputing = True
    objective = model.loss(torch.randint(256, (2, 25)))
    before = [layer.auxiliary_loss for layer in model.layers]
    (objective + model.auxiliary_loss()).backward()
    # Not a second one, whose graph would hold the activations of the layer.
    after = [layer.auxiliary_loss for layer in model.layers]
    assert all(one is other for one, other in zip(after, before, strict=True))
    model.drop_auxiliary_loss()
    assert model.auxiliary_loss() == 0.0


def test_nothing_is_recomputed_where_there_is_no_backward_pass() -> None:
    config = small_config("transformer", dropout=0.2)
    model = build_model(config, seed=0, backend="torch").eval()
    tokens = torch.randint(256, (2, 25))
    expected = model(tokens)[0]
    model.is_recomputing = True
    assert torch.equal(model(tokens)[0], expected)
