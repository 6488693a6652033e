from functools import partial
from typing import Any

import pytest
import torch

from elmanctl.errors import InvalidConfiguration
from elmanctl.models.registry import decode_config
from tests.models import cases
from tests.models.layers import (
    assert_fills,
    xavier_bound,
)

make_config = partial(cases.make_config, "e75")
make_layer = partial(cases.make_layer, "e75")
new_layer = partial(cases.new_layer, "e75")


def test_zero_keys_have_a_gradient() -> None:
    layer = make_layer(post_conv=True)
    with torch.no_grad():
        layer.conv.conv.bias.zero_()
    x = torch.zeros(1, 5, 12, dtype=torch.float64, requires_grad=True)
    layer(x)[0].sum().backward()
    assert x.grad is not None and x.grad.isfinite().all()
    assert all(p.grad.isfinite().all() for p in layer.parameters())


@pytest.mark.parametrize("post_conv", [False, True])
def test_weights_start_within_their_bounds(post_conv: bool) -> None:
    layer = new_layer(dim=64, n_heads=4, n_state=16, post_conv=post_conv, use_conv=not post_conv)
    weights = dict(layer.named_parameters())
    bounds = {"out.weight": xavier_bound(64, 64), "conv.conv.weight": 0.5, "conv.conv.bias": 0.5}
    if not post_conv:
        bounds["inner.weight"] = xavier_bound(64, 64)
    assert_fills(bounds, weights, 0.9)
    # The part of one head is a matrix of its own only where nothing follows the projection.
    bound = xavier_bound(64, 64 if post_conv else 16)
    for part in weights["cell.weight"].split(16):
        assert 0.95 * bound < part.abs().max() <= bound
    assert torch.equal(weights["decay_bias"], torch.full((4, 16), 2.0))
    assert set(weights) == {*bounds, "cell.weight", "decay_bias"}


def test_every_documented_size_runs() -> None:
    for n_state in (8, 16, 24, 32, 40, 48, 56, 64):
        layer = new_layer(n_heads=1, n_state=n_state)
        y, state = layer(torch.randn(1, 3, 12))
        assert y.shape == (1, 3, 12) and state.memory.shape == (1, 1, n_state, n_state)


def test_level_gives_heads_size_and_form() -> None:
    sizes = {"dim": 16, "depth": 1}
    plain: Any = decode_config("E75h15", sizes)
    assert (plain.n_heads, plain.n_state, plain.post_conv) == (15, 32, False)
    post: Any = decode_config("E75pch4n48", sizes)
    assert (post.n_heads, post.n_state, post.post_conv) == (4, 48, True)
    sized: Any = decode_config("E75h8", {**sizes, "n_state": 64})
    assert sized.n_state == 64
    with pytest.raises(InvalidConfiguration, match="n_state"):
        decode_config("e75", {**sizes, "n_heads": 4})


def test_flops_are_the_products_of_a_token() -> None:
    # Inner, cell, out and taps twice; 8 for each number of the state.
    plain = 2 * (12 * 12 + 4 * 24 * 12 + 24 * 12) + 8 * 24 * 8
    assert make_config().layer_flops(64) == plain
    assert make_config(use_conv=True).layer_flops(64) == plain + 2 * 4 * 12
    assert make_config(post_conv=True).layer_flops(64) == plain - 2 * 144 + 2 * 4 * 72
