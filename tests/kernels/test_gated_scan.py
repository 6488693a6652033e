"""MinGRU and MinLSTM from scores to states: plain torch, and the Triton kernels held to float64."""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import pytest
import torch
from torch import Tensor

from elmanctl.bench.floors import gated_scan_counts
from elmanctl.bench.size import Size
from elmanctl.errors import EnvironmentNotReady, InvalidConfiguration
from elmanctl.kernels import minimal_scan
from elmanctl.kernels.minimal_scan import gated_scan, sizes, triton, triton_kernels
from elmanctl.kernels.minimal_scan.naive import naive_gated_scan
from elmanctl.kernels.minimal_scan.sizes import (
    ENOUGH_WARPS,
    LARGEST_STRIDE,
    SCORES,
    Tile,
    alignment,
    choose_tile,
    count_programs,
)
from tests.kernels.interpreted import DEVICE, poison_undefined, quicken_interpreter

TOLERANCES = {torch.float32: 2e-6, torch.bfloat16: 6e-3}
SMALLEST, WIDE, NARROW, LONG = Tile(16, 2, 1), Tile(64, 4, 4), Tile(32, 4, 4), Tile(16, 16, 8)

FENCE = 1024
"""Numbers before and after each result, more than a tile can reach beyond it."""

CELL = pytest.mark.parametrize("cell", SCORES)


@dataclass(frozen=True)
class Case:
    """Sizes, and what is unusual about the arguments."""

    batch: int
    length: int
    width: int
    tile: Tile = SMALLEST
    dtype: torch.dtype = torch.float32
    out: torch.dtype | None = None
    has_initial: bool = True


# Tiles of two segments are the smallest that have all there is to get wrong, and quick; the ones
# that are launched follow, full and not.
CASES = {
    "one position": Case(1, 1, 3),
    "a full segment": Case(1, 16, 16),
    "one position in the second segment": Case(1, 17, 16),
    "three tiles, the last not full": Case(1, 79, 5),
    "two sequences of two blocks": Case(2, 20, 17),
    "no state given": Case(1, 20, 3, has_initial=False),
    "bfloat16": Case(1, 37, 7, dtype=torch.bfloat16),
    "bfloat16 to float32": Case(1, 20, 16, dtype=torch.bfloat16, out=torch.float32),
    "wide, full": Case(1, 64, 64, WIDE, torch.bfloat16),
    "wide, not full": Case(1, 70, 65, WIDE, torch.bfloat16),
    "narrow, full": Case(1, 128, 32, NARROW),
    "long, full": Case(1, 256, 16, LONG, torch.bfloat16),
    "long, not full": Case(1, 300, 15, LONG),
}


def draw(case: Case, cell: str) -> dict[str, Any]:
    """Arguments by name, as large as those of trained models."""
    generator = torch.Generator().manual_seed(case.length)
    shape = (case.batch, case.length, SCORES[cell] * case.width)
    scores = 3 * torch.randn(shape, generator=generator)
    arguments = {"scores": scores.to(DEVICE, case.dtype)}
    if case.has_initial:
        state = torch.randn(case.batch, case.width, generator=generator)
        arguments["initial_state"] = state.to(DEVICE)
    return arguments


def results(function: Any, arguments: dict[str, Tensor], **options: Any) -> dict[str, Tensor]:
    """States, last state, and all gradients of a weighted sum of both."""
    leaves = {name: x.detach().requires_grad_() for name, x in arguments.items()}
    states, last = function(**leaves, **options)
    generator = torch.Generator().manual_seed(1)
    total: Any = 0.0
    for x in (states, last):
        weights = torch.randn(x.shape, generator=generator).to(x.device, torch.bfloat16)
        total = total + (x * weights.to(x.dtype)).sum()
    gradients = torch.autograd.grad(total, list(leaves.values()))
    found = {f"d_{name}": d for name, d in zip(leaves, gradients, strict=True)}
    return {"states": states.detach(), "last": last.detach(), **found}


def truth(arguments: dict[str, Tensor], cell: str) -> dict[str, Tensor]:
    exact = {name: x.double() for name, x in arguments.items()}
    return results(naive_gated_scan, exact, cell=cell)


def assert_close(found: dict[str, Tensor], expected: dict[str, Tensor]) -> None:
    assert found.keys() == expected.keys()
    for name, exact in expected.items():
        error = (found[name].double() - exact).norm() / exact.norm()
        assert error < TOLERANCES[found[name].dtype], f"{name}: {error:.1e}"


