"""The matrix recurrence under test: its arguments, all that it computes, and how near that is."""

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor

from elmanctl.kernels.matrix_recurrence import launches
from elmanctl.kernels.matrix_recurrence.splits import Direction, Split
from tests.kernels.interpreted import quicken_interpreter

NAMES = ("q", "k", "v", "alpha", "gate", "beta", "blend", "initial_state")
FLOAT64_TOLERANCE = 1e-12
FLOAT32_TOLERANCE = 2e-6
BFLOAT16_TOLERANCE = 6e-3


def draw(
    length: int,
    *,
    batch: int = 2,
    heads: int = 2,
    n_key: int = 4,
    n_value: int = 3,
    dtype: torch.dtype = torch.float64,
    without: tuple[str, ...] = (),
    per_value: bool = False,
    blend: bool = False,
    seed: int = 0,
    device: str = "cpu",
) -> dict[str, Any]:
    """Random arguments of the op, by name; with one decay for each value, or a blend, if told."""
    generator = torch.Generator().manual_seed(seed)

    def normal(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=generator, dtype=torch.float64)

    steps = (batch, length, heads)
    state_dtype = torch.promote_types(dtype, torch.float32)
    tensors = {
        "q": normal(*steps, n_key).to(dtype),
        "k": normal(*steps, n_key).to(dtype),
        "v": normal(*steps, n_value).to(dtype),
        "alpha": torch.sigmoid(normal(*steps, *[n_value] * per_value) + 2).to(state_dtype),
        "gate": normal(*steps, n_value).to(dtype),
        "beta": torch.sigmoid(normal(*steps)).to(state_dtype),
        "blend": torch.sigmoid(normal(*steps)).to(state_dtype),
        "initial_state": torch.tanh(normal(batch, heads, n_key, n_value)).to(state_dtype),
    }
    left_out = without if blend else (*without, "blend")
    return {
        name: x.to(device).requires_grad_() for name, x in tensors.items() if name not in left_out
    }


def results(function: Any, arguments: dict[str, Tensor], **switches: Any) -> dict[str, Tensor]:
    """Output, final state and all gradients of a weighted sum of both."""
    output, final_state = function(**arguments, **switches)
    weights = torch.Generator().manual_seed(1)

    def weighted(x: Tensor) -> Tensor:
        return (x * torch.randn(x.shape, generator=weights, dtype=torch.float64).to(x)).sum()

    total = weighted(output).double() + weighted(final_state).double()
    gradients = torch.autograd.grad(total, list(arguments.values()))
    return {
        "output": output.detach(),
        "final_state": final_state.detach(),
        **{f"d_{name}": d for name, d in zip(arguments, gradients, strict=True)},
    }


def exact(arguments: Mapping[str, Tensor]) -> dict[str, Any]:
    """The same numbers in float64, on the CPU."""
    return {name: x.detach().cpu().double().requires_grad_() for name, x in arguments.items()}


def assert_close(
    actual: dict[str, Tensor], truth: dict[str, Tensor], tolerance: float, *, least: float = 0.0
) -> None:
    """Compare by the norm of the difference over the norm; what is not a number is never close.

    A norm of the truth under `least` counts as that: sums that nearly vanish have no digits.
    """
    assert actual.keys() == truth.keys()
    for name, expected in truth.items():
        scale = expected.double().norm().clamp_min(least)
        error = (actual[name].cpu().double() - expected.double()).norm()
        assert error <= tolerance * scale, f"{name} is off by {error / scale:.2g}"


def widen_tiles(monkeypatch: pytest.MonkeyPatch) -> None:
    """Have states of as few tiles as can be: Triton's interpreter takes as long for a small one."""
    split = launches.split_of

    def split_widely(direction: Direction, problem: launches.Problem) -> Split:
        return replace(split(direction, problem), keys=problem.n_key & -problem.n_key)

    monkeypatch.setattr(launches, "split_of", split_widely)
    quicken_interpreter()
