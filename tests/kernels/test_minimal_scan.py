import math
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from elmanctl.errors import InvalidConfiguration
from elmanctl.kernels.minimal_scan import minimal_scan
from elmanctl.kernels.minimal_scan.chunked import CHUNK
from elmanctl.kernels.minimal_scan.naive import naive_minimal_scan

FLOAT64_TOLERANCE = 1e-12
FLOAT32_TOLERANCE = 2e-6

# The last is more than a chunk of chunks, so that the scan over chunks is itself in chunks.
LENGTHS = [1, CHUNK - 1, CHUNK, CHUNK + 1, 63, 64, 65, 1000, CHUNK * CHUNK + 1]

# What decays, and what is written, may come to when gates are saturated.
EXTREMES: dict[str, tuple[float, float]] = {
    "nothing kept": (0.0, 1.0),
    "all kept": (1.0, 1.0),
    "all kept, nothing written": (1.0, 0.0),
    "nearly nothing kept": (1e-30, 1.0),
    "nearly all kept": (1 - 1e-7, 1e-7),
    "products that underflow": (1e-5, 1e30),
}


def draw(
    length: int, *, batch: int = 2, width: int = 3, dtype: torch.dtype = torch.float64
) -> dict[str, Any]:
    """Random arguments of the op, by name."""
    generator = torch.Generator().manual_seed(length)

    def normal(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=generator, dtype=torch.float64)

    tensors = {
        "decay": torch.sigmoid(3 * normal(batch, length, width) + 2),
        "written": normal(batch, length, width),
        "initial_state": normal(batch, width),
    }
    return {name: x.to(dtype).requires_grad_() for name, x in tensors.items()}


def results(function: Any, arguments: dict[str, Tensor]) -> dict[str, Tensor]:
    """The states, and all gradients of a weighted sum of them."""
    states = function(**arguments)
    weights = torch.randn(
        states.shape, generator=torch.Generator().manual_seed(1), dtype=torch.float64
    )
    total = (states * weights.to(states.dtype)).sum()
    gradients = torch.autograd.grad(total, list(arguments.values()))
    found = {f"d_{name}": d for name, d in zip(arguments, gradients, strict=True)}
    return {"states": states.detach(), **found}


def assert_close(actual: dict[str, Tensor], truth: dict[str, Tensor], tolerance: float) -> None:
    assert actual.keys() == truth.keys()
    for name, expected in truth.items():
        error = (actual[name].double() - expected.double()).norm()
        assert error <= tolerance * expected.double().norm(), name


@pytest.mark.parametrize("length", LENGTHS)
def test_states_and_gradients_in_float64_are_the_naive_ones(length: int) -> None:
    arguments = draw(length)
    truth = results(naive_minimal_scan, arguments)
    assert_close(results(minimal_scan, arguments), truth, FLOAT64_TOLERANCE)


@pytest.mark.parametrize("length", [1, 65])
def test_state_left_out_is_zero(length: int) -> None:
    arguments = draw(length)
    del arguments["initial_state"]
    zero = torch.zeros(2, 3, dtype=torch.float64)
    torch.testing.assert_close(
        minimal_scan(**arguments), naive_minimal_scan(**arguments, initial_state=zero)
    )
    assert_close(
        results(minimal_scan, arguments),
        results(naive_minimal_scan, arguments),
        FLOAT64_TOLERANCE,
    )


@pytest.mark.parametrize("length", [3, CHUNK + 2])
def test_gradients_are_those_of_finite_differences(length: int) -> None:
    arguments = draw(length, batch=1, width=1)
    assert torch.autograd.gradcheck(minimal_scan, tuple(arguments.values()))


@settings(max_examples=40, deadline=None)
@given(length=st.integers(1, 150), batch=st.integers(1, 3), width=st.integers(1, 5))
def test_result_is_the_naive_one_for_any_shape(length: int, batch: int, width: int) -> None:
    arguments = draw(length, batch=batch, width=width)
    truth = results(naive_minimal_scan, arguments)
    assert_close(results(minimal_scan, arguments), truth, FLOAT64_TOLERANCE)


@pytest.mark.parametrize("length", [65, 4096])
def test_float32_is_near_the_float64_truth(length: int) -> None:
    exact = draw(length, dtype=torch.float32)
    truth = results(naive_minimal_scan, {name: x.double() for name, x in exact.items()})
    found = results(minimal_scan, exact)
    assert all(x.dtype == torch.float32 for x in found.values())
    assert_close(found, truth, FLOAT32_TOLERANCE)


@pytest.mark.parametrize("extreme", EXTREMES)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("length", [63, 1000])
def test_extremes_stay_finite_and_right(extreme: str, dtype: torch.dtype, length: int) -> None:
    decay, written = EXTREMES[extreme]
    arguments = {
        "decay": torch.full((1, length, 2), decay, dtype=dtype),
        "written": torch.full((1, length, 2), written, dtype=dtype),
        "initial_state": torch.ones(1, 2, dtype=dtype),
    }
    arguments = {name: x.requires_grad_() for name, x in arguments.items()}
    truth = results(naive_minimal_scan, {name: x.double() for name, x in arguments.items()})
    found = results(minimal_scan, arguments)
    assert all(x.isfinite().all() for x in found.values())
    assert_close(found, truth, 1e-5 if dtype == torch.float32 else FLOAT64_TOLERANCE)


