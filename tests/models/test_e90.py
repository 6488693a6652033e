import math
from typing import Any

import pytest
import torch
from torch import Tensor

from elmanctl.errors import InvalidConfiguration
from elmanctl.models.configs.e90 import E90Config
from elmanctl.models.e90 import E90Layer
from elmanctl.models.params import count_parameters
from tests.models.layers import (
    assert_autocast_trains,
    assert_computes,
    assert_decay_starts_in_range,
    assert_every_parameter_is_counted_and_moved,
    assert_fills,
    is_reached,
    logits,
    randomized,
    selective_decay,
    silu,
    state_in_bfloat16,
    xavier_bound,
)

BASE: dict[str, Any] = {"dim": 12, "depth": 2, "n_heads": 3, "k_fast": 4, "k_slow": 8}

SWITCHES: dict[str, dict[str, Any]] = {
    "plain": {},
    "wide values": {"expansion": 1.5},
    "few values": {"expansion": 0.25},
    "fast state the wider": {"k_fast": 12},
    "equal states": {"k_fast": 8},
    "no gate": {"use_gate": False},
    "sigmoid gate": {"gate_activation": "sigmoid"},
    "study, values cut down": {"variant": "study-2026-01", "expansion": 1.2},
}


def make_config(**changes: Any) -> E90Config:
    return E90Config.decode({**BASE, **changes})


def make_layer(**changes: Any) -> Any:
    return randomized(E90Layer(make_config(**changes), "torch"))


def equations(layer: E90Layer, x: Tensor) -> Tensor:
    """E90 of one sequence [T, dim], written head by head from its equations."""
    config, weights = layer.config, dict(layer.named_parameters())
    n_heads, width = config.n_heads, max(config.v_fast, config.v_slow)
    outputs = []
    for head in range(n_heads):
        fast, slow = (read_outs(layer, which, head, x) for which in ("fast", "slow"))
        rows = []
        for t in range(len(x)):
            shares = weights["mix.weight"] @ x[t] + weights["mix.bias"]
            to_fast, to_slow = torch.exp(shares[2 * head]), torch.exp(shares[2 * head + 1])
            o = torch.zeros(width).double()
            o[: config.v_fast] += to_fast / (to_fast + to_slow) * fast[t]
            o[: config.v_slow] += to_slow / (to_fast + to_slow) * slow[t]
            if config.use_gate:
                g = (weights["gate.weight"] @ x[t])[head * width :][:width]
                o = o * (g if config.gate_activation == "silu" else 1.0) * torch.sigmoid(g)
            rows.append(o)
        outputs.append(torch.stack(rows))
    return torch.cat(outputs, dim=1) @ weights["out.weight"].T


def read_outs(layer: E90Layer, which: str, head: int, x: Tensor) -> list[Tensor]:
    """What one state of one head reads at each position."""
    weights, n_heads = dict(layer.named_parameters()), layer.config.n_heads
    n_key, n_value = (getattr(layer.config, f"{kind}_{which}") for kind in "kv")
    mixed = silu(x @ weights[f"{which}.weight"].T)
    q = mixed[:, head * n_key :][:, :n_key]
    k = mixed[:, (n_heads + head) * n_key :][:, :n_key]
    v = mixed[:, 2 * n_heads * n_key + head * n_value :][:, :n_value]
    q, k = q / q.norm(dim=1, keepdim=True), k / k.norm(dim=1, keepdim=True)
    state, reads = torch.zeros(n_key, n_value).double(), []
    for t in range(len(x)):
        alpha = selective_decay(weights, f"{which}_decay", head, x[t])
        rate = torch.ones(()).double()
        if which == "slow":
            rate = torch.sigmoid(x[t] @ weights["rate.weight"][head] + weights["rate.bias"][head])
        delta = v[t] - state.T @ k[t]
        state = torch.tanh(alpha * state + rate * torch.outer(k[t], delta))
        reads.append(state.T @ q[t])
    return reads


@pytest.mark.parametrize("switch", SWITCHES)
def test_layer_computes_its_equations(switch: str) -> None:
    assert_computes(make_layer(**SWITCHES[switch]), equations)


@pytest.mark.parametrize("switch", SWITCHES)
def test_every_parameter_is_counted_and_has_a_gradient(switch: str) -> None:
    assert_every_parameter_is_counted_and_moved(make_config(**SWITCHES[switch]))


@pytest.mark.parametrize(
    "change",
    [
        *({"dim": 16}, {"depth": 3}, {"n_heads": 4}, {"k_fast": 12}, {"k_slow": 16}),
        *({"expansion": 0.5}, {"use_gate": False}, {"gate_activation": "sigmoid"}),
    ],
    ids=str,
)
def test_every_setting_reaches_the_model(change: dict[str, Any]) -> None:
    assert is_reached(make_config(), make_config(**change))


