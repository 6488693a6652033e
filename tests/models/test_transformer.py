import math
from functools import partial
from itertools import pairwise
from typing import Any

import pytest
import torch
from torch import Tensor

from elmanctl.models.configs.transformer import TransformerConfig
from elmanctl.models.params import (
    count_parameters,
    flops_per_token,
    parameter_breakdown,
    solve_dim,
    state_size,
)
from elmanctl.models.registry import decode_config
from elmanctl.models.transformer import Attention, FeedForward, StudyBlock, make_layer, rotate
from tests.models import cases
from tests.models.layers import build_model, randomized, xavier_bound
from tests.models.matrix_equations import silu

make_config = partial(cases.make_config, "transformer")
BASE = cases.BASE["transformer"]
STUDY = "study-2026-01"


SHAPES: dict[str, dict[str, Any]] = {
    "wider than the model": {},
    "narrower than the model": {"dim": 40},
    "one head": {"n_heads": 1, "head_dim": 16},
    "wide feed-forward": {"expansion": 4.0},
    "narrow feed-forward": {"expansion": 0.25},
}
SHAPE = pytest.mark.parametrize("shape", SHAPES)


def make_parts(**changes: Any) -> list[Any]:
    return [randomized(part).eval() for part in make_layer(make_config(**changes), "torch")]