def test_mixed_extremes_side_by_side_are_right() -> None:
    generator = torch.Generator().manual_seed(3)
    values = torch.tensor([0.0, 1.0, 1e-300, 0.5, 1 - 1e-12], dtype=torch.float64)
    arguments = draw(1000)
    chosen = torch.randint(len(values), (2, 1000, 3), generator=generator)
    arguments["decay"] = values[chosen].requires_grad_()
    truth = results(naive_minimal_scan, arguments)
    assert_close(results(minimal_scan, arguments), truth, FLOAT64_TOLERANCE)


def test_sum_of_all_that_was_ever_written_has_its_closed_form() -> None:
    written = torch.ones(1, 4096, 1)
    states = minimal_scan(torch.ones_like(written), written)
    assert torch.equal(states[0, :, 0], torch.arange(1.0, 4097.0))
    decayed = minimal_scan(torch.full_like(written, 0.99), written)
    expected = (1 - 0.99 ** torch.arange(1, 4097, dtype=torch.float64)) / 0.01
    torch.testing.assert_close(decayed[0, :, 0].double(), expected, rtol=1e-5, atol=0)


@pytest.mark.parametrize("cut", [1, CHUNK, 77])
def test_state_given_on_continues_the_sequence(cut: int) -> None:
    decay, written, initial = draw(100).values()
    whole = minimal_scan(decay, written, initial)
    first = minimal_scan(decay[:, :cut], written[:, :cut], initial)
    second = minimal_scan(decay[:, cut:], written[:, cut:], first[:, -1])
    torch.testing.assert_close(torch.cat((first, second), dim=1), whole, rtol=1e-12, atol=1e-12)


def test_strided_views_are_accepted_and_left_as_they_were() -> None:
    joint = torch.rand(2, 6, 70, dtype=torch.float64)
    before = joint.clone()
    decay, written = joint.transpose(1, 2).chunk(2, dim=-1)
    truth = naive_minimal_scan(decay.clone(), written.clone())
    torch.testing.assert_close(minimal_scan(decay, written), truth)
    assert torch.equal(joint, before)


def test_nothing_is_read_from_memory_that_was_never_written() -> None:
    arguments = draw(70)
    truth = results(naive_minimal_scan, arguments)
    torch.use_deterministic_algorithms(True)
    try:
        # In this mode torch fills new memory with NaN.
        assert torch.empty(3).isnan().all()
        found = results(minimal_scan, arguments)
    finally:
        torch.use_deterministic_algorithms(False)
    assert_close(found, truth, FLOAT64_TOLERANCE)


def test_equal_arguments_give_equal_bits() -> None:
    arguments = draw(1000, dtype=torch.float32)
    once, again = results(minimal_scan, arguments), results(minimal_scan, arguments)
    assert all(torch.equal(once[name], again[name]) for name in once)


def test_autocast_leaves_the_scan_in_float32() -> None:
    arguments = draw(65, dtype=torch.float32)
    expected = minimal_scan(**arguments)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        found = minimal_scan(**arguments)
    assert torch.equal(found, expected)


def test_second_derivatives_are_refused() -> None:
    arguments = draw(5)
    (gradient,) = torch.autograd.grad(
        minimal_scan(**arguments).square().sum(), arguments["decay"], create_graph=True
    )
    with pytest.raises(RuntimeError, match="once_differentiable"):
        gradient.sum().backward()


@pytest.mark.parametrize("name", ["written", "initial_state"])
def test_wrong_shape_is_refused_by_name(name: str) -> None:
    arguments = draw(5)
    arguments[name] = arguments[name][..., :2]
    with pytest.raises(InvalidConfiguration, match=f"{name} has shape"):
        minimal_scan(**arguments)


@pytest.mark.parametrize("name", ["written", "initial_state"])
def test_wrong_dtype_is_refused_by_name(name: str) -> None:
    arguments = draw(5)
    arguments[name] = arguments[name].float()
    with pytest.raises(InvalidConfiguration, match=rf"{name} is torch\.float32, decay is"):
        minimal_scan(**arguments)


def test_wrong_device_is_refused_by_name() -> None:
    arguments = draw(5)
    arguments["written"] = arguments["written"].to("meta")
    with pytest.raises(InvalidConfiguration, match="written is on meta"):
        minimal_scan(**arguments)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.int64])
def test_decay_in_another_precision_is_refused(dtype: torch.dtype) -> None:
    with pytest.raises(InvalidConfiguration, match="must be float32 or float64"):
        minimal_scan(torch.ones(1, 2, 3, dtype=dtype), torch.ones(1, 2, 3, dtype=dtype))


@pytest.mark.parametrize("shape", [(1, 0, 3), (2, 3), (0, 2, 3)])
def test_empty_sequence_and_missing_axis_are_refused(shape: tuple[int, ...]) -> None:
    with pytest.raises(InvalidConfiguration, match="no empty axis"):
        minimal_scan(torch.ones(shape), torch.ones(shape))


def test_states_far_from_the_start_lose_no_digits() -> None:
    # Logarithms of decays that all sum to -40,000 would leave float32 two digits of a state.
    decay = torch.full((1, 4096, 1), math.exp(-10.0))
    written = torch.rand(1, 4096, 1, generator=torch.Generator().manual_seed(0))
    truth = naive_minimal_scan(decay.double(), written.double())
    found = minimal_scan(decay, written).double()
    assert ((found - truth) / truth).abs().max() < 1e-6