@pytest.fixture(autouse=True)
def interpreter(monkeypatch: pytest.MonkeyPatch) -> None:
    if DEVICE == "cpu":
        quicken_interpreter()
        poison_undefined(monkeypatch)


@pytest.fixture
def smallest_tiles(monkeypatch: pytest.MonkeyPatch) -> None:
    """The interpreter works whole blocks of channels out, however few there are."""
    if DEVICE == "cpu":
        monkeypatch.setattr(sizes, "choose_tile", lambda *_, **__: SMALLEST)


@CELL
@pytest.mark.parametrize("name", CASES)
def test_kernels_compute_what_the_loop_in_float64_does(
    cell: str, name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    case = CASES[name]
    monkeypatch.setattr(sizes, "choose_tile", lambda *_, **__: case.tile)
    arguments = draw(case, cell)
    found = results(gated_scan, arguments, cell=cell, dtype=case.out, backend="triton")
    dtypes = {name: x.dtype for name, x in found.items()}
    given = {"d_initial_state": torch.float32} if case.has_initial else {}
    expected = {"states": case.out or case.dtype, "last": torch.float32, "d_scores": case.dtype}
    assert dtypes == expected | given
    assert_close(found, truth(arguments, cell))


@CELL
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16], ids=str)
def test_plain_torch_computes_what_the_loop_in_float64_does(
    cell: str, dtype: torch.dtype, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(TOLERANCES, torch.float64, 1e-13)
    arguments = draw(Case(2, 70, 5), cell)
    arguments["scores"] = arguments["scores"].to(dtype)
    if dtype == torch.float64:
        arguments["initial_state"] = arguments["initial_state"].double()
    found = results(gated_scan, arguments, cell=cell, backend="torch")
    assert found["states"].dtype == dtype
    assert_close(found, truth(arguments, cell))


@CELL
def test_gradients_are_those_of_finite_differences(cell: str) -> None:
    # Differences across zero would see both branches of phi.
    scores = draw(Case(1, 5, 2), cell)["scores"].double()
    scores = scores + 0.1 * scores.sign()
    state = torch.rand(1, 2, dtype=torch.float64, device=DEVICE)

    def run(scores: Tensor, state: Tensor) -> tuple[Tensor, Tensor]:
        return gated_scan(scores, cell, state, backend="torch")

    assert torch.autograd.gradcheck(run, (scores.requires_grad_(), state.requires_grad_()))


# phi(-500) is 1 / exp(500), and the inverse of infinity is what it should be.
@pytest.mark.filterwarnings("ignore:overflow encountered in exp2:RuntimeWarning")
@pytest.mark.usefixtures("smallest_tiles")
@CELL
@pytest.mark.parametrize("size", [80.0, 500.0])
def test_saturated_gates_give_finite_states_and_gradients(cell: str, size: float) -> None:
    case = Case(1, 33, 16)
    signs = draw(case, cell)["scores"].sign()
    arguments = {**draw(case, cell), "scores": size * signs}
    found = results(gated_scan, arguments, cell=cell, backend="triton")
    assert all(x.isfinite().all() for x in found.values())
    expected = truth(arguments, cell)
    assert_close(found, expected)


@pytest.mark.usefixtures("smallest_tiles")
def test_gates_of_minlstm_compare_where_both_sigmoids_round_off() -> None:
    lead = torch.tensor([-3.0, -0.5, 0.5, 3.0], device=DEVICE)
    for base in (-300.0, -90.0, 20.0):
        forget = base + lead.clamp(min=0)
        write = base - lead.clamp(max=0)
        scores = torch.cat((torch.ones_like(lead), forget, write)).view(1, 1, -1)
        states, _ = gated_scan(scores, "minlstm", backend="triton")
        expected = 1.5 * torch.sigmoid(-(lead if base < 0 else torch.zeros_like(lead)))
        torch.testing.assert_close(states[0, 0], expected, rtol=1e-5, atol=0.0)


def test_runs_of_segments_join_in_any_grouping() -> None:
    # The interpreter joins one segment after another, a GPU also runs of several.
    join = triton_kernels._combine.fn
    maps = ((0.5, 2.0), (0.25, -3.0), (4.0, 1.5), (0.125, 7.0))
    a, b, c, d = ((product, total, 1.0, 0.0) for product, total in maps)
    in_turn = join(*join(*join(*a, *b), *c), *d)
    assert join(*join(*a, *b), *join(*c, *d)) == in_turn
    assert join(*a, *join(*b, *join(*c, *d))) == in_turn
    # After all four, and before the last, of a state of 8.
    after = before = 8.0
    for product, total in maps:
        before, after = after, product * after + total
    product, total, part, start = in_turn
    assert (product * 8.0 + total, part * 8.0 + start) == (after, before)


def strided(kind: str, scores: Tensor) -> Tensor:
    """Equal scores in other places."""
    if kind == "time first":
        return scores.transpose(0, 1).contiguous().transpose(0, 1)
    if kind == "columns of a wider tensor":
        return torch.nn.functional.pad(scores, (3, 5))[..., 3:-5]
    if kind == "every second position":
        return scores.repeat_interleave(2, dim=1)[:, ::2]
    return scores[:1].expand(scores.shape)


@pytest.mark.usefixtures("smallest_tiles")
@pytest.mark.parametrize(
    "kind",
    ["time first", "columns of a wider tensor", "every second position", "one sequence for all"],
)
def test_scores_are_read_in_any_strides(kind: str) -> None:
    arguments = draw(Case(2, 18, 4, dtype=torch.bfloat16), "mingru")
    arguments["scores"] = strided("one sequence for all", arguments["scores"]).contiguous()
    arguments["initial_state"] = arguments["initial_state"].T.contiguous().T
    expected = results(gated_scan, arguments, cell="mingru", backend="triton")
    moved = strided(kind, arguments["scores"])
    assert moved.stride() != arguments["scores"].stride()
    found = results(gated_scan, {**arguments, "scores": moved}, cell="mingru", backend="triton")
    assert all(torch.equal(found[name], expected[name]) for name in expected)


@pytest.mark.usefixtures("smallest_tiles")
@CELL
def test_result_is_written_everywhere_and_nowhere_else_and_the_same_each_time(
    cell: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    arguments = draw(Case(1, 35, 17, dtype=torch.bfloat16), cell)
    once = results(gated_scan, arguments, cell=cell, backend="triton")
    new_empty = Tensor.new_empty
    fences: list[Tensor] = []

    def fenced(self: Tensor, *size: Any, **options: Any) -> Tensor:
        shape = torch.Size(size if isinstance(size[0], int) else size[0])
        whole = new_empty(self, shape.numel() + 2 * FENCE, **options).fill_(7.0)
        fences.extend((whole[:FENCE], whole[-FENCE:]))
        return whole[FENCE:-FENCE].fill_(float("nan")).view(shape)

    monkeypatch.setattr(Tensor, "new_empty", fenced)
    again = results(gated_scan, arguments, cell=cell, backend="triton")
    assert all(x.isfinite().all() for x in again.values())
    assert all(torch.equal(once[name], again[name]) for name in once)
    assert len(fences) >= 10 and all((fence == 7.0).all() for fence in fences)


@pytest.mark.usefixtures("smallest_tiles")
@pytest.mark.parametrize("reached", ["states", "last", "sum of states"])
def test_gradient_may_come_from_either_result_alone(reached: str) -> None:
    arguments = draw(Case(1, 18, 3), "minlstm")
    found = []
    for backend in ("triton", "torch"):
        leaves = [x.detach().requires_grad_() for x in arguments.values()]
        states, last = gated_scan(leaves[0], "minlstm", leaves[1], backend=backend)
        total = {"states": states.square(), "last": last.square(), "sum of states": states}
        found.append(torch.autograd.grad(total[reached].sum(), leaves))
    for one, other in zip(*found, strict=True):
        assert (one - other).norm() < 2e-6 * other.norm()


@pytest.mark.usefixtures("smallest_tiles")
def test_sequence_continues_from_the_state_after_a_part_of_it() -> None:
    scores = draw(Case(1, 40, 3), "mingru")["scores"]
    whole, end = gated_scan(scores, "mingru", backend="triton")
    first, state = gated_scan(scores[:, :21], "mingru", backend="triton")
    second, last = gated_scan(scores[:, 21:], "mingru", state, backend="triton")
    torch.testing.assert_close(torch.cat((first, second), dim=1), whole)
    torch.testing.assert_close(last, end)


@pytest.mark.usefixtures("smallest_tiles")
def test_autocast_changes_nothing() -> None:
    arguments = draw(Case(1, 18, 3), "mingru")
    expected = results(gated_scan, arguments, cell="mingru", backend="triton")
    with torch.autocast(DEVICE, dtype=torch.bfloat16):
        found = results(gated_scan, arguments, cell="mingru", backend="triton")
    assert all(torch.equal(found[name], expected[name]) for name in expected)


@pytest.mark.usefixtures("smallest_tiles")
def test_second_derivatives_are_refused() -> None:
    scores = draw(Case(1, 3, 2), "mingru")["scores"].requires_grad_()
    states, _ = gated_scan(scores, "mingru", backend="triton")
    (gradient,) = torch.autograd.grad(states.square().sum(), scores, create_graph=True)
    with pytest.raises(RuntimeError, match="autograd"):
        gradient.sum().backward()


@pytest.fixture
def fresh_compiler() -> Iterator[None]:
    torch._dynamo.reset()
    yield
    torch._dynamo.reset()


@pytest.mark.usefixtures("smallest_tiles", "fresh_compiler")
@CELL
def test_torch_compiles_it_as_one_graph(cell: str) -> None:
    arguments = draw(Case(1, 18, 3, dtype=torch.bfloat16), cell)
    graphs = []

    def compiler(graph: Any, inputs: Any) -> Any:
        graphs.append(graph)
        return torch._dynamo.lookup_backend("aot_eager")(graph, inputs)

    compiled = torch.compile(gated_scan, fullgraph=True, backend=compiler)
    expected = results(gated_scan, arguments, cell=cell, backend="triton")
    found = results(compiled, arguments, cell=cell, backend="triton")
    assert len(graphs) == 1
    assert all(torch.equal(found[name], expected[name]) for name in expected)


@pytest.mark.usefixtures("smallest_tiles")
def test_operators_are_what_torch_is_told_of_them() -> None:
    arguments = draw(Case(1, 2, 3, dtype=torch.bfloat16), "mingru")
    scores, state = (x.requires_grad_() for x in arguments.values())
    called = (scores, state, "mingru", torch.float32)
    torch.library.opcheck(triton._gated_scan, called)
    _, _, checkpoints = triton._gated_scan(*called)
    d_states = torch.ones(1, 2, 3, dtype=torch.bfloat16, device=DEVICE)
    given = (scores.detach(), checkpoints.detach(), d_states, None, "mingru")
    torch.library.opcheck(triton._gated_scan_backward, given)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"cell": "minigru"}, "no cell `minigru`; it has: mingru, minlstm"),
        ({"backend": "tritn"}, "no backend `tritn`; it has: auto, triton, torch"),
        ({"scores": torch.zeros(1, 2, 5)}, r"must be \[B, T, 2 D\] .*, not \[1, 2, 5\]"),
        ({"scores": torch.zeros(2, 4)}, r"not \[2, 4\]"),
        ({"scores": torch.zeros(1, 0, 4)}, "no empty axis"),
        (
            {"scores": torch.zeros(1, 2, 4, dtype=torch.int32)},
            "floating-point tensor, not torch.int",
        ),
        ({"initial_state": torch.zeros(1, 3)}, r"initial_state has shape \[1, 3\]"),
        ({"initial_state": torch.zeros(1, 2).double()}, "initial_state is torch.float64"),
        ({"initial_state": torch.zeros(1, 2, device="meta")}, "initial_state is on meta"),
        (
            {"scores": torch.zeros(1, 2, 4).half()},
            "bfloat16 and float32, and scores is torch.float16",
        ),
        ({"dtype": torch.float64}, "bfloat16 and float32, and the result is torch.float64"),
        ({"scores": torch.zeros(1, 4, 2).mT}, "contiguous last axis, not stride 2"),
        ({"scores": torch.empty_strided((1, 2, 4), (0, LARGEST_STRIDE, 1))}, "fewer than 4194304"),
    ],
    ids=lambda value: None if isinstance(value, str) else "-".join(value),
)
def test_what_does_not_fit_is_refused_by_name(changes: dict[str, Any], message: str) -> None:
    arguments = {"scores": torch.zeros(1, 2, 4), "cell": "mingru", "backend": "triton", **changes}
    for name, value in arguments.items():
        if isinstance(value, Tensor) and value.device.type == "cpu":
            arguments[name] = value.to(DEVICE)
    with pytest.raises(InvalidConfiguration, match=message):
        gated_scan(**arguments)


