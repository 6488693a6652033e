"""What torch is told of the kernels of the matrix recurrence: to trace, differentiate, compile."""

from typing import Any

import pytest
import torch
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

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


def test_gradient_for_which_nothing_was_kept_is_refused() -> None:
    output, _ = operate(**draw_small(), keep=False)
    with pytest.raises(RuntimeError, match="no states were kept for a gradient"):
        output.sum().backward()


class Sizes(TorchDispatchMode):
    """Notes how many numbers each tensor has that is made while this is entered."""

    def __init__(self) -> None:
        super().__init__()
        self.seen: list[int] = []

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Any = None
    ) -> Any:
        made = func(*args, **(kwargs or {}))
        self.seen += [x.numel() for x in tree_leaves(made) if isinstance(x, Tensor)]
        return made


@pytest.mark.parametrize("lost", ["output", "final_state"])
def test_backward_pass_makes_nothing_as_large_as_the_checkpoints(lost: str) -> None:
    with FakeTensorMode():
        arguments = draw_small(160, n_key=64, n_value=64)
        output, final_state = operate(**arguments)
        kept = 10 * final_state.numel()
        total = (final_state if lost == "output" else output).sum()
        with Sizes() as sizes:
            total.backward()
    assert arguments["q"].numel() in sizes.seen
    assert max(sizes.seen) < kept
