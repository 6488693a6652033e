from functools import partial
from typing import Any

import pytest
import torch
from torch import Tensor

from elmanctl.errors import InvalidConfiguration
from elmanctl.models.params import count_parameters
from elmanctl.models.registry import decode_config
from tests.models import cases
from tests.models.layers import (
    assert_fills,
    build_model,
    xavier_bound,
)
from tests.models.matrix_equations import e87_inner


def inner(layer: Any, x: Tensor) -> Tensor:
    return e87_inner(layer.config, dict(layer.named_parameters()), x)


make_config = partial(cases.make_config, "e87")
make_layer = partial(cases.make_layer, "e87")


VARIANT = pytest.mark.parametrize("variant", ["documented", "study-2026-01"])


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


def test_weights_start_within_their_bounds() -> None:
    layer = cases.new_layer("e87", dim=64, n_blocks=4, n_state=16, use_conv=True)
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


def test_flops_are_the_products_of_a_token() -> None:
    # Matrices twice; for each number of a state 6 to write it, in 2 of the 5 blocks, and 2 to read
    # it, in all; and the weighing of 5 read-outs of 8.
    weights = 12 * 12 + 5 * 12 + 3 * 40 * 12 + 8 * 12 + 8 * 12
    plain = 2 * weights + 6 * 2 * 8 * 8 + 2 * 5 * 8 * 8 + 2 * 40
    assert make_config().layer_flops(64) == plain
    assert make_config(variant="study-2026-01").layer_flops(64) == plain + 3 * 2 * 8 * 8
    assert make_config(top_k=5).layer_flops(64) == plain + 6 * 3 * 8 * 8
    assert make_config(use_conv=True).layer_flops(64) == plain + 2 * 4 * 12