def test_nearest_name_is_a_hint() -> None:
    with pytest.raises(InvalidConfiguration) as refused:
        gated_scan(torch.zeros(1, 2, 4), "minigru")
    assert refused.value.hint == "did you mean `mingru`?"


def test_kernels_refuse_a_cpu_unless_they_are_interpreted(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(triton, "INTERPRETED", False)
    with pytest.raises(InvalidConfiguration, match="on CUDA devices, not on cpu") as refused:
        gated_scan(torch.zeros(1, 2, 4), "mingru", backend="triton")
    assert refused.value.hint == "use backend `torch`"


def test_kernels_without_triton_are_refused_and_auto_is_torch(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    scores = torch.zeros(1, 2, 4)
    monkeypatch.setattr(minimal_scan, "_HAS_TRITON", False)
    with pytest.raises(EnvironmentNotReady, match="triton is not installed"):
        gated_scan(scores, "mingru", backend="triton")
    assert gated_scan(scores, "mingru")[0].shape == (1, 2, 2)


def test_auto_is_triton_where_that_computes(monkeypatch: pytest.MonkeyPatch) -> None:
    called = []

    def scan(*_: Any) -> tuple[int, int]:
        called.append(True)
        return 0, 0

    monkeypatch.setattr(Tensor, "is_cuda", True)
    monkeypatch.setattr(triton, "triton_gated_scan", scan)
    scores = torch.zeros(1, 2, 4)
    for asked, options, is_called in (
        (scores, {}, True),
        (scores.bfloat16(), {}, True),
        (scores.half(), {}, False),
        (scores.double(), {}, False),
        (scores, {"dtype": torch.float16}, False),
        (torch.zeros(1, 4, 2).mT, {}, False),
        (scores, {"backend": "torch"}, False),
    ):
        called.clear()
        gated_scan(asked, "mingru", **options)
        assert bool(called) == is_called, (asked.dtype, options)


def test_tiles_keep_a_gpu_busy_as_far_as_there_are_channels() -> None:
    study: dict[str, Any] = {"is_backward": False, "itemsize": 2}
    assert choose_tile(16, 1920, **study) == Tile(64, 4, 4)
    assert choose_tile(4, 1920, **study) == Tile(32, 8, 8)
    assert choose_tile(1, 1920, **study) == Tile(16, 16, 8)
    assert choose_tile(16, 1920, is_backward=True, itemsize=2) == Tile(32, 4, 4)
    assert choose_tile(16, 1920, is_backward=False, itemsize=4) == Tile(32, 4, 4)
    for width in range(64, 8192, 64):
        tile = choose_tile(8, width, **study)
        warps = count_programs(tile, 8, width) * tile.warps
        assert warps >= ENOUGH_WARPS or tile == Tile(16, 16, 8)


@pytest.mark.parametrize(
    ("stride", "divides"), [(0, 16), (1, 1), (6, 2), (8, 8), (48, 16), (3840, 16), (3844, 4)]
)
def test_alignment_is_the_power_of_two_that_divides(stride: int, divides: int) -> None:
    assert alignment(stride) == divides


@CELL
@pytest.mark.parametrize("is_backward", [False, True])
def test_bytes_moved_are_those_of_all_tensors(cell: str, is_backward: bool) -> None:
    batch, length, width = 2, 64, 5
    scores = torch.empty(batch, length, SCORES[cell] * width, dtype=torch.bfloat16)
    states, _, checkpoints = triton._results(scores, cell, torch.bfloat16)
    moved = [scores, states, checkpoints, *([scores] if is_backward else [])]
    total = sum(x.numel() * x.element_size() for x in moved)
    counts = gated_scan_counts(SCORES[cell])
    size = Size(batch=batch, length=length, heads=width)
    work = counts.backward(size, 2) if is_backward else counts.forward(size, 2)
    assert total == work.moved_bytes


GPU = (
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device"),
)


@pytest.mark.parametrize(
    ("batch", "length", "width"),
    [
        pytest.param(16, 512, 1920, marks=GPU),
        pytest.param(4, 2048, 1920, marks=GPU),
        pytest.param(1, 8192, 1920, marks=GPU),
        pytest.param(3, 500, 1111, marks=GPU),
    ],
)
@CELL
@pytest.mark.parametrize("dtype", TOLERANCES, ids=str)
def test_kernels_compute_what_plain_torch_does_at_the_sizes_of_the_study(
    batch: int, length: int, width: int, cell: str, dtype: torch.dtype
) -> None:
    arguments = draw(Case(batch, length, width, dtype=dtype), cell)
    exact = {name: x.double() for name, x in arguments.items()}
    expected = results(gated_scan, exact, cell=cell, backend="torch")
    assert_close(results(gated_scan, arguments, cell=cell, backend="triton"), expected)
