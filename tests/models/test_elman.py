import copy
import math
from typing import Any

import pytest
import torch
from torch import Tensor

from elmanctl.models.elman import StateMatrix, vector_recurrence
from tests.models import cases
from tests.models.layers import (
    assert_fills,
    build_model,
    xavier_bound,
)

CASES = cases.cases("e1", "e0", "e42")


def make_config(case: str, **changes: Any) -> Any:
    return cases.make_config(CASES[case].family, **{**CASES[case].settings, **changes})


SWITCH = pytest.mark.parametrize("switch", CASES)


@pytest.mark.parametrize("is_linear", [False, True])
def test_recurrence_passes_on_exact_gradients(is_linear: bool) -> None:
    shapes = ((2, 5, 3), (3, 3), (2, 3))
    given, weight, before = (torch.randn(s, dtype=torch.float64).requires_grad_() for s in shapes)
    assert torch.autograd.gradcheck(
        lambda *tensors: vector_recurrence(*tensors, is_linear=is_linear), (given, weight, before)
    )


def test_recurrence_without_a_state_before_it_starts_at_zero() -> None:
    given, weight = torch.randn(2, 5, 3), torch.randn(3, 3)
    from_zero = vector_recurrence(given, weight, torch.zeros(2, 3), is_linear=False)
    assert torch.equal(vector_recurrence(given, weight, is_linear=False), from_zero)


def held_matrix(width: int = 24, norm: float = 0.9, **settings: Any) -> Any:
    return StateMatrix(width, gain=1.0, norm=norm, **settings)


def largest_singular_value(matrix: Tensor) -> float:
    return float(torch.linalg.matrix_norm(matrix.detach(), ord=2))


def test_norm_of_a_held_matrix_comes_near_the_one_given() -> None:
    matrix = held_matrix(64)
    assert 0.9 * (1 - 1e-6) <= largest_singular_value(matrix()) < 0.93
    for _ in range(300):
        matrix()
    assert largest_singular_value(matrix()) == pytest.approx(0.9, rel=1e-3)


def test_scaling_the_weights_of_a_held_matrix_changes_nothing() -> None:
    matrix = held_matrix().eval()
    before = matrix()
    with torch.no_grad():
        matrix.weight.mul_(7.0)
    torch.testing.assert_close(matrix(), before)
    # So the gradient, which goes through the norm, has no part along the weights.
    (matrix() * torch.randn(24, 24)).sum().backward()
    along = (matrix.weight.grad * matrix.weight).sum()
    assert along.abs() < 1e-4 * matrix.weight.grad.norm() * matrix.weight.norm()


def test_direction_moves_in_training_and_rests_in_evaluation() -> None:
    matrix = held_matrix()
    with torch.no_grad():
        matrix.weight.add_(torch.randn(24, 24))
    matrix.eval()
    resting = matrix.direction.clone()
    assert torch.equal(matrix(), matrix()) and torch.equal(matrix.direction, resting)
    matrix.train()()
    assert not torch.equal(matrix.direction, resting)
    # What training used last is what evaluation uses.
    used = matrix()
    assert torch.equal(matrix.eval()(), used)


def test_gradient_survives_a_second_use_of_the_matrix() -> None:
    matrix = held_matrix()
    (matrix().sum() * matrix().square().sum()).backward()
    assert matrix.weight.grad.isfinite().all()


def test_data_does_not_move_the_estimate() -> None:
    model = build_model(make_config("e1"), seed=0).train()
    other = copy.deepcopy(model)
    model(torch.randint(256, (1, 4)))
    other(torch.randint(256, (3, 11)))
    for name, vector in model.named_buffers():
        assert torch.equal(vector, other.get_buffer(name))


def trained_model(switch: str) -> Any:
    """Return a perturbed model whose directions have nearly converged."""
    model = build_model(make_config(switch), seed=0).train()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.2 * torch.randn_like(parameter))
    for _ in range(200):
        model(torch.randint(256, (2, 1)))
    return model


@pytest.mark.parametrize("switch", ["e1", "e0, normalized", "e42"])
def test_loaded_model_computes_as_the_saved_one(switch: str) -> None:
    saved = trained_model(switch)
    loaded = build_model(make_config(switch), seed=1)
    loaded.load_state_dict(saved.state_dict())
    tokens = torch.randint(256, (2, 20))
    before, after = (model.eval()(tokens)[0] for model in (saved, loaded))
    assert torch.equal(before, after)


