from typing import Any

import pytest
import torch
from torch import Tensor

from elmanctl.errors import InvalidConfiguration
from elmanctl.models.configs.e75 import E75Config
from elmanctl.models.e75 import E75Layer
from elmanctl.models.params import count_parameters
from elmanctl.models.registry import decode_config
from tests.models.layers import (
    assert_computes,
    assert_every_parameter_is_counted_and_moved,
    assert_fills,
    convolved,
    count,
    is_reached,
    logits,
    randomized,
    silu,
    state_in_bfloat16,
    xavier_bound,
)

BASE: dict[str, Any] = {"dim": 12, "depth": 2, "n_heads": 3, "n_state": 8}

SWITCHES: dict[str, dict[str, Any]] = {
    "plain": {},
    "narrow": {"expansion": 0.5},
    "wide": {"expansion": 1.3},
    "convolution": {"use_conv": True},
    "short convolution": {"use_conv": True, "d_conv": 2},
    "post-convolution": {"post_conv": True},
    "short post-convolution": {"post_conv": True, "d_conv": 3},
}

# Exact counts printed in run logs of the study: level, dim, depth, expansion, parameters.
LOGGED = [
    ("E75h10n32", 1920, 13, 0.9120037467042718, 81_351_360),
    ("E75h11n40", 2048, 23, 0.7039016689903159, 147_517_864),
    ("E75h4n24", 2048, 20, 1.0, 104_116_096),
    ("E75h8n16", 1920, 20, 1.0, 98_838_400),
    ("E75h8n32", 3200, 20, 2.0, 557_947_520),
    ("E75pch4n32", 4352, 20, 2.0, 56_952_064),
    ("E75pch8n24", 4480, 20, 2.0, 87_318_400),
]


def make_config(**changes: Any) -> E75Config:
    return E75Config.decode({**BASE, **changes})


def make_layer(**changes: Any) -> Any:
    return randomized(E75Layer(make_config(**changes), "torch"))


def equations(layer: E75Layer, x: Tensor) -> Tensor:
    """E75 of one sequence [T, dim], head by head, its states value by key."""
    config, weights = layer.config, dict(layer.named_parameters())
    n, width = config.n_state, config.n_heads * config.n_state
    w_k, w_v, w_q, w_beta = weights["cell.weight"].split(width)
    if config.post_conv:
        z = x
        k, v, q = silu(
            convolved(torch.cat((z @ w_k.T, z @ w_v.T, z @ w_q.T), dim=1), weights)
        ).split(width, dim=1)
    else:
        z = x @ weights["inner.weight"].T
        z = silu(convolved(z, weights) if config.use_conv else z)
        k, v, q = z @ w_k.T, z @ w_v.T, z @ w_q.T
    outputs = []
    for head in range(config.n_heads):
        mine = slice(head * n, (head + 1) * n)
        state = torch.zeros(n, n).double()
        rows = []
        for t in range(len(x)):
            beta = torch.sigmoid(w_beta[mine] @ z[t] + weights["decay_bias"][head])
            key = k[t, mine] / (k[t, mine].square().sum().sqrt() + 1e-6)
            delta = v[t, mine] - state @ key
            state = torch.tanh(torch.diag(beta) @ state + torch.outer(delta, key))
            s = state @ q[t, mine]
            rows.append(s * silu(s))
        outputs.append(torch.stack(rows))
    return torch.cat(outputs, dim=1) @ weights["out.weight"].T


@pytest.mark.parametrize("switch", SWITCHES)
def test_layer_computes_its_equations(switch: str) -> None:
    assert_computes(make_layer(**SWITCHES[switch]), equations)


@pytest.mark.parametrize("switch", SWITCHES)
def test_study_computes_what_is_documented(switch: str) -> None:
    documented, study = (
        logits(make_config(**SWITCHES[switch], variant=variant))
        for variant in ("documented", "study-2026-01")
    )
    assert torch.equal(documented, study)