@pytest.mark.parametrize(
    ("dim", "depth", "n_heads", "k_fast", "k_slow", "count"),
    [
        (384, 30, 105, 24, 64, 480_343_458),
        (1920, 12, 59, 16, 64, 507_562_716),
        (2560, 14, 93, 8, 24, 497_337_754),
        (3200, 13, 111, 8, 16, 504_192_501),
        (6912, 15, 32, 8, 24, 496_229_664),
    ],
)
@pytest.mark.parametrize("variant", ["documented", "study-2026-01"])
def test_counts_are_those_of_the_study(
    variant: str, dim: int, depth: int, n_heads: int, k_fast: int, k_slow: int, count: int
) -> None:
    config = {"dim": dim, "depth": depth, "n_heads": n_heads, "k_fast": k_fast, "k_slow": k_slow}
    assert count_parameters("e90", config, variant) == count


def test_both_variants_compute_the_same_where_values_are_whole() -> None:
    documented, study = (
        logits(make_config(variant=variant)) for variant in ("documented", "study-2026-01")
    )
    assert torch.equal(documented, study)


def test_study_cuts_values_down() -> None:
    config = make_config(variant="study-2026-01", k_fast=8, k_slow=12, expansion=1.2)
    assert (config.v_fast, config.v_slow) == (9, 14)
    rounded = {"k_fast": 24, "k_slow": 24, "expansion": 1.04166666}  # 25/24, nearly
    assert make_config(**rounded).v_fast == 25
    assert make_config(variant="study-2026-01", **rounded).v_fast == 24


@pytest.mark.parametrize(
    ("changes", "said", "hint"),
    [
        ({"expansion": 1.1}, r"`expansion` 1.1 of `k_fast` 4 gives 4.4", "are 1.0 and 1.25"),
        (
            {"k_fast": 8, "k_slow": 12, "expansion": 1.125},
            "of `k_slow` 12 gives 13.5",
            "are 1.0 and 1.25",
        ),
        ({"expansion": 0.0}, "gives 0 values", "are 0.25"),
        ({"variant": "study-2026-01", "expansion": 0.2}, "gives 0.8 values", "are 0.25"),
        ({"k_fast": 5}, "`k_fast`: n_state=5 is not supported", None),
        ({"k_slow": 70}, "`k_slow`: n_state=70 is not supported.*64 and 72", None),
        ({"gate_activation": "tanh"}, "`gate_activation` is 'tanh'", None),
    ],
)
def test_what_cannot_be_built_is_refused(
    changes: dict[str, Any], said: str, hint: str | None
) -> None:
    with pytest.raises(InvalidConfiguration, match=said) as caught:
        make_config(**changes)
    assert hint is None or hint in str(caught.value.hint)


def test_refused_expansion_fits_as_its_hint_says() -> None:
    assert make_config(k_fast=8, k_slow=12, expansion=1.25).v_slow == 15


def test_projections_start_as_in_the_study() -> None:
    layer = E90Layer(make_config(dim=64, n_heads=16, k_fast=8, k_slow=16), "torch")
    default = 1 / math.sqrt(64)
    bounds = {
        "fast.weight": xavier_bound(64, 16 * 24),
        "gate.weight": xavier_bound(64, 256),
        "out.weight": xavier_bound(64, 256),
        "fast_decay.projection.weight": xavier_bound(64, 16),
        "slow.weight": default,
        "slow_decay.projection.weight": default,
        "rate.weight": default,
        "mix.weight": default,
    }
    weights = dict(layer.named_parameters())
    ranges = {f"{which}_decay.{name}" for which in ("fast", "slow") for name in RANGE_NAMES}
    assert set(weights) == {*bounds, *ranges, "rate.bias", "mix.bias"}
    assert_fills(bounds, weights, 0.98)
    assert torch.equal(layer.rate.bias, torch.full((16,), -2.0))
    assert 0.7 * default < layer.mix.bias.abs().max() <= default


RANGE_NAMES = ("log_rate", "step_bias")


@pytest.mark.parametrize(
    ("which", "max_rate", "max_step"), [("fast_decay", 16.0, 0.1), ("slow_decay", 4.0, 0.01)]
)
def test_decay_starts_in_the_range_of_the_study(
    which: str, max_rate: float, max_step: float
) -> None:
    layer = E90Layer(make_config(n_heads=2000), "torch")
    assert_decay_starts_in_range(getattr(layer, which), max_rate, max_step)


@pytest.mark.parametrize("switch", SWITCHES)
def test_weights_in_bfloat16_run_and_keep_their_states_in_float32(switch: str) -> None:
    state = state_in_bfloat16(E90Layer(make_config(**SWITCHES[switch]), "torch"))
    assert state.fast.dtype == state.slow.dtype == torch.float32


@pytest.mark.parametrize("switch", SWITCHES)
def test_autocast_trains_every_switch(switch: str) -> None:
    assert_autocast_trains(make_config(**SWITCHES[switch]))


def test_flops_are_those_of_the_products() -> None:
    config = make_config()
    # Heads 3 of dim 12: matrices, then reads and writes of both states and their mix.
    matrices = 12 * 3 * (3 * 4 + 3 * 8) + 12 * 3 * 8 * 2 + 12 * 3 * 5
    states = 3 * (4 * 4 + 8 * 8)
    assert config.layer_state_size(100) == states
    assert config.layer_flops(100) == 2 * matrices + 8 * states + 2 * 3 * (4 + 8)
