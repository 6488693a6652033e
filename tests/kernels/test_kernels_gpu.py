"""Every implementation of every operation on a GPU; its entry in the registry is all it takes.

Outputs and gradients against float64, at every size of the entry and in every dtype.  What we wrote
ourselves also gives equal bits twice, can be captured in a CUDA graph with its backward pass, and
is one graph to `torch.compile`.
"""

from collections.abc import Callable, Mapping
from typing import Any

import pytest
import torch
from torch import Tensor

from elmanctl.bench.operation import Draw, Operation, Path
from elmanctl.bench.operations import OPERATIONS
from elmanctl.bench.selftest import (
    check,
    differentiable,
    draw_inputs,
    leaf,
    relative_error,
    results,
)
from elmanctl.bench.size import Size

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device"),
    # What other packages and the compiler warn of is theirs.
    pytest.mark.filterwarnings("ignore"),
]

CUDA = torch.device("cuda")
MAIN_DTYPE = "bfloat16"

MEASURED = [
    pytest.param(operation, path, size, id=f"{operation.name}-{path.name}-{size.label}")
    for operation in OPERATIONS
    for path in operation.paths
    for size in operation.sizes[:1]
    if path.name != "torch"
]
OURS = [
    pytest.param(operation, path, id=f"{operation.name}-{path.name}")
    for operation in OPERATIONS
    for path in operation.paths
    if path.name.startswith("triton")
]
SIZES = [
    pytest.param(
        operation, path, size, dtype, id=f"{operation.name}-{path.name}-{size.label}-{dtype}"
    )
    for operation in OPERATIONS
    for path in operation.paths
    for size in operation.test_sizes
    for dtype in path.tolerances
]


def skip_without(path: Path) -> None:
    """Skip what is not installed beside this GPU."""
    fault = path.unavailable_reason("cuda")
    if fault:
        pytest.skip(fault)


@pytest.mark.parametrize(("operation", "path", "size", "dtype"), SIZES)
def test_outputs_and_gradients_are_those_of_float64(
    operation: Operation, path: Path, size: Size, dtype: str
) -> None:
    skip_without(path)
    found = check(operation, path, size, dtype, CUDA, with_times=False)
    if found.status == "not run":
        pytest.skip(str(found.reason))
    assert not found.is_wrong, found


def pair(operation: Operation, path: Path) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
    """Two draws of the same size, the second for what must not depend on the first."""
    size = operation.test_sizes[0]
    first = draw_inputs(operation, size, MAIN_DTYPE, CUDA)
    draw = Draw(1, dtype=getattr(torch, MAIN_DTYPE), device=CUDA)
    second = {name: leaf(x) for name, x in operation.draw(size, draw, True).items()}
    return first, second


def computed(path: Path, inputs: dict[str, Tensor]) -> dict[str, Tensor]:
    """Outputs and gradients."""
    return results(path.run(**inputs), inputs, differentiable(inputs))


@pytest.mark.parametrize(("operation", "path"), OURS)
def test_two_runs_give_equal_bits(operation: Operation, path: Path) -> None:
    skip_without(path)
    inputs, other = pair(operation, path)
    first = {name: x.clone() for name, x in computed(path, inputs).items()}
    computed(path, other)
    second = computed(path, inputs)
    for name, x in first.items():
        assert torch.equal(x, second[name]), name
        assert x.isfinite().all(), name


@pytest.mark.parametrize(("operation", "path"), OURS)
def test_forward_and_backward_can_be_captured_and_replayed_on_other_numbers(
    operation: Operation, path: Path
) -> None:
    skip_without(path)
    inputs, other = pair(operation, path)
    names = differentiable(inputs)
    weights = [torch.randn_like(x) for x in path.run(**inputs).values()]

    def step(given: dict[str, Tensor]) -> dict[str, Tensor]:
        made = path.run(**given)
        grads = torch.autograd.grad(list(made.values()), [given[n] for n in names], weights)
        return {**made, **{f"d_{n}": x for n, x in zip(names, grads, strict=True)}}

    expected = {name: x.detach().clone() for name, x in step(other).items()}
    stream = torch.cuda.Stream()
    stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(stream):
        for _ in range(3):
            step(inputs)
    torch.cuda.current_stream().wait_stream(stream)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        captured = step(inputs)
    with torch.no_grad():
        for name, x in inputs.items():
            x.copy_(other[name])
    graph.replay()
    torch.cuda.synchronize()
    for name, x in expected.items():
        assert torch.equal(captured[name], x), name


@pytest.mark.parametrize(("operation", "path"), OURS)
def test_compiled_as_one_graph_it_gives_what_it_gives(operation: Operation, path: Path) -> None:
    skip_without(path)
    inputs, _ = pair(operation, path)
    expected = computed(path, inputs)
    torch.compiler.reset()

    def function(**given: Tensor) -> Mapping[str, Tensor]:
        # Something before and after it, for the graph to be more than the operation.
        shifted = {n: x * 1.0 if x.requires_grad else x for n, x in given.items()}
        return {name: x + 0.0 for name, x in path.run(**shifted).items()}

    compiled: Callable[..., Any] = torch.compile(function, fullgraph=True, dynamic=False)
    found = results(compiled(**inputs), inputs, differentiable(inputs))
    allowed = path.tolerances[MAIN_DTYPE]
    for name, x in expected.items():
        assert relative_error(found[name], x) <= allowed, name


@pytest.mark.parametrize(("operation", "path", "size"), MEASURED)
def test_size_of_a_whole_model_gives_numbers(operation: Operation, path: Path, size: Size) -> None:
    skip_without(path)
    inputs = draw_inputs(operation, size, operation.dtype, CUDA, with_state=False)
    output = path.run(**inputs)["output"]
    assert output.isfinite().all()
    if path.gradient_unavailable() is None:
        wanted = [inputs[name] for name in differentiable(inputs)]
        for gradient in torch.autograd.grad(output, wanted, torch.randn_like(output)):
            assert gradient.isfinite().all()
            assert gradient.abs().amax() > 0
