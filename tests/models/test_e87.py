import math
from typing import Any

import pytest
import torch
from torch import Tensor

from elmanctl.errors import InvalidConfiguration
from elmanctl.models.configs.e87 import E87Config
from elmanctl.models.e87 import E87Layer
from elmanctl.models.params import count_parameters, state_size
from elmanctl.models.registry import build_model, decode_config

BASE: dict[str, Any] = {"dim": 12, "depth": 2, "n_blocks": 5, "top_k": 2, "n_state": 8}

VARIANT = pytest.mark.parametrize("variant", ["documented", "study-2026-01"])

SWITCHES: dict[str, dict[str, Any]] = {
    "plain": {},
    "wide": {"expansion": 1.3},
    "convolution": {"use_conv": True},
    "short convolution": {"use_conv": True, "d_conv": 2},
    "one chosen": {"top_k": 1},
    "all chosen": {"top_k": 5},
}


@pytest.fixture(autouse=True)
def equal_draws() -> None:
    torch.manual_seed(0)


def make_config(**changes: Any) -> E87Config:
    return E87Config.decode({**BASE, **changes})


def make_layer(**changes: Any) -> E87Layer:
    """A layer in float64 whose every parameter is random, so that none can hide."""
    layer = E87Layer(make_config(**changes), "torch").double()
    with torch.no_grad():
        for parameter in layer.parameters():
            parameter.add_(0.3 * torch.randn_like(parameter))
    return layer


def silu(x: Tensor) -> Tensor:
    return x / (1 + torch.exp(-x))


def inner(layer: E87Layer, x: Tensor) -> Tensor:
    """What the blocks and the router read, of one sequence [T, dim]."""
    config, weights = layer.config, dict(layer.named_parameters())
    z = x @ weights["inner.weight"].T
    if config.use_conv:
        taps = weights["conv.conv.weight"][:, 0]  # [channels, d_conv], the last one for the present
        padded = torch.cat((torch.zeros(config.d_conv - 1, z.shape[1]).double(), z))
        z = sum(padded[i : i + len(x)] * taps[:, i] for i in range(config.d_conv))
        z = z + weights["conv.conv.bias"]
    return silu(z)


def equations(layer: E87Layer, x: Tensor) -> Tensor:
    """E87 of one sequence [T, dim], block by block, its states value by key."""
    config, weights = layer.config, dict(layer.named_parameters())
    n, blocks = config.n_state, config.n_blocks
    w_k, w_v, w_beta = (w.view(blocks, n, -1) for w in weights["cell.weight"].split(blocks * n))
    states = [torch.zeros(n, n).double() for _ in range(blocks)]
    outputs = []
    for z in inner(layer, x):
        rho = weights["router.weight"] @ z
        p = rho.exp() / rho.exp().sum()
        chosen = sorted(range(blocks), key=lambda i: -rho[i].item())[: config.top_k]
        total = sum(p[i] for i in chosen)
        for i in chosen:
            key = w_k[i] @ z
            key = key / (key.square().sum().sqrt() + 1e-6)
            beta = torch.sigmoid(w_beta[i] @ z + weights["decay_bias"][i])
            delta = w_v[i] @ z - states[i] @ key
            candidate = torch.tanh(torch.diag(beta) @ states[i] + torch.outer(delta, key))
            u = p[i] / (total + 1e-8)
            states[i] = (1 - u) * states[i] + u * candidate if config.is_study else candidate
        q = weights["query.weight"] @ z
        reads = [state @ q for state in states]
        o = sum(p[i] * reads[i] * silu(reads[i]) for i in range(blocks))
        outputs.append(weights["out.weight"] @ o)
    return torch.stack(outputs)


@VARIANT
@pytest.mark.parametrize("switch", SWITCHES)
def test_layer_computes_its_equations(switch: str, variant: str) -> None:
    layer = make_layer(**SWITCHES[switch], variant=variant)
    x = torch.randn(2, 19, 12, dtype=torch.float64)
    y, _ = layer(x)
    for sequence, expected in zip(x, y, strict=True):
        torch.testing.assert_close(equations(layer, sequence), expected, rtol=1e-9, atol=1e-10)