@pytest.mark.parametrize("switch", ["e1", "e42"])
def test_weights_of_a_version_that_kept_no_direction_are_loaded(switch: str) -> None:
    saved = trained_model(switch)
    weights = saved.state_dict()
    old = {name: value for name, value in weights.items() if not name.endswith("direction")}
    assert len(old) == len(weights) - 2
    loaded = build_model(make_config(switch), seed=1)
    loaded.load_state_dict(old)
    tokens = torch.randint(256, (2, 20))
    before, after = (model.eval()(tokens)[0] for model in (saved, loaded))
    torch.testing.assert_close(after, before, rtol=1e-4, atol=1e-5)
    assert not any(name.endswith("direction") for name in old)


def test_e42_holds_input_and_state_at_one_norm() -> None:
    for radius in (0.3, 0.999):
        layer = cases.make_layer("e42", spectral_radius=radius).eval()
        assert largest_singular_value(layer.tied()) == pytest.approx(radius, rel=1e-9)


def test_radius_of_the_study_is_0_999_whatever_is_asked_for() -> None:
    tokens = torch.randint(256, (1, 9))
    losses = []
    for radius in (0.3, 0.999):
        config = make_config("e42", spectral_radius=radius, variant="study-2026-01")
        losses.append(build_model(config, seed=0).loss(tokens).item())
        layer = cases.make_layer("e42", spectral_radius=radius, variant="study-2026-01").eval()
        assert largest_singular_value(layer.tied()) == pytest.approx(0.999, rel=1e-9)
    assert losses[0] == losses[1]


@SWITCH
def test_layers_start_as_said(switch: str) -> None:
    config = make_config(switch, dim=64)
    layer = build_model(config, seed=0).layers[0]
    width = config.width
    bounds = {
        "inward.weight": xavier_bound(64, width),
        "out.weight": xavier_bound(64, width),
    }
    square, zero = xavier_bound(width, width), {"bias"}
    if config.level == "e42":
        bounds |= {"tied.weight": square}
    else:
        zero = {"network.input.bias"}
        bounds |= {"network.input.weight": square, "network.recurrent.weight": 0.1 * square}
        if config.use_conv:
            own = 1 / math.sqrt(config.d_conv)
            bounds |= {"conv.conv.weight": own, "conv.conv.bias": own}
    if config.level == "e1":
        bounds |= {"inward.weight": xavier_bound(64, 2 * width)}
    if config.level == "e0":
        bounds |= {"gate.weight": square}
        zero |= {"gate.bias"}
    weights = dict(layer.named_parameters())
    assert set(weights) == zero | set(bounds)
    assert_fills(bounds, weights, 0.9)
    assert not any(weights[name].any() for name in zero)


@SWITCH
@pytest.mark.parametrize("how", ["weights", "autocast"])
def test_state_is_float32_whatever_surrounds_it(switch: str, how: str) -> None:
    model = build_model(make_config(switch), seed=0).eval()
    tokens = torch.randint(256, (2, 15))
    exact = model(tokens)[1][0].hidden
    with torch.autocast("cpu", dtype=torch.bfloat16, enabled=how == "autocast"):
        if how == "weights":
            model = model.bfloat16()
        logits, states = model(tokens)
        loss = logits.square().mean()
        loss.backward()
    hidden = states[0].hidden
    assert hidden.dtype == torch.float32
    # The numbers of a state in bfloat16 would end on 16 zero bits.
    assert (hidden.view(torch.int32) % 2**16 != 0).any()
    torch.testing.assert_close(hidden, exact, rtol=0.1, atol=0.02)
    assert all(p.grad.isfinite().all() for p in model.parameters())


def test_products_of_a_convolution_count() -> None:
    flops = [
        make_config("e1", use_conv=use, d_conv=width).layer_flops(64)
        for use, width in ((False, 4), (True, 4), (True, 6))
    ]
    assert [flops[1] - flops[0], flops[2] - flops[1]] == [2 * 4 * 8, 2 * 2 * 8]
