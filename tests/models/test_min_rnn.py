import math
from typing import Any

import pytest
import torch
from torch import Tensor

from elmanctl.errors import EnvironmentNotReady, InvalidConfiguration
from elmanctl.kernels.minimal_scan.gates import gate_weights, positive
from elmanctl.models.params import count_parameters, flops_per_token, state_size
from elmanctl.models.registry import decode_config
from tests.kernels.interpreted import DEVICE
from tests.models.cases import make_config, make_layer, new_layer
from tests.models.layers import (
    assert_fills,
    build_model,
    randomized,
    xavier_bound,
)
from tests.models.vector_equations import min_rnn_scores, sigma

FAMILIES = ("mingru", "minlstm")


FAMILY = pytest.mark.parametrize("family", FAMILIES)


def softplus(x: Tensor) -> Tensor:
    return torch.log(1 + torch.exp(x))


def phi(x: float) -> float:
    return x + 0.5 if x >= 0 else 1 / (1 + math.exp(-x))


def in_logarithms(layer: Any, x: Tensor) -> Tensor:
    """Compute the states of one sequence in log space, as the published code does."""
    candidate, *gates = min_rnn_scores(layer.config, dict(layer.named_parameters()), x)
    log_phi = torch.where(candidate >= 0, candidate.clamp(min=0) + 0.5, sigma(candidate)).log()
    if len(gates) == 1:
        log_keep, log_write = -softplus(gates[0]), -softplus(-gates[0])
    else:
        forget, write = gates
        log_keep = -softplus(softplus(-forget) - softplus(-write))
        log_write = -softplus(softplus(-write) - softplus(-forget))
    total = log_keep.cumsum(0)
    return (total + (log_write + log_phi - total).logcumsumexp(0)).exp()


@FAMILY
def test_states_are_those_of_the_scan_over_logarithms(family: str) -> None:
    layer = make_layer(family)
    x = torch.randn(70, 12, dtype=torch.float64)
    y, _ = layer(x[None])
    torch.testing.assert_close(y[0], in_logarithms(layer, x), rtol=1e-9, atol=1e-12)


def test_candidate_is_made_positive_and_meets_itself_at_zero() -> None:
    x = torch.tensor([-200.0, -1.0, -1e-6, 0.0, 1e-6, 2.0], dtype=torch.float64)
    torch.testing.assert_close(positive(x).tolist(), [phi(value) for value in x.tolist()])
    assert (positive(x) > 0).all()
    assert positive(torch.zeros(())).item() == 0.5


@FAMILY
def test_without_expansion_the_state_itself_is_the_output(family: str) -> None:
    layer = make_layer(family)
    y, state = layer(torch.randn(2, 9, 12, dtype=torch.float64))
    assert layer.out is None
    assert (y > 0).all()
    assert torch.equal(y[:, -1], state.hidden)
    assert make_layer(family, expansion=1.001).out is not None


@FAMILY
def test_state_before_the_first_position_is_zero(family: str) -> None:
    layer = make_layer(family)
    x = torch.randn(2, 1, 12, dtype=torch.float64)
    zero = torch.zeros(2, 12, dtype=torch.float64)
    state = type(layer(x)[1])(zero, None)
    assert torch.equal(layer(x, state)[0], layer(x)[0])


@FAMILY
@pytest.mark.parametrize("gate", [-1e4, -200.0, -90.0, 90.0, 200.0, 1e4])
@pytest.mark.parametrize("candidate", [-1e4, 0.0, 1e4])
def test_saturated_gates_stay_finite_over_long_sequences(
    family: str, gate: float, candidate: float
) -> None:
    layer = new_layer(family, dim=1)
    with torch.no_grad():
        layer.mixed.weight.fill_(gate)
        layer.mixed.weight[0] = candidate
    x = torch.ones(1, 4096, 1, requires_grad=True)
    y, _ = layer(x)
    y.sum().backward()
    assert y.isfinite().all()
    assert x.grad is not None and x.grad.isfinite().all()
    assert layer.mixed.weight.grad.isfinite().all()
    if family == "minlstm":
        # Two equal gates share equally, however far both are from zero.
        expected = phi(candidate) if candidate >= 0 else 0.0
        assert y[0, -1, 0].item() == pytest.approx(expected, rel=1e-5, abs=1e-12)
        assert y[0, 0, 0].item() == pytest.approx(expected / 2, rel=1e-5, abs=1e-12)


@pytest.mark.parametrize(("forget", "write"), [(-300.0, -301.0), (-120.0, -120.5), (60.0, 59.0)])
def test_gates_of_minlstm_compare_where_both_sigmoids_round_off(
    forget: float, write: float
) -> None:
    keep, rest = gate_weights("minlstm", torch.tensor([forget]), torch.tensor([write]))
    lead = min(forget, 0.0) - min(write, 0.0)
    assert keep.item() == pytest.approx(1 / (1 + math.exp(-lead)), rel=1e-6)
    assert rest.item() == pytest.approx(1 / (1 + math.exp(lead)), rel=1e-6)


@FAMILY
def test_float32_over_4096_positions_is_near_float64(family: str) -> None:
    layer = make_layer(family, expansion=1.5)
    x = torch.randn(1, 4096, 12, dtype=torch.float64)
    exact, _ = layer(x)
    found, _ = layer.float()(x.float())
    assert (found - exact).norm() < 2e-6 * exact.norm()