@VARIANT
def test_gradients_are_those_of_the_equations(variant: str) -> None:
    layer = make_layer(variant=variant)
    x = torch.randn(1, 7, 12, dtype=torch.float64)
    layer(x)[0].square().sum().backward()
    ours = {name: p.grad for name, p in layer.named_parameters()}
    layer.zero_grad(set_to_none=True)
    equations(layer, x[0]).square().sum().backward()
    for name, parameter in layer.named_parameters():
        torch.testing.assert_close(ours[name], parameter.grad, rtol=1e-8, atol=1e-10, msg=name)


@VARIANT
def test_blocks_that_are_not_chosen_stay_as_they_were(variant: str) -> None:
    layer = make_layer(variant=variant)
    x = torch.randn(3, 11, 12, dtype=torch.float64)
    _, before = layer(x[:, :-1])
    _, after = layer(x[:, -1:], before)
    rho = torch.stack([layer.router.weight @ inner(layer, row)[-1] for row in x])
    moved = (after.memory != before.memory).flatten(2).any(-1)
    expected = torch.zeros(3, 5, dtype=torch.bool).scatter(1, rho.topk(2).indices, True)
    assert torch.equal(moved, expected)


@VARIANT
def test_blocks_are_chosen_by_score_where_their_probabilities_are_zero(variant: str) -> None:
    layer = make_layer(variant=variant, top_k=3)
    with torch.no_grad():
        layer.router.weight.mul_(1e4)
    x = torch.randn(4, 1, 12, dtype=torch.float64)
    z = torch.stack([inner(layer, row)[0] for row in x])
    rho = z @ layer.router.weight.T
    p = torch.softmax(rho, dim=-1)
    assert ((p == 0).sum(-1) >= 3).any()
    chosen = layer._writes(rho, p) > 0
    if variant == "documented":
        assert torch.equal(chosen, rho >= rho.topk(3).values[:, -1:])
    else:
        assert torch.equal(chosen, (p > 0) & (rho >= rho.topk(3).values[:, -1:]))
    assert layer(x)[0].isfinite().all()


def test_variants_differ_unless_one_block_takes_everything() -> None:
    tokens = torch.randint(256, (1, 20))

    def logits(variant: str, top_k: int) -> Tensor:
        return build_model(make_config(variant=variant, top_k=top_k), seed=0).double()(tokens)[0]

    apart = logits("documented", 2) - logits("study-2026-01", 2)
    assert apart.abs().max() > 1e-4
    # A single chosen block has a share of one, but for the guard.
    torch.testing.assert_close(
        logits("documented", 1), logits("study-2026-01", 1), rtol=0, atol=1e-6
    )
    counts = {
        count_parameters("e87", make_config(variant=variant).encode(), variant)
        for variant in ("documented", "study-2026-01")
    }
    assert len(counts) == 1


@VARIANT
@pytest.mark.parametrize("switch", SWITCHES)
def test_every_parameter_has_a_gradient(switch: str, variant: str) -> None:
    model = build_model(make_config(**SWITCHES[switch], variant=variant), seed=0)
    model.loss(torch.randint(256, (2, 21))).backward()
    for name, parameter in model.named_parameters():
        assert parameter.grad is not None and parameter.grad.abs().max() > 0, name


@VARIANT
@pytest.mark.parametrize(
    "change",
    [
        {"dim": 16},
        {"depth": 3},
        {"n_blocks": 4},
        {"top_k": 3},
        {"n_state": 16},
        {"expansion": 1.5},
        {"use_conv": True},
    ],
    ids=str,
)
def test_every_setting_reaches_the_model(change: dict[str, Any], variant: str) -> None:
    tokens = torch.randint(256, (1, 20))
    configs = make_config(variant=variant), make_config(variant=variant, **change)
    before, after = (build_model(config, seed=0)(tokens)[0] for config in configs)
    assert (before - after).abs().max() > 1e-6
    counts = [count_parameters("e87", config.encode()) for config in configs]
    assert (counts[0] == counts[1]) == ("top_k" in change)


