from typing import Any

import pytest
import torch
from torch import Tensor

from elmanctl.errors import InvalidConfiguration
from elmanctl.models.configs.e87 import E87Config
from elmanctl.models.e87 import E87Layer
from elmanctl.models.params import count_parameters
from elmanctl.models.registry import decode_config
from tests.models.layers import (
    assert_computes,
    assert_every_parameter_is_counted_and_moved,
    assert_fills,
    build_model,
    convolved,
    count,
    is_reached,
    randomized,
    silu,
    state_in_bfloat16,
    xavier_bound,
)

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


def make_config(**changes: Any) -> E87Config:
    return E87Config.decode({**BASE, **changes})


def make_layer(**changes: Any) -> Any:
    return randomized(E87Layer(make_config(**changes), "torch"))


def inner(layer: E87Layer, x: Tensor) -> Tensor:
    """What the blocks and the router read, of one sequence [T, dim]."""
    config, weights = layer.config, dict(layer.named_parameters())
    z = x @ weights["inner.weight"].T
    return silu(convolved(z, weights) if config.use_conv else z)


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
    assert_computes(make_layer(**SWITCHES[switch], variant=variant), equations)


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
    chosen = layer._select(rho)
    assert torch.equal(chosen, rho >= rho.topk(3).values[:, -1:])
    if variant == "study-2026-01":
        assert torch.equal(layer._write_weights(p, chosen) > 0, chosen & (p > 0))
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
def test_every_parameter_is_counted_and_has_a_gradient(switch: str, variant: str) -> None:
    assert_every_parameter_is_counted_and_moved(make_config(**SWITCHES[switch], variant=variant))


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
    base, changed = make_config(variant=variant), make_config(variant=variant, **change)
    assert is_reached(base, changed)
    assert (count(base) == count(changed)) == ("top_k" in change)


def test_width_of_the_convolution_is_counted() -> None:
    three, four = (count(make_config(use_conv=True, d_conv=width)) for width in (3, 4))
    assert four - three == 2 * 12


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
    bounds = {
        "inner.weight": xavier_bound(64, 64),
        "router.weight": xavier_bound(64, 4),
        "query.weight": xavier_bound(64, 16),
        "out.weight": xavier_bound(16, 64),
        "conv.conv.weight": 0.5,
        "conv.conv.bias": 0.5,
    }
    weights = dict(layer.named_parameters())
    assert_fills(bounds, weights, 0.9)
    # Keys, values and decays of all blocks are a matrix each.
    for third in weights["cell.weight"].split(64):
        assert 0.95 * xavier_bound(64, 64) < third.abs().max() <= xavier_bound(64, 64)
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
        ("87b5k1n24", (5, 1, 24)),
    ],
)
def test_level_gives_blocks_and_their_size(level: str, expected: tuple[int, int, int]) -> None:
    config: Any = decode_config(level, {"dim": 16, "depth": 1})
    assert (config.n_blocks, config.top_k, config.n_state) == expected


@VARIANT
@pytest.mark.parametrize(
    ("level", "spelled"),
    [
        ("87b5k2", "87b5k2n32"),
        ("e87b12k3", "87b12k3n24"),
        ("87b64k8", "87b64k8n16"),
        ("87b1", "87b1k1n32"),
    ],
)
def test_level_with_a_number_of_blocks_that_implies_no_size_needs_one(
    level: str, spelled: str, variant: str
) -> None:
    sizes = {"dim": 16, "depth": 1}
    with pytest.raises(InvalidConfiguration, match="blocks needs a state size") as caught:
        decode_config(level, sizes, variant)
    assert caught.value.hint == f"add it to the level, as in `{spelled}`, or set `n_state`"
    named: Any = decode_config(spelled, sizes, variant)
    assert named.n_blocks >= 1


def test_size_may_stand_beside_a_level_that_has_none() -> None:
    config: Any = decode_config("87b5k2", {"dim": 16, "depth": 1, "n_state": 24})
    assert (config.n_blocks, config.n_state) == (5, 24)


@pytest.mark.parametrize(
    ("change", "says"),
    [
        ({"n_blocks": 4, "n_state": 0}, "n_state=0 is not supported"),
        ({"top_k": 6}, "`top_k` is 6, but there are 5 blocks"),
        ({"n_state": 13}, "nearest supported: 12 and 16"),
        ({"expansion": 0.01}, "of dim 12 gives no inner width"),
    ],
    ids=str,
)
def test_impossible_settings_are_refused(change: dict[str, Any], says: str) -> None:
    with pytest.raises(InvalidConfiguration, match=says):
        make_config(**change)


@VARIANT
@pytest.mark.parametrize("switch", SWITCHES)
def test_state_is_kept_in_float32(switch: str, variant: str) -> None:
    state = state_in_bfloat16(E87Layer(make_config(**SWITCHES[switch], variant=variant), "torch"))
    assert state.memory.dtype == torch.float32


def test_flops_are_the_products_of_a_token() -> None:
    # Matrices twice; for each number of a state 6 to write it, in 2 of the 5 blocks, and 2 to read
    # it, in all; and the weighing of 5 read-outs of 8.
    weights = 12 * 12 + 5 * 12 + 3 * 40 * 12 + 8 * 12 + 8 * 12
    plain = 2 * weights + 6 * 2 * 8 * 8 + 2 * 5 * 8 * 8 + 2 * 40
    assert make_config().layer_flops(64) == plain
    assert make_config(variant="study-2026-01").layer_flops(64) == plain + 3 * 2 * 8 * 8
    assert make_config(top_k=5).layer_flops(64) == plain + 6 * 3 * 8 * 8
    assert make_config(use_conv=True).layer_flops(64) == plain + 2 * 4 * 12
