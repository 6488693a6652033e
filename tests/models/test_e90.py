import math
from functools import partial

import pytest
import torch

from tests.models import cases
from tests.models.layers import (
    assert_decay_starts_in_range,
    assert_fills,
    xavier_bound,
)

make_config = partial(cases.make_config, "e90")


def test_study_cuts_values_down() -> None:
    config = make_config(variant="study-2026-01", k_fast=8, k_slow=12, expansion=1.2)
    assert (config.v_fast, config.v_slow) == (9, 14)
    rounded = {"k_fast": 24, "k_slow": 24, "expansion": 1.04166666}  # 25/24, nearly
    assert make_config(**rounded).v_fast == 25
    assert make_config(variant="study-2026-01", **rounded).v_fast == 24


def test_refused_expansion_fits_as_its_hint_says() -> None:
    assert make_config(k_fast=8, k_slow=12, expansion=1.25).v_slow == 15


def test_projections_start_as_in_the_study() -> None:
    layer = cases.new_layer("e90", dim=64, n_heads=16, k_fast=8, k_slow=16)
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
    layer = cases.new_layer("e90", n_heads=2000)
    assert_decay_starts_in_range(getattr(layer, which), max_rate, max_step)


def test_flops_are_those_of_the_products() -> None:
    config = make_config()
    # Heads 3 of dim 12: matrices, then reads and writes of both states and their mix.
    matrices = 12 * 3 * (3 * 4 + 3 * 8) + 12 * 3 * 8 * 2 + 12 * 3 * 5
    states = 3 * (4 * 4 + 8 * 8)
    assert config.layer_state_size(100) == states
    assert config.layer_flops(100) == 2 * matrices + 8 * states + 2 * 3 * (4 + 8)