@FAMILY
def test_weights_start_within_the_bounds_of_xavier_and_of_torch(family: str) -> None:
    config = make_config(family, dim=64, expansion=2.0, use_conv=True)
    weights = dict(new_layer(family, dim=64, expansion=2.0, use_conv=True).named_parameters())
    bounds = {
        "mixed.weight": xavier_bound(64, config.scores * 128),
        "out.weight": xavier_bound(64, 128),
        "conv.conv.weight": 1 / math.sqrt(4),
    }
    assert set(weights) == set(bounds)
    assert_fills(bounds, weights, 0.95)


@FAMILY
def test_norms_centre_and_have_a_bias(family: str) -> None:
    model = build_model(make_config(family), seed=0)
    for norm in (*model.norms, model.final_norm):
        assert torch.equal(norm.bias, torch.zeros(12))
        assert norm(torch.randn(5, 12)).mean(-1).abs().max() < 1e-6


@FAMILY
def test_study_had_no_convolution_whatever_it_was_told(family: str) -> None:
    config = {"dim": 16, "depth": 2, "expansion": 2.0}
    told = {**config, "use_conv": True, "d_conv": 7}
    tokens = torch.randint(256, (1, 20))
    outputs = []
    for settings in (config, told):
        study = decode_config(family, settings, "study-2026-01")
        model = build_model(study, seed=0)
        assert sum(p.numel() for p in model.parameters()) == count_parameters(
            family, settings, "study-2026-01"
        )
        outputs.append(model(tokens)[0])
    documented = build_model(decode_config(family, config), seed=0)(tokens)[0]
    assert torch.equal(outputs[0], outputs[1]) and torch.equal(outputs[0], documented)


@FAMILY
def test_expansion_that_leaves_no_channel_is_refused(family: str) -> None:
    with pytest.raises(InvalidConfiguration, match="gives no channels") as caught:
        make_config(family, expansion=0.05)
    smallest = float(str(caught.value.hint).rpartition(" ")[2])
    assert make_config(family, expansion=smallest).n_channels == 1


@FAMILY
def test_state_and_flops_follow_from_the_equations(family: str) -> None:
    config = make_config(family, expansion=1.5, use_conv=True, d_conv=3).encode()
    gates = {"mingru": 2, "minlstm": 3}[family]
    assert state_size(family, config) == 18
    assert state_size(family, config, of="model") == 36
    per_layer = 2 * (gates * 12 * 18 + 18 * 12 + 3 * 12) + 3 * 18
    assert flops_per_token(family, config) == 2 * per_layer + 2 * 256 * 12


def test_gates_of_mingru_add_up_where_one_minus_the_other_would_be_zero() -> None:
    keep, write = gate_weights("mingru", torch.tensor([40.0, -40.0]))
    expected = math.exp(-40.0)
    assert keep[0].item() == pytest.approx(expected, rel=1e-5, abs=0)
    assert write[1].item() == pytest.approx(expected, rel=1e-5, abs=0)
    assert keep[1].item() == write[0].item() == 1.0


def trained(layer: Any, x: Tensor) -> dict[str, Tensor]:
    """Run a layer on two parts of x; return its outputs and gradients."""
    x = x.detach().requires_grad_()
    first, state = layer(x[:, :11])
    second, state = layer(x[:, 11:], state)
    y = torch.cat((first, second), dim=1)
    weights = torch.linspace(-1.0, 1.0, y.numel(), device=y.device).view(y.shape).to(y.dtype)
    named = dict(layer.named_parameters())
    gradients = torch.autograd.grad((y * weights).sum() + state.hidden.sum(), [x, *named.values()])
    found = dict(zip(["x", *named], gradients, strict=True))
    return {"y": y.detach(), "hidden": state.hidden.detach(), **found}


@FAMILY
@pytest.mark.parametrize(
    ("settings", "is_cast"),
    [({}, True), ({"expansion": 1.5}, True), ({"use_conv": True}, False)],
    ids=str,
)
def test_kernels_give_the_layer_what_plain_torch_does(
    family: str, settings: dict[str, Any], is_cast: bool
) -> None:
    found = {}
    for backend in ("torch", "triton"):
        torch.manual_seed(4)
        layer = randomized(new_layer(family, backend, dim=8, **settings), scale=0.5).float()
        layer = layer.to(DEVICE)
        torch.manual_seed(5)
        x = torch.randn(1, 17, 8).to(DEVICE)
        with torch.autocast(DEVICE, dtype=torch.bfloat16, enabled=is_cast):
            found[backend] = trained(layer, x)
    for name, expected in found["torch"].items():
        ours = found["triton"][name]
        assert ours.dtype == expected.dtype, name
        error = (ours - expected).norm() / expected.norm()
        # Under autocast both have roundings of their own.
        assert error < (2e-2 if is_cast else 2e-6), f"{name}: {error:.1e}"


@FAMILY
def test_kernels_are_the_backend_that_is_named(
    family: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = build_model(make_config(family), seed=0, backend="triton", device=DEVICE)
    assert model.backend == "triton"
    assert all(layer.backend == "triton" for layer in model.layers)
    monkeypatch.delenv("TRITON_INTERPRET", raising=False)
    assert build_model(make_config(family), seed=0).backend == "torch"
    with pytest.raises(EnvironmentNotReady, match="its kernels run on cuda, not on cpu"):
        build_model(make_config(family), seed=0, backend="triton")
