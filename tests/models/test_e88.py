import math
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from elmanctl.models.configs.e88 import E88Config
from elmanctl.models.e88 import E88Layer
from elmanctl.models.params import count_parameters
from elmanctl.models.registry import build_model

BASE: dict[str, Any] = {"dim": 12, "depth": 2, "n_heads": 3, "n_state": 4}

SWITCHES: dict[str, dict[str, Any]] = {
    "plain": {},
    "wide values": {"expansion": 1.5},
    "no gate": {"use_gate": False},
    "sigmoid gate": {"gate_activation": "sigmoid"},
    "simple decay": {"decay": "simple"},
    "no decay": {"decay": "none"},
    "constant decay": {"decay": "constant"},
    "linear state": {"linear_state": True},
    "write gate": {"write_gate": True},
    "convolution": {"use_conv": True},
    "short convolution": {"use_conv": True, "d_conv": 2},
    "output norm": {"output_norm": True},
    "value residual": {"value_residual": True},
    "tied keys and values": {"tie_kv": True},
    "tied with convolution": {"tie_kv": True, "use_conv": True, "value_residual": True},
    "all additions": {
        "expansion": 1.5,
        "write_gate": True,
        "use_conv": True,
        "output_norm": True,
        "value_residual": True,
    },
}


@pytest.fixture(autouse=True)
def equal_draws() -> None:
    torch.manual_seed(0)


def make_config(**changes: Any) -> E88Config:
    return E88Config.decode({**BASE, **changes})


def make_layer(**changes: Any) -> E88Layer:
    """A layer in float64 whose every parameter is random, so that none can hide."""
    layer = E88Layer(make_config(**changes), "torch").double()
    with torch.no_grad():
        for parameter in layer.parameters():
            parameter.add_(0.3 * torch.randn_like(parameter))
    return layer


def equations(layer: E88Layer, x: Tensor) -> Tensor:
    """E88 of one sequence [T, dim], written head by head from its equations."""
    config, weights = layer.config, dict(layer.named_parameters())
    n_heads, n_key, n_value = config.n_heads, config.n_state, config.head_values
    mixed = x @ weights["mixed.weight"].T
    if config.use_conv:
        taps = weights["conv.conv.weight"][:, 0]  # [channels, d_conv], the last one for the present
        padded = torch.cat((torch.zeros(config.d_conv - 1, mixed.shape[1]).double(), mixed))
        mixed = sum(padded[i : i + len(x)] * taps[:, i] for i in range(config.d_conv))
    mixed = mixed * torch.sigmoid(mixed)
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
    return torch.cat(outputs, dim=1) @ weights["out.weight"].T


def decay(config: E88Config, weights: dict[str, Tensor], head: int, x: Tensor) -> Tensor:
    if config.decay == "none":
        return torch.ones(()).double()
    if config.decay == "constant":
        return torch.sigmoid(weights["decay.logit"][head])
    score = x @ weights["decay.projection.weight"][head]
    if config.decay == "simple":
        return torch.sigmoid(score)
    step = torch.log1p(torch.exp(score + weights["decay.step_bias"][head]))
    return torch.exp(-torch.exp(weights["decay.log_rate"][head]) * step)


@pytest.mark.parametrize("switch", SWITCHES)
def test_layer_computes_its_equations(switch: str) -> None:
    layer = make_layer(**SWITCHES[switch])
    x = torch.randn(2, 19, 12, dtype=torch.float64)
    y, _ = layer(x)
    for sequence, expected in zip(x, y, strict=True):
        torch.testing.assert_close(equations(layer, sequence), expected, rtol=1e-9, atol=1e-10)


@pytest.mark.parametrize("switch", SWITCHES)
def test_every_parameter_has_a_gradient(switch: str) -> None:
    model = build_model(make_config(**SWITCHES[switch]), seed=0)
    model.loss(torch.randint(256, (2, 21))).backward()
    for name, parameter in model.named_parameters():
        assert parameter.grad is not None and parameter.grad.abs().max() > 0, name


