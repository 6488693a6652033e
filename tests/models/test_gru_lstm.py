import math
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from elmanctl.errors import EnvironmentNotReady, InvalidConfiguration
from elmanctl.models.gru_lstm import RecurrentLayer
from elmanctl.models.registry import FAMILIES
from tests.models import cases
from tests.models.layers import build_model

CELLS = {name: case for name, case in cases.cases("gru", "lstm").items() if "wide" not in name}


def make_config(cell: str, **changes: Any) -> Any:
    return cases.make_config(CELLS[cell].family, **CELLS[cell].settings, **changes)


CELL = pytest.mark.parametrize("cell", CELLS)
STANDARD = pytest.mark.parametrize("family", ["gru", "lstm"])
STUDY_WIDTH = 2048


@pytest.fixture
def quick_draws(monkeypatch: pytest.MonkeyPatch) -> None:
    """Initialize blocks uniformly: orthogonal ones take seconds at the width of the study."""
    monkeypatch.setattr(nn.init, "orthogonal_", lambda w: w.uniform_(-1, 1).div_(len(w) ** 0.5))


def make_layer(cell: str, backend: str = "torch", **changes: Any) -> Any:
    """Return a layer with a random output projection and random biases."""
    config = make_config(cell, **changes)
    layer = RecurrentLayer(config, backend)
    with torch.no_grad():
        layer.inward.weight.normal_(std=config.dim**-0.5)
        layer.out.weight.normal_(std=config.width**-0.5)
        for parameter in layer.cell.parameters():
            if parameter.ndim == 1:
                parameter.add_(0.3 * torch.randn_like(parameter))
    return layer


def gradients(layer: Any, y: Tensor, x: Tensor) -> dict[str, Tensor]:
    """Return the gradients of a weighted sum of y for x and every parameter."""
    layer.zero_grad()
    x.grad = None
    weights = torch.linspace(0.5, 1.5, y.numel(), dtype=y.dtype).view(y.shape)
    (y * weights).sum().backward()
    found = {name: p.grad.clone() for name, p in layer.named_parameters() if p.grad is not None}
    assert x.grad is not None
    return {**found, "x": x.grad.clone()}


def assert_near(found: dict[str, Tensor], truth: dict[str, Tensor], tolerance: float) -> None:
    assert found.keys() == truth.keys()
    for name, value in truth.items():
        error = (found[name] - value).abs().max() / value.abs().max()
        assert error < tolerance, f"{name}: {error:.1e}"


@CELL
def test_layer_of_the_study_computes_its_equations_and_what_torch_does(
    cell: str, quick_draws: None
) -> None:
    layer = make_layer(cell, dim=STUDY_WIDTH)
    x = torch.randn(1, 3, STUDY_WIDTH, requires_grad=True)
    y, _ = layer(x)
    found = gradients(layer, y, x)
    truth = cases.equations(layer.config.level, layer.config, layer, x)
    assert_near({"y": y}, {"y": truth}, 1e-5)
    assert_near(found, gradients(layer, truth, x), 1e-4)
    if layer.config.is_standard:
        kind = nn.GRU if layer.config.level == "gru" else nn.LSTM
        inner = kind(STUDY_WIDTH, STUDY_WIDTH, batch_first=True, device="meta")
        inner.load_state_dict(layer.cell.rnn.state_dict(), assign=True)
        theirs = nn.ModuleDict({"inward": layer.inward, "cell": inner, "out": layer.out})
        truth = layer.out(inner(layer.inward(x))[0])
        assert_near({"y": y}, {"y": truth}, 1e-6)
        found = {name.replace("cell.rnn", "cell"): value for name, value in found.items()}
        assert len(found) == 7
        assert_near(found, gradients(theirs, truth, x), 1e-5)


@CELL
def test_gradients_of_a_whole_model_are_slopes_of_its_loss(cell: str) -> None:
    model = build_model(make_config(cell), seed=0).double()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.2 * torch.randn_like(parameter))
    tokens = torch.randint(256, (2, 9))
    model.loss(tokens).backward()
    for name, parameter in model.named_parameters():
        way, losses = torch.randn_like(parameter), []
        with torch.no_grad():
            for step in (1e-5, -2e-5):
                parameter.add_(step * way)
                losses.append(model.loss(tokens).item())
            parameter.add_(1e-5 * way)
        slope = (losses[0] - losses[1]) / 2e-5
        assert slope == pytest.approx((parameter.grad * way).sum().item(), rel=1e-5), name


@CELL
def test_model_learns_a_text_by_heart(cell: str) -> None:
    model = build_model(make_config(cell, dim=32, depth=1), seed=0)
    tokens = torch.randint(256, (2, 13))
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-2)
    losses = []
    for _ in range(50):
        optimizer.zero_grad()
        loss = model.loss(tokens)
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert losses[0] == pytest.approx(math.log(256), rel=0.02)
    assert losses[-1] < 0.5 and all(math.isfinite(loss) for loss in losses)