def test_width_of_the_convolution_reaches_the_model() -> None:
    counts = [
        count_parameters("e87", make_config(use_conv=True, d_conv=n).encode()) for n in (3, 4)
    ]
    assert counts[1] - counts[0] == 2 * 12


@pytest.mark.parametrize(
    ("level", "dim", "expected"),
    [
        ("87b4k2", 1408, 52_770_176),
        ("87b8k2", 1280, 49_305_600),
        ("87b4k2n48", 1280, 50_432_000),
        ("87b6k2", 1408, 58_234_496),
    ],
)
def test_counts_of_the_launcher_configurations(level: str, dim: int, expected: int) -> None:
    assert count_parameters(level, {"dim": dim, "depth": 20}) == expected


def test_weights_start_within_their_bounds() -> None:
    layer = E87Layer(make_config(dim=64, n_blocks=4, n_state=16, use_conv=True), "torch")

    def bound(n_in: int, n_out: int) -> float:
        return math.sqrt(6 / (n_in + n_out))

    bounds = {
        "inner.weight": bound(64, 64),
        "router.weight": bound(64, 4),
        "query.weight": bound(64, 16),
        "out.weight": bound(16, 64),
        "conv.conv.weight": 0.5,
        "conv.conv.bias": 0.5,
    }
    weights = dict(layer.named_parameters())
    for name, expected in bounds.items():
        assert 0.9 * expected < weights[name].abs().max() <= expected, name
    # Keys, values and decays of all blocks are a matrix each.
    for third in weights["cell.weight"].split(64):
        assert 0.95 * bound(64, 64) < third.abs().max() <= bound(64, 64)
    assert torch.equal(weights["decay_bias"], torch.full((4, 16), 2.0))
    assert set(weights) == {*bounds, "cell.weight", "decay_bias"}


@pytest.mark.parametrize(
    ("level", "expected"),
    [
        ("87", (4, 2, 32)),
        ("e87", (4, 2, 32)),
        ("87b4k1", (4, 1, 32)),
        ("87b8k3", (8, 3, 24)),
        ("87b4k2n48", (4, 2, 48)),
        ("E87b6k3", (6, 3, 32)),
        ("87b16k4", (16, 4, 16)),
        ("87b32k16", (32, 16, 16)),
        ("87b5k1", (5, 1, 32)),
    ],
)
def test_level_gives_blocks_and_their_size(level: str, expected: tuple[int, int, int]) -> None:
    config = decode_config(level, {"dim": 16, "depth": 1})
    assert (config.n_blocks, config.top_k, config.n_state) == expected


@pytest.mark.parametrize(
    ("change", "says"),
    [
        ({"top_k": 6}, "`top_k` is 6, but there are 5 blocks"),
        ({"n_state": 13}, "nearest supported: 12 and 16"),
        ({"expansion": 0.01}, "leaves nothing of dim 12"),
    ],
    ids=str,
)
def test_impossible_settings_are_refused(change: dict[str, Any], says: str) -> None:
    with pytest.raises(InvalidConfiguration, match=says):
        make_config(**change)


@VARIANT
def test_state_is_kept_in_float32_and_has_its_size(variant: str) -> None:
    for switch in SWITCHES.values():
        config = make_config(**switch, variant=variant)
        layer = E87Layer(config, "torch").bfloat16()
        y, state = layer(torch.randn(2, 5, 12, dtype=torch.bfloat16))
        y, state = layer(torch.randn(2, 5, 12, dtype=torch.bfloat16), state)
        assert y.dtype == torch.bfloat16 and y.isfinite().all()
        assert state.memory.dtype == torch.float32
        assert state.memory[0].numel() == state_size("e87", config.encode())


def test_flops_are_the_products_of_a_token() -> None:
    # Matrices twice, 8 for each number of a state, and the weighing of 5 read-outs of 8.
    weights = 12 * 12 + 5 * 12 + 3 * 40 * 12 + 8 * 12 + 8 * 12
    plain = 2 * weights + 8 * 40 * 8 + 2 * 40
    assert make_config().layer_flops(64) == plain
    assert make_config(variant="study-2026-01").layer_flops(64) == plain + 3 * 40 * 8
    assert make_config(use_conv=True).layer_flops(64) == plain + 2 * 4 * 12
