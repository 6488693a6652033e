"""Checks of every family: exact sizes, gradients, causality, streaming, and learning."""

import math
from functools import cache
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from elmanctl.errors import InvalidConfiguration
from elmanctl.jobs.data import ByteStream
from elmanctl.jobs.train import train
from elmanctl.models.config import FamilyConfig
from elmanctl.models.params import count_parameters, parameter_breakdown, solve_dim
from elmanctl.models.registry import FAMILIES
from elmanctl.run.corpus import standard_library_corpus, unigram_entropy
from elmanctl.run.spec import DataSpec
from tests.models.layers import build_model
from tests.models.samples import SMALL, drawn_configs, small_config
from tests.specs import spec_of

FAMILY = pytest.mark.parametrize("family", FAMILIES)

# What the states of a family hold when their layers are not recurrent.
GROWING = {"transformer"}


def make_model(config: FamilyConfig, dtype: torch.dtype = torch.float32) -> Any:
    """Build a model on the torch backend with noise added to every parameter."""
    model = build_model(config, seed=3, backend="torch")
    generator = torch.Generator().manual_seed(7)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.05 * torch.randn(parameter.shape, generator=generator))
    return model.to(dtype)


def draw_tokens(batch: int, length: int, seed: int = 0) -> Tensor:
    return torch.randint(256, (batch, length), generator=torch.Generator().manual_seed(seed))


def carried(state: Any) -> list[Tensor]:
    """Return all tensors of a nested state."""
    if isinstance(state, Tensor):
        return [state]
    return [t for part in state for t in carried(part)] if isinstance(state, list | tuple) else []


def test_every_family_has_a_sample() -> None:
    assert set(SMALL) >= set(FAMILIES)


@FAMILY
@settings(max_examples=12, deadline=None)
@given(data=st.data())
def test_count_is_that_of_the_built_model(family: str, data: st.DataObject) -> None:
    config = data.draw(drawn_configs(family))
    model = build_model(config, seed=0, backend="torch")
    parts = parameter_breakdown(family, config.encode())
    assert count_parameters(family, config.encode()) == sum(p.numel() for p in model.parameters())
    built = {
        part: sum(p.numel() for name, p in model.named_parameters() if name.startswith(prefixes))
        for part, prefixes in {
            "embedding": ("embedding.",),
            "blocks": ("layers.",),
            "norms": ("norms.", "final_norm."),
            "head": ("head.",),
        }.items()
    }
    assert built == parts


@FAMILY
@settings(max_examples=8, deadline=None)
@given(data=st.data(), length=st.integers(1, 70))
def test_any_model_runs_forward_and_gives_every_parameter_a_gradient(
    family: str, data: st.DataObject, length: int
) -> None:
    model = make_model(data.draw(drawn_configs(family)))
    logits, _ = model(draw_tokens(2, length))
    (logits.square().sum() + model.auxiliary_loss()).backward()
    assert logits.shape == (2, length, 256) and logits.dtype == torch.float32
    assert logits.isfinite().all()
    without = [n for n, p in model.named_parameters() if p.grad is None]
    assert without == []
    assert all(p.grad.isfinite().all() for p in model.parameters())


@FAMILY
def test_every_parameter_moves_the_loss(family: str) -> None:
    model = make_model(small_config(family), torch.float64)
    torch.manual_seed(0)
    (model.loss(draw_tokens(2, 33)) + model.auxiliary_loss()).backward()
    still = [n for n, p in model.named_parameters() if not p.grad.abs().max() > 0]
    assert still == []


@FAMILY
@pytest.mark.parametrize("how", ["weights", "autocast"])
def test_bfloat16_comes_near_float32(family: str, how: str) -> None:
    model = make_model(small_config(family)).eval()
    tokens = draw_tokens(2, 40)
    exact = model.loss(tokens).item()
    if how == "weights":
        model = model.bfloat16()
        loss = model.loss(tokens)
    else:
        with torch.autocast("cpu", dtype=torch.bfloat16):
            loss = model.loss(tokens)
    loss.backward()
    assert loss.dtype == torch.float32
    assert loss.item() == pytest.approx(exact, rel=0.02)
    assert all(p.grad is not None and p.grad.isfinite().all() for p in model.parameters())


@FAMILY
@settings(max_examples=5, deadline=None)
@given(data=st.data())
def test_byte_changes_no_logit_before_it(family: str, data: st.DataObject) -> None:
    model = make_model(data.draw(drawn_configs(family)), torch.float64).eval()
    tokens = draw_tokens(2, 70)
    before, _ = model(tokens)
    for place in (0, 33, 69):
        changed = tokens.clone()
        changed[:, place] = (changed[:, place] + 1) % 256
        after, _ = model(changed)
        torch.testing.assert_close(before[:, :place], after[:, :place], rtol=0, atol=1e-12)
        assert (before[:, place] - after[:, place]).abs().max() > 0


