"""What torch is told of the kernels of the matrix recurrence: to trace, differentiate, compile."""

from typing import Any

import pytest
import torch
from torch import Tensor

from elmanctl.kernels.matrix_recurrence import launches
from elmanctl.kernels.matrix_recurrence.sizes import choose_backend
from elmanctl.kernels.matrix_recurrence.triton import Flags
from tests.kernels.interpreted import DEVICE, quicken_interpreter
from tests.kernels.recurrences import draw, results

# In the order of the operator.
TENSORS = ("q", "k", "v", "alpha", "beta", "blend", "written", "gate", "initial_state")
FLAGS = Flags(
    linear_state=False,
    normalize=True,
    activate=False,
    self_gate=False,
    read_all=True,
    fast=False,
    eps=1e-12,
    bf16_checkpoints=False,
)


@pytest.fixture(autouse=True)
def few_operations(monkeypatch: pytest.MonkeyPatch) -> None:
    """The interpreter takes as long for a large tile as for a small one."""
    if DEVICE == "cpu":
        quicken_interpreter()
        monkeypatch.setattr(launches, "TILE_KEYS", 16)


def draw_small(length: int = 2, **differing: Any) -> dict[str, Tensor]:
    small = {"batch": 1, "heads": 1, "n_key": 16, "n_value": 16, "dtype": torch.float32}
    return draw(length, device=DEVICE, **{**small, **differing})


def operate(*, keep: bool = True, **tensors: Tensor) -> tuple[Tensor, Tensor]:
    """Output and final state of the operator, with nothing between the caller and it."""
    forward = torch.ops.elmanctl.matrix_recurrence_forward
    output, final_state, _ = forward(*(tensors.get(name) for name in TENSORS), *FLAGS, keep)
    return output, final_state


@pytest.mark.parametrize(("n_key", "backend"), [(32, "triton"), (24, "torch")])
def test_choice_of_a_backend_breaks_no_graph(n_key: int, backend: str) -> None:
    def add_choice(x: Tensor) -> Tensor:
        chosen = choose_backend("auto", n_key=n_key, n_value=32, device="cuda", dtype="bfloat16")
        return x + (chosen == backend)

    compiled = torch.compile(add_choice, backend="eager", fullgraph=True)
    assert compiled(torch.zeros(())) == 1


def test_operator_reads_tensors_that_a_compiler_laid_out_anew() -> None:
    arguments = draw_small(per_value=True)
    expected = results(operate, arguments)
    for name in ("q", "k", "v", "alpha", "gate"):
        apart = torch.empty(*arguments[name].shape, 2, device=DEVICE)[..., 0]
        arguments[name] = apart.copy_(arguments[name].detach()).requires_grad_()
    found = results(operate, arguments)
    assert all(torch.equal(found[name], expected[name]) for name in expected)
