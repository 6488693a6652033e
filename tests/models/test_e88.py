import math
from collections.abc import Mapping
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from elmanctl.models.configs.e88 import E88Config
from elmanctl.models.e88 import E88Layer
from tests.models.e88_layers import SWITCHES, layer_with_the_weights_of, make_config, make_layer
from tests.models.layers import (
    assert_autocast_trains,
    assert_computes,
    assert_decay_starts_in_range,
    assert_every_parameter_is_counted_and_moved,
    assert_fills,
    convolved,
    count,
    is_reached,
    selective_decay,
    silu,
    state_in_bfloat16,
    xavier_bound,
)


def equations(layer: E88Layer, x: Tensor) -> Tensor:
    """E88 of one sequence [T, dim], written head by head from its equations."""
    config, weights = layer.config, dict(layer.named_parameters())
    n_heads, n_key, n_value = config.n_heads, config.n_state, config.head_values
    mixed = x @ weights["mixed.weight"].T
    if config.use_conv:
        mixed = convolved(mixed, weights)
    mixed = silu(mixed)
    outputs = []
    for head in range(n_heads):
        start = 2 * n_heads * n_key + head * n_value
        q = mixed[:, head * n_key :][:, :n_key]
        k = mixed[:, (n_heads + head) * n_key :][:, :n_key]
        v = k if config.tie_kv else mixed[:, start : start + n_value]
        q, k = q / q.norm(dim=1, keepdim=True), k / k.norm(dim=1, keepdim=True)
        state = torch.zeros(n_key, n_value).double()
        rows = []
        for t in range(len(x)):
            beta = torch.sigmoid(x[t] @ weights["rate.weight"][head]) if config.write_gate else 1.0
            state = decay(config, weights, head, x[t]) * state + beta * torch.outer(
                k[t], v[t] - state.T @ k[t]
            )
            state = state if config.linear_state else torch.tanh(state)
            o = state.T @ q[t]
            if config.value_residual:
                o = o + weights["skip"][head] * v[t]
            if config.output_norm:
                o = o / torch.sqrt(o.square().mean() + 1e-5) * weights["norm.weight"]
            if config.use_gate:
                g = (weights["gate.weight"] @ x[t])[head * n_value :][:n_value]
                o = o * (g if config.gate_activation == "silu" else 1.0) * torch.sigmoid(g)
            rows.append(o)
        outputs.append(torch.stack(rows))
    return join(config, weights, outputs, x)


def join(
    config: E88Config, weights: Mapping[str, Tensor], outputs: list[Tensor], x: Tensor
) -> Tensor:
    out = weights["out.weight"]
    if config.head_mix == "concat":
        return torch.cat(outputs, dim=1) @ out.T
    if config.head_mix == "per_head":
        n = config.head_values
        return torch.stack(
            [o @ out[:, head * n : (head + 1) * n].T for head, o in enumerate(outputs)]
        ).sum(0)
    shares = torch.ones(len(x), config.n_heads).double()
    if config.head_mix == "weighted_sum":
        shares = weights["head_scores"].exp().expand(len(x), -1)
    if config.head_mix == "input_weighted":
        shares = (x @ weights["head_scores.weight"].T).exp()
    if config.head_mix != "sum":
        shares = shares / shares.sum(dim=1, keepdim=True)
    mixed = [shares[:, head, None] * o for head, o in enumerate(outputs)]
    return torch.stack(mixed).sum(0) @ out.T


def decay(config: E88Config, weights: Mapping[str, Tensor], head: int, x: Tensor) -> Tensor:
    if config.decay == "none":
        return torch.ones(()).double()
    if config.decay == "constant":
        return torch.sigmoid(weights["decay.logit"][head])
    if config.decay == "simple":
        return torch.sigmoid(x @ weights["decay.projection.weight"][head])
    return selective_decay(weights, "decay", head, x)


def new_layer(**changes: Any) -> Any:
    return E88Layer(make_config(**changes), "torch")


@pytest.mark.parametrize("switch", SWITCHES)
def test_layer_computes_its_equations(switch: str) -> None:
    assert_computes(make_layer(**SWITCHES[switch]), equations)


@pytest.mark.parametrize("switch", SWITCHES)
def test_every_parameter_is_counted_and_has_a_gradient(switch: str) -> None:
    assert_every_parameter_is_counted_and_moved(make_config(**SWITCHES[switch]))


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


@pytest.mark.parametrize("change", [{"dim": 16}, {"depth": 3}, {"n_heads": 4}, {"n_state": 8}])
def test_every_size_reaches_the_model(change: dict[str, int]) -> None:
    base, changed = make_config(), make_config(**change)
    assert is_reached(base, changed) and count(base) != count(changed)


def test_convolution_of_another_width_needs_a_convolution() -> None:
    x = torch.randn(2, 20, 12, dtype=torch.float64)
    for use_conv in (False, True):
        base = make_layer(use_conv=use_conv)
        changed = layer_with_the_weights_of(base, use_conv=use_conv, d_conv=3)
        assert torch.equal(base(x)[0], changed(x)[0]) != use_conv


def test_width_of_the_convolution_is_counted() -> None:
    three, four = (count(make_config(use_conv=True, d_conv=width)) for width in (3, 4))
    assert four - three == 2 * 36


def test_projections_start_within_their_xavier_bounds() -> None:
    layer = E88Layer(
        make_config(dim=64, n_heads=4, n_state=16, write_gate=True, use_conv=True), "torch"
    )
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
    sizes = {"dim": 64, "n_heads": 4, "n_state": 16}
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


@pytest.mark.parametrize("switch", SWITCHES)
def test_weights_in_bfloat16_run_and_keep_their_state_in_float32(switch: str) -> None:
    state = state_in_bfloat16(new_layer(**SWITCHES[switch]))
    assert state.memory.dtype == torch.float32


@pytest.mark.parametrize("switch", SWITCHES)
def test_autocast_trains_every_switch(switch: str) -> None:
    assert_autocast_trains(make_config(**SWITCHES[switch]))
