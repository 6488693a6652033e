"""What torch is told of the kernels of the matrix recurrence: to trace, differentiate, compile."""

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from elmanctl.errors import InvalidConfiguration
from elmanctl.kernels.matrix_recurrence import launches, matrix_recurrence
from elmanctl.kernels.matrix_recurrence import triton as operators
from elmanctl.kernels.matrix_recurrence.sizes import choose_backend
from elmanctl.kernels.matrix_recurrence.triton import Flags, Tensors
from tests.kernels.interpreted import DEVICE
from tests.kernels.recurrences import draw, results, widen_tiles

FLAGS = Flags(
    linear_state=False,
    normalize=True,
    activate=False,
    self_gate=False,
    read_all=True,
    fast=False,
    eps=1e-12,
    checkpoint_dtype="fp32",
    backend="triton",
)


@pytest.fixture(autouse=True)
def few_operations(monkeypatch: pytest.MonkeyPatch) -> None:
    if DEVICE == "cpu":
        widen_tiles(monkeypatch)


def draw_small(length: int = 2, **differing: Any) -> dict[str, Any]:
    small = {"batch": 1, "heads": 1, "n_key": 16, "n_value": 16, "dtype": torch.float32}
    return draw(length, device=DEVICE, **{**small, **differing})


def operate(*, keep: bool = True, **tensors: Tensor) -> tuple[Tensor, Tensor]:
    """Output and final state of the operator, with nothing between the caller and it."""
    forward = torch.ops.elmanctl.matrix_recurrence_forward
    output, final_state, _ = forward(*(tensors.get(name) for name in Tensors._fields), *FLAGS, keep)
    return output, final_state


@pytest.mark.parametrize(("n_key", "backend"), [(32, "triton"), (20, "torch")])
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
    with pytest.raises(RuntimeError, match="no checkpoints for the backward pass"):
        output.sum().backward()


class Sizes(TorchDispatchMode):
    """Notes how many numbers each tensor has that is made while this is entered."""

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
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


FAR = {
    "q": [2**40, 2**26, 2**30, 1],
    "k": [2**40, 2**28, 16, 1],
    "v": [2**40, 48, 2**30, 1],
    "alpha": [2**40, 48, 2**30, 1],
    "beta": [2**40, 48, 2**30],
    "written": [2**40, 48, 2**30],
}


@pytest.mark.parametrize("name", FAR)
def test_heads_that_lie_too_far_apart_are_refused(name: str) -> None:
    arguments = {k: x.to("meta") for k, x in draw_small(17, heads=3, per_value=True).items()}
    arguments["written"] = torch.ones(1, 17, 3, dtype=torch.bool, device="meta")
    x = arguments[name]
    arguments[name] = torch.empty_strided(x.shape, FAR[name], dtype=x.dtype, device="meta")
    with pytest.raises(InvalidConfiguration, match=f"^{name} has strides .* in 32 bits"):
        matrix_recurrence(**arguments, backend="triton", tanh="exact")