def test_zero_keys_have_a_gradient() -> None:
    layer = make_layer(post_conv=True)
    with torch.no_grad():
        layer.conv.conv.bias.zero_()
    x = torch.zeros(1, 5, 12, dtype=torch.float64, requires_grad=True)
    layer(x)[0].sum().backward()
    assert x.grad is not None and x.grad.isfinite().all()
    assert all(p.grad.isfinite().all() for p in layer.parameters())


@pytest.mark.parametrize("switch", SWITCHES)
def test_every_parameter_is_counted_and_has_a_gradient(switch: str) -> None:
    assert_every_parameter_is_counted_and_moved(make_config(**SWITCHES[switch]))


@pytest.mark.parametrize(
    "change",
    [
        {"dim": 16},
        {"depth": 3},
        {"n_heads": 4},
        {"n_state": 16},
        {"expansion": 1.5},
        {"use_conv": True},
        {"post_conv": True},
    ],
    ids=str,
)
def test_every_setting_reaches_the_model(change: dict[str, Any]) -> None:
    base, changed = make_config(), make_config(**change)
    assert is_reached(base, changed) and count(base) != count(changed)


@pytest.mark.parametrize(("switch", "channels"), [("use_conv", 12), ("post_conv", 3 * 24)])
def test_width_of_the_convolution_is_counted(switch: str, channels: int) -> None:
    three, four = (count(make_config(**{switch: True}, d_conv=width)) for width in (3, 4))
    assert four - three == 2 * channels


@pytest.mark.parametrize(("level", "dim", "depth", "expansion", "logged"), LOGGED)
def test_counts_are_those_of_the_logs(
    level: str, dim: int, depth: int, expansion: float, logged: int
) -> None:
    config = {"dim": dim, "depth": depth, "expansion": expansion}
    assert count_parameters(level, config, "study-2026-01") == logged


@pytest.mark.parametrize("post_conv", [False, True])
def test_weights_start_within_their_bounds(post_conv: bool) -> None:
    layer = E75Layer(
        make_config(dim=64, n_heads=4, n_state=16, post_conv=post_conv, use_conv=not post_conv),
        "torch",
    )
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


@pytest.mark.parametrize(
    ("n_state", "nearest"), [(12, "8 and 16"), (4, "8"), (63, "56 and 64"), (72, "64")]
)
def test_undocumented_size_is_refused_with_the_nearest(n_state: int, nearest: str) -> None:
    with pytest.raises(InvalidConfiguration, match=f"`n_state` is {n_state}") as caught:
        make_config(n_state=n_state)
    assert caught.value.hint == f"nearest: {nearest}"


def test_every_documented_size_runs() -> None:
    for n_state in (8, 16, 24, 32, 40, 48, 56, 64):
        layer = E75Layer(make_config(n_heads=1, n_state=n_state), "torch")
        y, state = layer(torch.randn(1, 3, 12))
        assert y.shape == (1, 3, 12) and state.memory.shape == (1, 1, n_state, n_state)


@pytest.mark.parametrize(
    ("change", "says"),
    [
        ({"use_conv": True, "post_conv": True}, "exclude each other"),
        ({"expansion": 2.0, "post_conv": True}, "no inner projection"),
        ({"expansion": 0.01}, "of dim 12 gives no inner width"),
    ],
    ids=str,
)
def test_settings_that_do_not_go_together_are_refused(change: dict[str, Any], says: str) -> None:
    with pytest.raises(InvalidConfiguration, match=says):
        make_config(**change)


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


@pytest.mark.parametrize("switch", SWITCHES)
def test_state_is_kept_in_float32(switch: str) -> None:
    state = state_in_bfloat16(E75Layer(make_config(**SWITCHES[switch]), "torch"))
    assert state.memory.dtype == torch.float32


def test_flops_are_the_products_of_a_token() -> None:
    # Inner, cell, out and taps twice; 8 for each number of the state.
    plain = 2 * (12 * 12 + 4 * 24 * 12 + 24 * 12) + 8 * 24 * 8
    assert make_config().layer_flops(64) == plain
    assert make_config(use_conv=True).layer_flops(64) == plain + 2 * 4 * 12
    assert make_config(post_conv=True).layer_flops(64) == plain - 2 * 144 + 2 * 4 * 72