@pytest.mark.parametrize(
    "change",
    [change for change in SWITCHES.values() if len(change) == 1]
    + [{"dim": 16}, {"depth": 3}, {"n_heads": 4}, {"n_state": 8}],
    ids=str,
)
def test_every_switch_reaches_the_model(change: dict[str, Any]) -> None:
    tokens = torch.randint(256, (1, 20))
    (base, before), (changed, after) = (
        (config, build_model(config, seed=0)(tokens)[0])
        for config in (make_config(), make_config(**change))
    )
    assert (before - after).abs().max() > 1e-6
    counts = [count_parameters("e88", config.encode()) for config in (base, changed)]
    without_parameters = {"gate_activation", "linear_state"}
    assert (counts[0] == counts[1]) == bool(without_parameters & set(change))


def test_width_of_the_convolution_reaches_the_model() -> None:
    counts = [
        count_parameters("e88", make_config(use_conv=True, d_conv=n).encode()) for n in (3, 4)
    ]
    assert counts[1] - counts[0] == 2 * 36


def xavier_bound(n_in: int, n_out: int) -> float:
    return math.sqrt(6 / (n_in + n_out))


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
    for name, bound in bounds.items():
        assert 0.95 * bound < weights[name].abs().max() <= bound, name


def test_decay_starts_in_the_range_of_the_study() -> None:
    layer = E88Layer(make_config(n_heads=2000), "torch")
    rate = layer.decay.log_rate.exp()
    step = F.softplus(layer.decay.step_bias)
    assert 0 < rate.min() < 0.1 and 15.9 < rate.max() <= 16.0 * (1 + 1e-6)
    assert 1e-3 * (1 - 1e-3) <= step.min() < 1.1e-3 and 0.09 < step.max() <= 0.1 * (1 + 1e-5)
    assert step.log().mean().item() == pytest.approx(math.log(1e-2), abs=0.1)
    constant = E88Layer(make_config(decay="constant"), "torch").decay
    assert torch.equal(constant.logit, torch.full((3,), 4.0))


def test_value_residual_and_norm_start_at_one() -> None:
    layer = E88Layer(make_config(value_residual=True, output_norm=True), "torch")
    assert torch.equal(layer.skip, torch.ones(3, 4))
    assert torch.equal(layer.norm.weight, torch.ones(4))


@pytest.mark.parametrize("kind", ["mamba", "simple", "constant", "none"])
def test_decay_is_float32_whatever_the_weights_are(kind: str) -> None:
    layer = E88Layer(make_config(decay=kind), "torch").bfloat16()
    alpha = layer.decay(torch.randn(2, 5, 12, dtype=torch.bfloat16))
    assert alpha.dtype == torch.float32 and alpha.shape == (2, 5, 3)
    assert alpha.min() > 0 and alpha.max() <= 1


def test_decay_between_the_last_bfloat16_and_one_is_kept() -> None:
    layer = E88Layer(make_config(), "torch").bfloat16()
    with torch.no_grad():
        layer.decay.log_rate.fill_(-1.0)
        layer.decay.step_bias.fill_(-6.0)
    alpha = layer.decay(torch.zeros(1, 1, 12, dtype=torch.bfloat16))
    assert (alpha > 0.99610).all() and (alpha < 1).all()
    assert (alpha.bfloat16() == 1).all()


@pytest.mark.parametrize("switch", SWITCHES)
def test_weights_in_bfloat16_run_and_keep_their_state_in_float32(switch: str) -> None:
    layer = E88Layer(make_config(**SWITCHES[switch]), "torch").bfloat16()
    y, state = layer(torch.randn(2, 5, 12, dtype=torch.bfloat16))
    y, state = layer(torch.randn(2, 5, 12, dtype=torch.bfloat16), state)
    assert y.dtype == torch.bfloat16 and y.isfinite().all()
    assert state.memory.dtype == torch.float32


@pytest.mark.parametrize("switch", SWITCHES)
def test_autocast_trains_every_switch(switch: str) -> None:
    model = build_model(make_config(**SWITCHES[switch]), seed=0)
    tokens = torch.randint(256, (2, 21))
    exact = model.loss(tokens).item()
    with torch.autocast("cpu", dtype=torch.bfloat16):
        loss = model.loss(tokens)
    loss.backward()
    assert loss.item() == pytest.approx(exact, rel=0.01)
    assert all(p.grad is not None and p.grad.isfinite().all() for p in model.parameters())