def test_sequences_and_positions_may_lie_further_apart_than_32_bits_count(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    # Strides that fit into 32 bits, while two of them do not: both of batches and of segments.
    strides = (2**31 - 2**20, 2**30 + 64, 16, 1)
    # A product that wraps around ends up before the first element, in memory of ours.
    first = 2**31
    for module in (launches, operators):
        monkeypatch.setattr(module, "CHECKPOINT_EVERY", 2)
    arguments = draw_small(3, batch=3, n_value=8, per_value=True, blend=True)
    expected = results(operate, arguments)
    size = 4 * (first + 2**32 + 2**31 + 2**20)
    if DEVICE == "cpu":  # hardly a page of it is ever touched
        memory = torch.from_file(str(tmp_path / "sparse"), shared=True, size=size, dtype=torch.int8)
    else:
        memory = torch.empty(size, dtype=torch.int8, device=DEVICE)
    memory = memory.view(torch.float32)
    for index, (name, x) in enumerate(arguments.items()):
        if name != "initial_state":
            view = memory.as_strided(x.shape, strides[: x.ndim], first + 16 * index)
            arguments[name] = view.copy_(x.detach()).requires_grad_()
    found = results(operate, arguments)
    assert all(torch.equal(found[name], expected[name]) for name in expected)


@pytest.mark.skipif(DEVICE == "cuda", reason="kernels are compiled where there is a GPU")
def test_bfloat16_has_the_exact_tanh_in_the_interpreter_and_no_fast_one() -> None:
    arguments = draw_small(dtype=torch.bfloat16)
    chosen, _ = matrix_recurrence(**arguments, backend="triton")
    exact, _ = matrix_recurrence(**arguments, backend="triton", tanh="exact")
    assert torch.equal(chosen, exact)
    with pytest.raises(InvalidConfiguration, match="interpreter has no fast tanh"):
        matrix_recurrence(**arguments, backend="triton", tanh="fast")


@pytest.mark.parametrize(
    ("dtype", "autocast", "fast"),
    [
        (torch.float32, False, False),
        (torch.float32, True, True),
        (torch.bfloat16, False, True),
        (torch.bfloat16, True, True),
    ],
)
def test_tanh_is_fast_where_its_arguments_come_from_16_bits(
    monkeypatch: pytest.MonkeyPatch, dtype: torch.dtype, autocast: bool, fast: bool
) -> None:
    asked = []

    def note(tensors: Tensors, flags: Flags) -> tuple[Any, ...]:
        asked.append(flags.fast)
        return tensors[:2]

    monkeypatch.setattr(operators, "triton_matrix_recurrence", note)
    monkeypatch.setattr(operators, "IS_INTERPRETED", False)
    arguments = draw_small(dtype=dtype)
    with torch.autocast(DEVICE, dtype=torch.bfloat16, enabled=autocast):
        for tanh in ("auto", "exact", "fast"):
            matrix_recurrence(**arguments, backend="triton", tanh=tanh)
    assert asked == [fast, False, True]


def operands(arguments: dict[str, Tensor], *, keep: bool) -> tuple[Any, ...]:
    return (*(arguments.get(name) for name in Tensors._fields), *FLAGS, keep)


@pytest.mark.parametrize("keep", [True, False])
def test_torch_finds_no_fault_with_the_forward_operator(keep: bool) -> None:
    arguments = draw_small(n_value=8, per_value=True)
    if not keep:
        arguments = {name: x.detach() for name, x in arguments.items()}
    found = torch.library.opcheck(
        torch.ops.elmanctl.matrix_recurrence_forward.default, operands(arguments, keep=keep)
    )
    assert set(found.values()) == {"SUCCESS"} and len(found) == 4


def test_torch_finds_no_fault_with_the_backward_operator() -> None:
    arguments = {name: x.detach() for name, x in draw_small(n_value=32).items()}
    forward = torch.ops.elmanctl.matrix_recurrence_forward
    output, final_state, checkpoints = forward(*operands(arguments, keep=True))
    given = (output, final_state, checkpoints, *operands(arguments, keep=True)[:-1])
    found = torch.library.opcheck(torch.ops.elmanctl.matrix_recurrence_backward.default, given)
    assert set(found.values()) == {"SUCCESS"} and len(found) == 4


class Layer(torch.nn.Module):
    """What models do around the recurrence: one projection for all that it is given, and a sum."""

    def __init__(self) -> None:
        super().__init__()
        self.widths = [32, 32, 16, 16, 2]
        self.project = torch.nn.Linear(8, 1 + sum(self.widths))
        self.out = torch.nn.Linear(16, 8)

    def forward(self, x: Tensor) -> Tensor:
        q, k, v, gate, score = self.project(x)[..., 1:].split(self.widths, -1)
        q, k, v, gate = (part.unflatten(-1, (2, -1)) for part in (q, k, v, gate))
        read_out, state = matrix_recurrence(
            q, k.tanh(), v, score.sigmoid(), gate, backend="triton", tanh="exact"
        )
        return self.out(read_out.flatten(-2)) + state.square().mean()


def differentiate(layer: Any, x: Tensor) -> list[Tensor]:
    output = layer(x)
    return [output.detach(), *torch.autograd.grad(output.square().sum(), list(layer.parameters()))]


@pytest.mark.parametrize("compiler", ["aot_eager"])  # inductor needs a C++ compiler as well
def test_compiled_layer_is_one_graph_and_computes_the_same(compiler: str) -> None:
    torch.manual_seed(0)
    layer = Layer().to(DEVICE)
    x = torch.randn(1, 3, 8, device=DEVICE)
    expected = differentiate(layer, x)
    compiled = torch.compile(layer, backend=compiler, fullgraph=True)
    for found, right in zip(differentiate(compiled, x), expected, strict=True):
        torch.testing.assert_close(found, right, rtol=1e-5, atol=1e-6)