def turned(vector: Tensor, position: int) -> Tensor:
    """Multiply a query or key by its rotation matrix."""
    width = len(vector)
    matrix = torch.zeros(width, width, dtype=torch.float64)
    for i in range(width // 2):
        angle = position / 10_000 ** (2 * i / width)
        matrix[2 * i, 2 * i] = matrix[2 * i + 1, 2 * i + 1] = math.cos(angle)
        matrix[2 * i + 1, 2 * i] = math.sin(angle)
        matrix[2 * i, 2 * i + 1] = -math.sin(angle)
    return matrix @ vector


def attention_by_hand(part: Attention, x: Tensor, n_heads: int, head_dim: int) -> Tensor:
    """Compute attention of one sequence [T, dim], head by head and query by query."""
    width = n_heads * head_dim
    w_q, w_k, w_v = (part.mixed.weight[i * width :][:width] for i in range(3))
    heads = []
    for head in range(n_heads):
        rows = slice(head * head_dim, (head + 1) * head_dim)
        queries = [turned(w_q[rows] @ x[t], t) for t in range(len(x))]
        keys = [turned(w_k[rows] @ x[t], t) for t in range(len(x))]
        values = [w_v[rows] @ x[t] for t in range(len(x))]
        seen = []
        for t, query in enumerate(queries):
            weights = [torch.exp(query @ key / head_dim**0.5) for key in keys[: t + 1]]
            mixture = torch.stack([w * v for w, v in zip(weights, values, strict=False)]).sum(0)
            seen.append(mixture / torch.stack(weights).sum())
        heads.append(torch.stack(seen))
    return torch.cat(heads, dim=1) @ part.out.weight.T


def feed_forward_by_hand(part: FeedForward, x: Tensor, width: int) -> Tensor:
    w_1, w_3 = part.mixed.weight[:width], part.mixed.weight[width:]
    return (silu(x @ w_1.T) * (x @ w_3.T)) @ part.out.weight.T


def rms_norm(x: Tensor, weight: Tensor, eps: float) -> Tensor:
    return x / torch.sqrt(x.square().mean(-1, keepdim=True) + eps) * weight


@SHAPE
def test_parts_compute_their_equations(shape: str) -> None:
    config = make_config(**SHAPES[shape])
    attention, feed_forward = make_parts(**SHAPES[shape])
    x = torch.randn(2, 19, config.dim, dtype=torch.float64)
    (y, _), (z, carried) = attention(x), feed_forward(x)
    assert carried is None
    for i, sequence in enumerate(x):
        expected = attention_by_hand(attention, sequence, config.n_heads, config.head_dim)
        torch.testing.assert_close(y[i], expected, rtol=1e-9, atol=1e-10)
        expected = feed_forward_by_hand(feed_forward, sequence, config.ffn_width)
        torch.testing.assert_close(z[i], expected, rtol=1e-9, atol=1e-10)


def test_model_takes_two_normed_steps_a_layer() -> None:
    model = randomized(build_model(make_config(), seed=0))
    tokens = torch.randint(256, (1, 11))
    r = model.embedding.weight[tokens[0]]
    assert len(model.norms) == 4
    for layer in range(2):
        attention, feed_forward = model.layers[2 * layer], model.layers[2 * layer + 1]
        first, second = (model.norms[2 * layer + i].weight for i in range(2))
        r = r + attention_by_hand(attention, rms_norm(r, first, 1e-5), 3, 8)
        r = r + feed_forward_by_hand(feed_forward, rms_norm(r, second, 1e-5), 32)
    expected = rms_norm(r, model.final_norm.weight, 1e-5) @ model.embedding.weight.T
    torch.testing.assert_close(model(tokens)[0][0], expected, rtol=1e-8, atol=1e-9)


def test_study_block_computes_its_equation() -> None:
    (block,) = make_parts(variant=STUDY, n_heads=2)
    x = torch.randn(1, 9, 12, dtype=torch.float64)
    y, _ = block(x)
    a = x[0] + attention_by_hand(
        block.attention, rms_norm(x[0], block.attention_norm.weight, 1e-6), 2, 64
    )
    n = rms_norm(a, block.feed_forward_norm.weight, 1e-6)
    expected = a + feed_forward_by_hand(block.feed_forward, n, 256)
    torch.testing.assert_close(y[0], expected, rtol=1e-9, atol=1e-9)


def test_eps_of_the_study_is_another_than_that_of_the_model() -> None:
    block: Any
    (block,) = make_layer(make_config(variant=STUDY), "torch")
    small = torch.full((1, 12), 1e-3)
    assert block.attention_norm(small)[0, 0].item() == pytest.approx(1 / math.sqrt(2), rel=1e-5)


def test_study_adds_the_normed_input_a_second_time() -> None:
    model = build_model(decode_config("transformer", {**BASE, "depth": 1}, STUDY), seed=0).double()
    with torch.no_grad():
        for part in (model.layers[0].attention, model.layers[0].feed_forward):
            part.out.weight.zero_()
    tokens = torch.randint(256, (1, 7))
    r = model.embedding.weight[tokens[0]]
    r = r + rms_norm(r, model.norms[0].weight, 1e-5)
    expected = rms_norm(r, model.final_norm.weight, 1e-5) @ model.embedding.weight.T
    torch.testing.assert_close(model(tokens)[0][0], expected, rtol=1e-9, atol=1e-10)


def test_rotation_keeps_lengths_and_sees_only_distances() -> None:
    q, k = torch.randn(2, 1, 1, 1, 16, dtype=torch.float64)
    products = [
        (rotate(q, position + 5) * rotate(k, position)).sum().item()
        for position in (0, 17, 4096, 10**6)
    ]
    assert products == pytest.approx([products[0]] * 4, rel=1e-7)
    assert (rotate(q, 5) * rotate(k, 4)).sum().item() != pytest.approx(products[0], rel=1e-3)
    assert rotate(q, 123).norm().item() == pytest.approx(q.norm().item(), rel=1e-12)
    assert torch.equal(rotate(q, 0), q)


def test_angles_of_far_positions_are_exact_also_for_float32() -> None:
    x = torch.randn(1, 1, 3, 64)
    exact = rotate(x.double(), 1_000_000)
    torch.testing.assert_close(rotate(x, 1_000_000).double(), exact, rtol=1e-5, atol=1e-6)


@SHAPE
@pytest.mark.parametrize("variant", ["documented", STUDY])
def test_many_pieces_with_what_is_carried_are_the_whole(shape: str, variant: str) -> None:
    part = make_parts(**SHAPES[shape], variant=variant)[0]
    x = torch.randn(2, 19, make_config(**SHAPES[shape]).dim, dtype=torch.float64)
    whole, last = part(x)
    pieces, state = [], None
    for start, end in pairwise((0, 1, 4, 5, 18, 19)):
        y, state = part(x[:, start:end], state)
        pieces.append(y)
        assert state.keys.shape[2] == end
    torch.testing.assert_close(torch.cat(pieces, dim=1), whole, rtol=1e-9, atol=1e-10)
    torch.testing.assert_close(state, last, rtol=1e-9, atol=1e-10)


@pytest.mark.parametrize("variant", ["documented", STUDY])
def test_dropout_acts_in_training_alone(variant: str) -> None:
    config = decode_config("transformer", {**BASE, "dropout": 0.5}, variant)
    model = build_model(config, seed=0)
    without = build_model(decode_config("transformer", BASE, variant), seed=0)
    tokens = torch.randint(256, (1, 20))
    one, other = (model.train()(tokens)[0] for _ in range(2))
    assert (one - other).abs().max() > 1e-3
    assert torch.equal(model.eval()(tokens)[0], without.eval()(tokens)[0])
    assert torch.equal(without.train()(tokens)[0], without.eval()(tokens)[0])


def test_dropout_strikes_what_attention_and_feed_forward_give() -> None:
    for part in make_parts(dropout=0.25):
        x = torch.randn(1, 500, 12, dtype=torch.float64)
        kept, dropped = part.eval()(x)[0], part.train()(x)[0]
        struck = dropped == 0
        assert 0.2 < struck.double().mean() < 0.3
        torch.testing.assert_close(dropped[~struck], kept[~struck] / 0.75)


def test_study_had_heads_of_64_and_a_width_from_dim_whatever_it_was_told() -> None:
    config = {"dim": 16, "depth": 2, "n_heads": 2}
    told = {**config, "head_dim": 8, "expansion": 5.0}
    tokens = torch.randint(256, (1, 10))
    models = [build_model(decode_config("transformer", c, STUDY), seed=0) for c in (config, told)]
    assert torch.equal(models[0](tokens)[0], models[1](tokens)[0])
    for model in models:
        found = sum(p.numel() for p in model.parameters())
        assert found == count_parameters("transformer", told, STUDY)
        assert found == 256 * 16 + 3 * 16 + 2 * (4 * 16 * 128 + 3 * 16 * 256 + 2 * 16)


def test_heads_left_out_are_as_many_as_fit_but_one_at_least() -> None:
    heads = {
        (dim, head_dim): make_config(dim=dim, n_heads=0, head_dim=head_dim).heads
        for dim, head_dim in ((640, 64), (640, 128), (100, 32), (24, 64))
    }
    assert list(heads.values()) == [10, 5, 3, 1]
    assert make_config(dim=640, n_heads=0, head_dim=8, variant=STUDY).heads == 10


def test_width_of_the_feed_forward_part_is_the_nearest_multiple_of_eight() -> None:
    def width(dim: int, expansion: float) -> int:
        return make_config(dim=dim, expansion=expansion).ffn_width

    assert make_config(dim=48, n_heads=1).ffn_width == 128
    assert [width(100, e) for e in (2.0, 2.03, 2.04, 2.05)] == [200, 200, 208, 208]
    assert [width(1, 0.25), width(1, 16.0), width(13, 1.0)] == [8, 16, 16]
    assert [make_config(dim=dim, variant=STUDY).ffn_width for dim in (12, 96, 97, 1280)] == [
        256,
        256,
        512,
        3584,
    ]


def test_dim_needs_to_be_no_multiple_and_is_found_from_a_count() -> None:
    assert TransformerConfig.dim_divisor(BASE) == 1
    model = build_model(make_config(dim=13), seed=0)
    assert sum(p.numel() for p in model.parameters()) == count_parameters(
        "transformer", make_config(dim=13).encode()
    )
    settings = {"depth": 12, "n_heads": 0}
    dim = solve_dim("transformer", settings, target=100_000_000, tolerance=0.05, multiple_of=64)
    counts = [
        count_parameters("transformer", {**settings, "dim": dim + step}) for step in (-64, 0, 64)
    ]
    errors = [abs(count - 100_000_000) for count in counts]
    assert errors[1] == min(errors)


def test_norms_are_two_a_layer_and_the_last_one() -> None:
    assert parameter_breakdown("transformer", BASE)["norms"] == 12 * 5
    assert parameter_breakdown("transformer", BASE, STUDY)["norms"] == 12 * 3


def test_state_and_flops_grow_with_the_sequence() -> None:
    assert state_size("transformer", BASE, seq_len=100) == 2 * 24 * 100
    assert state_size("transformer", BASE, seq_len=100, of="model") == 2 * 2 * 24 * 100
    # Over seven positions a query meets 1, 2, ... 7 keys, and as many values, of 24 channels.
    products = 4 * 12 * 24 + 3 * 12 * 32 + 2 * 24 * sum(range(1, 8)) / 7
    found = flops_per_token("transformer", BASE, seq_len=7)
    assert found == 2 * (2 * products) + 2 * 256 * 12


def test_projections_start_within_their_xavier_bounds_each_by_itself() -> None:
    parts: list[Any] = make_layer(make_config(dim=64, n_heads=4, head_dim=32), "torch")
    attention, feed_forward = parts
    bound = {width: xavier_bound(64, width) for width in (128, make_config(dim=64).ffn_width)}
    matrices = {
        128: (*attention.mixed.weight.split(128), attention.out.weight),
        168: (*feed_forward.mixed.weight.split(168), feed_forward.out.weight),
    }
    assert set(matrices) == set(bound)
    for width, weights in matrices.items():
        assert len(weights) == {128: 4, 168: 3}[width]
        for weight in weights:
            assert 0.97 * bound[width] < weight.abs().max() <= bound[width]
    names = {name for part in (attention, feed_forward) for name, _ in part.named_parameters()}
    assert names == {"mixed.weight", "out.weight"}


def test_norms_of_the_study_start_at_one() -> None:
    block: Any
    (block,) = make_layer(make_config(variant=STUDY), "torch")
    assert isinstance(block, StudyBlock)
    for norm in (block.attention_norm, block.feed_forward_norm):
        assert torch.equal(norm.weight, torch.ones(12))


@pytest.mark.parametrize("variant", ["documented", STUDY])
@pytest.mark.parametrize("how", ["weights", "autocast"])
def test_lower_precision_trains_and_continues_a_sequence(variant: str, how: str) -> None:
    model = build_model(decode_config("transformer", BASE, variant), seed=0)
    tokens = torch.randint(256, (2, 21))
    exact = model(tokens)[0]
    if how == "weights":
        model = model.bfloat16()
    with torch.autocast("cpu", dtype=torch.bfloat16, enabled=how == "autocast"):
        first, state = model(tokens[:, :9])
        second, _ = model(tokens[:, 9:], state)
    logits = torch.cat((first, second), dim=1)
    assert (logits - exact).norm() < 0.03 * exact.norm()
    logits.square().sum().backward()
    assert all(p.grad is not None and p.grad.isfinite().all() for p in model.parameters())
