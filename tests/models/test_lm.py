import math
from typing import Any

import pytest
import torch
from torch import Tensor

from elmanctl.models.configs.e88 import E88Config
from elmanctl.models.lm import LanguageModel, RMSNorm
from tests.models.layers import build_model

CHOICES: dict[str, dict[str, Any]] = {
    "plain": {},
    "convolution": {"use_conv": True},
    "all additions": {
        "expansion": 1.5,
        "write_gate": True,
        "use_conv": True,
        "output_norm": True,
        "value_residual": True,
        "gate_activation": "sigmoid",
    },
}


def make_model(dtype: torch.dtype = torch.float64, **changes: Any) -> Any:
    settings = {"dim": 16, "depth": 2, "n_heads": 3, "n_state": 4, **changes}
    model = build_model(E88Config.decode(settings), seed=3)
    assert isinstance(model, LanguageModel)
    return model.to(dtype)


def draw_tokens(batch: int, length: int) -> Tensor:
    return torch.randint(256, (batch, length), generator=torch.Generator().manual_seed(0))


@pytest.mark.parametrize("choice", CHOICES)
def test_byte_changes_no_logit_before_it(choice: str) -> None:
    model = make_model(**CHOICES[choice])
    tokens = draw_tokens(2, 24)
    before, _ = model(tokens)
    for place in (0, 11, 23):
        changed = tokens.clone()
        changed[:, place] = (changed[:, place] + 1) % 256
        after, _ = model(changed)
        assert torch.equal(before[:, :place], after[:, :place])
        assert (before[:, place:] - after[:, place:]).abs().amax(dim=(0, 2)).min() > 0


@pytest.mark.parametrize("choice", CHOICES)
@pytest.mark.parametrize("cuts", [(1, 40), (2, 39), (17, 24), (16, 16, 9), (1,) * 41])
def test_sequence_in_pieces_gives_the_logits_of_the_whole(
    choice: str, cuts: tuple[int, ...]
) -> None:
    model = make_model(**CHOICES[choice])
    tokens = draw_tokens(2, sum(cuts))
    whole, _ = model(tokens)
    pieces, state = [], None
    for piece in tokens.split(cuts, dim=1):
        logits, state = model(piece, state)
        pieces.append(logits)
    torch.testing.assert_close(torch.cat(pieces, dim=1), whole, rtol=1e-10, atol=1e-12)


def test_rows_of_a_batch_do_not_meet() -> None:
    model = make_model()
    tokens = draw_tokens(3, 20)
    together, _ = model(tokens)
    alone = torch.cat([model(row[None])[0] for row in tokens])
    torch.testing.assert_close(together, alone, rtol=1e-10, atol=1e-12)


def test_loss_is_the_mean_cross_entropy_of_every_next_byte() -> None:
    model = make_model()
    tokens = draw_tokens(2, 9)
    logits, _ = model(tokens[:, :-1])
    log_probabilities = logits - logits.logsumexp(-1, keepdim=True)
    expected = -log_probabilities.gather(2, tokens[:, 1:, None]).mean()
    torch.testing.assert_close(model.loss(tokens), expected)


def test_new_model_guesses_evenly() -> None:
    loss = make_model(torch.float32).loss(draw_tokens(4, 33))
    assert loss.item() == pytest.approx(math.log(256), abs=0.1)


def test_head_is_the_embedding() -> None:
    model = make_model()
    names = [name for name, _ in model.named_parameters() if "embedding" in name or "head" in name]
    assert names == ["embedding.weight"]
    assert model.embedding.weight.std().item() == pytest.approx(0.02, rel=0.05)
    before, _ = model(torch.zeros(1, 3).long())
    with torch.no_grad():
        model.embedding.weight[255] *= 2  # a byte that is not read
    after, _ = model(torch.zeros(1, 3).long())
    torch.testing.assert_close(after[..., 255], 2 * before[..., 255])
    assert torch.equal(after[..., :255], before[..., :255])


def test_layers_add_to_a_residual_stream_behind_a_norm() -> None:
    model = make_model()
    tokens = draw_tokens(2, 7)
    residual = model.embedding.weight[tokens]
    for norm, layer in zip(model.norms, model.layers, strict=True):
        scale = torch.sqrt(residual.square().mean(-1, keepdim=True) + 1e-5)
        residual = residual + layer(residual / scale * norm.weight)[0]
    scale = torch.sqrt(residual.square().mean(-1, keepdim=True) + 1e-5)
    expected = residual / scale * model.final_norm.weight @ model.embedding.weight.T
    torch.testing.assert_close(model(tokens)[0], expected)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32, torch.float64])
def test_logits_and_loss_are_at_least_float32(dtype: torch.dtype) -> None:
    model = make_model(dtype)
    logits, _ = model(draw_tokens(2, 5))
    expected = torch.promote_types(dtype, torch.float32)
    assert logits.dtype == model.loss(draw_tokens(2, 5)).dtype == expected
    assert logits.shape == (2, 5, 256)


def test_residual_stream_of_a_bfloat16_model_does_not_round_small_changes_away() -> None:
    model = make_model(torch.bfloat16)
    seen: list[Tensor] = []
    model.final_norm.register_forward_pre_hook(lambda _, inputs: seen.append(inputs[0]))
    model(draw_tokens(2, 5))
    assert seen[0].dtype == torch.float32


def test_norm_gives_the_dtype_of_its_weight() -> None:
    norm = RMSNorm(4).bfloat16()
    assert norm(torch.randn(2, 4)).dtype == torch.bfloat16


def test_two_runs_of_one_step_are_equal_bit_for_bit() -> None:
    def step() -> list[Tensor]:
        model = make_model(torch.float32)
        model.loss(draw_tokens(2, 40)).backward()
        return [p.grad for p in model.parameters() if p.grad is not None]

    first, second = step(), step()
    assert len(first) == len(list(make_model().parameters()))
    assert all(torch.equal(one, other) for one, other in zip(first, second, strict=True))


def test_states_of_another_depth_are_refused() -> None:
    _, state = make_model()(draw_tokens(1, 3))
    with pytest.raises(ValueError, match="zip"):
        make_model(depth=3)(draw_tokens(1, 3), state)


def test_model_learns_a_sequence_by_heart() -> None:
    model = make_model(torch.float32, dim=32)
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-2)
    tokens = draw_tokens(1, 8).repeat(2, 5)
    for _ in range(60):
        optimizer.zero_grad()
        loss = model.loss(tokens)
        loss.backward()
        optimizer.step()
    assert loss.item() < 0.7