@FAMILY
@settings(max_examples=6, deadline=None)
@given(data=st.data(), cut=st.integers(1, 69))
def test_sequence_in_two_pieces_gives_the_logits_of_the_whole(
    family: str, data: st.DataObject, cut: int
) -> None:
    model = make_model(data.draw(drawn_configs(family)), torch.float64).eval()
    tokens = draw_tokens(2, 70)
    whole, _ = model(tokens)
    first, state = model(tokens[:, :cut])
    second, _ = model(tokens[:, cut:], state)
    torch.testing.assert_close(torch.cat((first, second), dim=1), whole, rtol=1e-7, atol=1e-9)


@FAMILY
def test_state_has_the_size_that_is_told(family: str) -> None:
    config = small_config(family)
    model = make_model(config)
    _, state = model(draw_tokens(1, 9))
    told = config.layer_state_size(9) * config.depth
    # The tails of short convolutions come on top.
    tails = sum(
        module.in_channels * (module.kernel_size[0] - 1)
        for module in model.modules()
        if isinstance(module, nn.Conv1d)
    )
    assert sum(t.numel() for t in carried(state)) == told + tails


@FAMILY
def test_equal_seeds_train_equally(family: str) -> None:
    losses = []
    for _ in range(2):
        model = build_model(small_config(family), seed=3, backend="torch").train()
        torch.manual_seed(5)
        loss = model.loss(draw_tokens(2, 33))
        (loss + model.auxiliary_loss()).backward()
        norm = torch.stack([p.grad.norm() for p in model.parameters()])
        losses.append((loss.item(), norm.tolist()))
    assert losses[0] == losses[1]


@FAMILY
def test_loaded_model_computes_as_the_saved_one_to_the_last_bit(family: str) -> None:
    saved, loaded = (
        build_model(small_config(family), seed=seed, backend="torch").train() for seed in (3, 4)
    )
    optimizer = torch.optim.SGD(saved.parameters(), lr=0.1)
    for step in range(3):
        (saved.loss(draw_tokens(2, 33, seed=step)) + saved.auxiliary_loss()).backward()
        optimizer.step()
    loaded.load_state_dict(saved.state_dict())
    for is_training in (False, True):
        outputs = []
        for model in (saved, loaded):
            torch.manual_seed(5)
            outputs.append(model.train(is_training)(draw_tokens(2, 33))[0])
        assert torch.equal(*outputs)


@FAMILY
@settings(max_examples=5, deadline=None)
@given(data=st.data(), times=st.integers(2, 30))
def test_dim_of_a_count_is_found_again(family: str, data: st.DataObject, times: int) -> None:
    config = data.draw(drawn_configs(family)).encode()
    divisor = FAMILIES[family].load_config().dim_divisor(config)
    dim = math.lcm(16, divisor) * times
    try:
        target = count_parameters(family, {**config, "dim": dim})
    except InvalidConfiguration:
        return
    rest = {name: value for name, value in config.items() if name != "dim"}
    found = solve_dim(family, rest, target=target, tolerance=0.0, multiple_of=16)
    assert count_parameters(family, {**config, "dim": found}) == target


@FAMILY
def test_flops_of_products_are_twice_the_weights_and_more(family: str) -> None:
    config = small_config(family)
    weights = sum(
        p.numel()
        for name, p in build_model(config, seed=0, backend="torch").named_parameters()
        if name.startswith("layers.") and p.ndim >= 2
    )
    assert config.depth * config.layer_flops(64) >= 1.9 * weights


@cache
def corpus() -> tuple[Any, float]:
    path = standard_library_corpus()
    return path, unigram_entropy(path)


class Silent:
    """Observer that ignores everything."""

    def phase(self, name: str) -> None:
        """Ignore it."""

    def step(self, record: object) -> None:
        """Ignore it."""

    def validation(self, step: int, loss: float) -> None:
        """Ignore it."""


@FAMILY
def test_150_steps_on_real_text_end_under_the_unigram_entropy(family: str) -> None:
    path, entropy = corpus()
    config = small_config(family)
    spec = spec_of(
        run="test",
        evaluation="g000-e00",
        attempt=1,
        level=family,
        config=config.encode(),
        parameters_expected=count_parameters(family, config.encode()),
        seed=1,
        lr=SMALL[family]["lr"],
        steps=150,
        batch=8,
        seq_len=32,
        warmup_steps=0,
        objective="last100",
        holdout=0.0,
        data=DataSpec(path=str(path), sha256="", size_bytes=0),
        device="cpu",
        backend="torch",
        threads=1,
        timeout_min=60,
    )
    outcome = train(build_model(config, seed=1, backend="torch"), ByteStream(path), spec, Silent())
    assert outcome.divergence is None
    assert outcome.loss is not None and math.isfinite(outcome.loss)
    assert outcome.loss < entropy - 0.3, f"{outcome.loss:.3f} against {entropy:.3f}"
    assert outcome.last_loss is not None and np.isfinite(outcome.last_loss)
