import math
from functools import partial
from typing import Any

import pytest
import torch
import torch.nn.functional as F

from elmanctl.models.e88 import E88Layer
from tests.models import cases
from tests.models.e88_layers import SWITCHES, layer_with_the_weights_of, make_config, make_layer
from tests.models.layers import (
    assert_decay_starts_in_range,
    assert_fills,
    xavier_bound,
)

new_layer = partial(cases.new_layer, "e88")


def shapes(layer: E88Layer) -> dict[str, torch.Size]:
    return {name: p.shape for name, p in layer.named_parameters()}


@pytest.mark.parametrize("change", [c for c in SWITCHES.values() if len(c) == 1], ids=str)
def test_every_switch_alone_changes_what_equal_weights_compute(change: dict[str, Any]) -> None:
    base = make_layer()
    changed = layer_with_the_weights_of(base, **change)
    x = torch.randn(2, 20, 12, dtype=torch.float64)
    difference = (base(x)[0] - changed(x)[0]).abs().max()
    if change == {"head_mix": "per_head"}:
        assert difference < 1e-12 and shapes(base) == shapes(changed)
    else:
        assert difference > 1e-3
    counts = [layer.config.layer_parameters() for layer in (base, changed)]
    assert [sum(p.numel() for p in layer.parameters()) for layer in (base, changed)] == counts
    without_parameters = {"gate_activation", "linear_state"}
    if not without_parameters & set(change) and change != {"head_mix": "per_head"}:
        assert counts[0] != counts[1]


def test_convolution_of_another_width_needs_a_convolution() -> None:
    x = torch.randn(2, 20, 12, dtype=torch.float64)
    for use_conv in (False, True):
        base = make_layer(use_conv=use_conv)
        changed = layer_with_the_weights_of(base, use_conv=use_conv, d_conv=3)
        assert torch.equal(base(x)[0], changed(x)[0]) != use_conv


def test_projections_start_within_their_xavier_bounds() -> None:
    layer = new_layer(dim=64, n_heads=4, n_state=16, write_gate=True, use_conv=True)
    bounds = {
        "mixed.weight": xavier_bound(64, 3 * 64),
        "gate.weight": xavier_bound(64, 64),
        "out.weight": xavier_bound(64, 64),
        "decay.projection.weight": xavier_bound(64, 4),
        "rate.weight": 1 / math.sqrt(64),
        "conv.conv.weight": 1 / math.sqrt(4),
    }
    weights = dict(layer.named_parameters())
    assert set(weights) == {*bounds, "decay.log_rate", "decay.step_bias"}
    assert_fills(bounds, weights, 0.95)


def test_matrix_of_each_head_starts_within_its_own_bound() -> None:
    sizes: dict[str, Any] = {"dim": 64, "n_heads": 4, "n_state": 16}
    for mix, bound in {
        "concat": xavier_bound(64, 64),
        "per_head": xavier_bound(16, 64),
        "sum": xavier_bound(16, 64),
        "weighted_sum": xavier_bound(16, 64),
        "input_weighted": xavier_bound(16, 64),
    }.items():
        weight = new_layer(**sizes, head_mix=mix).out.weight
        heads = weight.split(16, dim=1) if mix == "per_head" else [weight]
        assert all(0.95 * bound < head.abs().max() <= bound for head in heads), mix
        assert len({head.sum().item() for head in heads}) == len(heads), mix


def test_weights_of_the_heads_start_equal_or_as_torch_draws_them() -> None:
    layer = new_layer(head_mix="weighted_sum")
    assert torch.equal(layer.head_scores, torch.full((3,), 1 / 3))
    scores = new_layer(dim=64, n_heads=64, head_mix="input_weighted")
    largest = scores.head_scores.weight.abs().max()
    assert 0.95 / math.sqrt(64) < largest <= 1 / math.sqrt(64)


MIX_COSTS = {
    # Parameters and FLOPs of the way out, for 3 heads of 4 values in a model of width 12.
    "concat": (144, 2 * 144),
    "per_head": (144, 2 * 144),
    "sum": (48, 2 * 48 + 12),
    "weighted_sum": (48 + 3, 2 * (48 + 12)),
    "input_weighted": (48 + 36, 2 * (48 + 36 + 12)),
}


@pytest.mark.parametrize("mix", MIX_COSTS)
def test_sizes_of_a_head_mix_are_exact(mix: str) -> None:
    config = make_config(head_mix=mix)
    rest_of_layer = 12 * 36 + 144 + 12 * 3 + 2 * 3
    products = 2 * (12 * 36 + 144 + 12 * 3)
    recurrence = 8 * 3 * 4 * 4
    assert config.layer_parameters() == rest_of_layer + MIX_COSTS[mix][0]
    assert config.layer_flops(64) == products + recurrence + MIX_COSTS[mix][1]


def test_decay_starts_in_the_range_of_the_study() -> None:
    decay = new_layer(n_heads=2000).decay
    assert_decay_starts_in_range(decay)
    assert F.softplus(decay.step_bias).log().mean().item() == pytest.approx(math.log(1e-2), abs=0.1)
    constant = new_layer(decay="constant").decay
    assert torch.equal(constant.logit, torch.full((3,), 4.0))


def test_value_residual_and_norm_start_at_one() -> None:
    layer = new_layer(value_residual=True, output_norm=True)
    assert torch.equal(layer.skip, torch.ones(3, 4))
    assert torch.equal(layer.norm.weight, torch.ones(4))


@pytest.mark.parametrize("kind", ["mamba", "simple", "constant", "none"])
def test_decay_is_float32_whatever_the_weights_are(kind: str) -> None:
    layer = new_layer(decay=kind).bfloat16()
    alpha = layer.decay(torch.randn(2, 5, 12, dtype=torch.bfloat16))
    assert alpha.dtype == torch.float32 and alpha.shape == (2, 5, 3)
    assert alpha.min() > 0 and alpha.max() <= 1


def test_decay_between_the_last_bfloat16_and_one_is_kept() -> None:
    layer = new_layer().bfloat16()
    with torch.no_grad():
        layer.decay.log_rate.fill_(-1.0)
        layer.decay.step_bias.fill_(-6.0)
    alpha = layer.decay(torch.zeros(1, 1, 12, dtype=torch.bfloat16))
    assert (alpha > 0.99610).all() and (alpha < 1).all()
    assert (alpha.bfloat16() == 1).all()