@CELL
def test_first_step_trains_only_what_follows_the_cell(cell: str) -> None:
    model = build_model(make_config(cell), seed=0)
    model.loss(torch.randint(256, (2, 9))).backward()
    for name, parameter in model.named_parameters():
        is_before = ".cell." in name or ".inward." in name or name.startswith("norms.")
        assert (parameter.grad.abs().max() == 0) == is_before, name


def test_cells_start_as_their_conventions_say() -> None:
    for cell in CELLS:
        config = make_config(cell, dim=48)
        layer = build_model(config, seed=0).layers[0]
        weights = dict(layer.cell.named_parameters())
        assert layer.inward.weight.std().item() == pytest.approx(0.02, rel=0.1)
        assert not layer.out.weight.any()
        square = [p for name, p in weights.items() if p.ndim == 2 and name != "input.weight"]
        assert len(square) == (2 if config.is_standard else 1)
        for block in (block for p in square for block in p.split(48)):
            torch.testing.assert_close(block @ block.T, torch.eye(48), rtol=0, atol=1e-5)
        if not config.is_standard:
            assert weights["input.weight"].std().item() == pytest.approx(0.02, rel=0.1)
        biases = [p for p in weights.values() if p.ndim == 1]
        assert len(biases) == (2 if config.is_standard else 1)
        for bias in biases:
            expected = torch.zeros(config.n_blocks, 48)
            expected[1] = 1.0 if config.level == "lstm" else 0.0
            assert torch.equal(bias.view(-1, 48), expected)


@CELL
@pytest.mark.parametrize("how", ["weights", "autocast"])
def test_cell_computes_in_float32_whatever_surrounds_it(cell: str, how: str) -> None:
    layer = make_layer(cell, dim=32)
    x = torch.randn(2, 7, 32)
    if how == "weights":
        layer, x = layer.bfloat16(), x.bfloat16()
    with torch.autocast("cpu", dtype=torch.bfloat16, enabled=how == "autocast"):
        inner = layer.inward(x)
        y, state = layer(x)
    assert inner.dtype == y.dtype == torch.bfloat16
    zero = (torch.zeros(2, 32),) * layer.config.states
    _, expected = layer.float().cell(inner.float(), zero)
    assert len(state) == layer.config.states
    for found, truth in zip(state, expected, strict=True):
        assert found.dtype == torch.float32
        torch.testing.assert_close(found, truth, rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("cell", ["gru, reset before", "lstm, one bias"])
def test_cudnn_is_refused_for_a_cell_with_one_bias(cell: str) -> None:
    config = make_config(cell)
    with pytest.raises(InvalidConfiguration, match="cuDNN does not support") as caught:
        build_model(config, seed=0, backend="cudnn", device="cuda")
    assert config.convention in str(caught.value.hint)
    assert build_model(config, seed=0).backend == "torch"


@STANDARD
def test_cudnn_is_refused_without_a_cuda_device(family: str) -> None:
    config = make_config(family)
    with pytest.raises(EnvironmentNotReady, match="cuDNN needs a CUDA device"):
        build_model(config, seed=0, backend="cudnn")
    assert FAMILIES[family].backends[0] == "cudnn"
    assert build_model(config, seed=0).backend == "torch"
    # Nor may torch quietly run the model of another backend.
    with pytest.raises(EnvironmentNotReady, match="unavailable on cpu"):
        make_layer(family, backend="cudnn")(torch.randn(1, 3, 6))


@CELL
def test_auto_takes_cudnn_where_it_is_and_computes_the_cell(
    cell: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = make_config(cell)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    for is_there in (True, False):
        monkeypatch.setattr(torch.backends.cudnn, "is_available", lambda found=is_there: found)
        chosen = build_model(config, seed=0, device="cuda").backend
        assert chosen == ("cudnn" if is_there and config.is_standard else "torch")
    if config.is_standard:
        with pytest.raises(EnvironmentNotReady, match="has no cuDNN"):
            build_model(config, seed=0, backend="cudnn", device="cuda")


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
@STANDARD
@pytest.mark.parametrize("is_training", [True, False])
def test_cudnn_computes_what_torch_computes(family: str, is_training: bool) -> None:
    ours, theirs = (make_layer(family, backend, dim=64).double() for backend in ("torch", "cudnn"))
    theirs.load_state_dict(ours.state_dict())
    ours, theirs = (layer.cuda().train(is_training) for layer in (ours, theirs))
    x = torch.randn(3, 40, 64, dtype=torch.float64, device="cuda", requires_grad=True)
    found = []
    for layer in (ours, theirs):
        y, state = layer(x)
        grads = torch.autograd.grad(y.square().sum(), [x, *layer.parameters()])
        found.append([y, *state, *grads])
    for mine, other in zip(*found, strict=True):
        torch.testing.assert_close(mine, other, rtol=1e-8, atol=1e-10)
