"""The scan of MinGRU and MinLSTM as Triton compiles it, executed, against the float64 loop."""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import pytest
import torch
from torch import Tensor

from elmanctl.kernels.launch import Launch
from elmanctl.kernels.minimal_scan.naive import naive_gated_scan
from elmanctl.kernels.minimal_scan.sizes import SCORES
from elmanctl.kernels.minimal_scan.triton import triton_gated_scan
from tests.kernels.machines import Machines, compiling, launches_taken_over
from tests.kernels.tritons import ASIDE, PINNED
from tests.long import LONG

ARCHITECTURE = 90
RESULTS = {"p_hidden", "p_checkpoints", "p_final", "p_d_scores", "p_d_initial"}
# Root mean square of the error over that of the truth.
TOLERANCES = {torch.float32: 2e-6, torch.bfloat16: 6e-3}


@dataclass(frozen=True)
class Case:
    """Sizes, and what is unusual about the arguments."""

    batch: int
    length: int
    width: int
    dtype: torch.dtype
    has_initial: bool = False


CASES = {
    "full-bf16": Case(2, 128, 64, torch.bfloat16),
    "ragged-fp32": Case(1, 45, 40, torch.float32, has_initial=True),
}
# Of other Tritons than the pinned one each cell and each case, but not each with each.
RUNS = [
    *((PINNED, cell, name) for cell in SCORES for name in CASES),
    *(
        (version, cell, name)
        for version in ASIDE
        for place, cell in enumerate(SCORES)
        for other, name in enumerate(CASES)
        if LONG or place == other
    ),
]


def draw(case: Case, cell: str) -> dict[str, Tensor]:
    generator = torch.Generator().manual_seed(0)
    scores = 3 * torch.randn(
        case.batch, case.length, SCORES[cell] * case.width, generator=generator
    )
    arguments = {"scores": scores.to(case.dtype)}
    if case.has_initial:
        arguments["initial_state"] = torch.randn(case.batch, case.width, generator=generator)
    return arguments


def results(function: Any, arguments: dict[str, Tensor]) -> dict[str, Tensor]:
    """States, last state, and all gradients of a weighted sum of both."""
    leaves = {name: x.detach().requires_grad_() for name, x in arguments.items()}
    states, last = function(leaves["scores"], leaves.get("initial_state"))
    generator = torch.Generator().manual_seed(1)
    weights = [torch.randn(x.shape, generator=generator).bfloat16() for x in (states, last)]
    total = sum((x * w.to(x.dtype)).sum() for x, w in zip((states, last), weights, strict=True))
    gradients = torch.autograd.grad(total, list(leaves.values()))
    named = {f"d_{name}": d for name, d in zip(leaves, gradients, strict=True)}
    return {"states": states.detach(), "last": last.detach(), **named}


def computed(case: Case, cell: str) -> dict[str, Tensor]:
    """Results of the operators, whose launches a test has taken over."""
    return results(lambda x, h: triton_gated_scan(x, cell, h, case.dtype), draw(case, cell))


@pytest.fixture(scope="module")
def machines(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Machines]:
    with compiling(tmp_path_factory.mktemp("machines")) as made:
        for version, cell, name in RUNS:

            def expect(launch: Launch, *_: Any) -> None:
                made.expect(launch, ARCHITECTURE, versions=[version])  # noqa: B023 - called at once

            with launches_taken_over(expect):
                computed(CASES[name], cell)
        yield made


@pytest.mark.timeout(600)  # for the compiler, on a machine that has other work
@pytest.mark.parametrize(("version", "cell", "name"), RUNS)
def test_compiled_kernels_compute_states_and_gradients(
    machines: Machines, version: str, cell: str, name: str
) -> None:
    case, warps = CASES[name], []

    def execute(launch: Launch, grid: tuple[int, ...], arguments: dict[str, Any]) -> None:
        warps.append(launch.num_warps)
        empty = RESULTS & {*launch.pointers} - ({"p_checkpoints"} if len(warps) == 2 else set())
        machines.run(version, launch, ARCHITECTURE, grid, arguments, empty=empty)

    with launches_taken_over(execute):
        found = computed(case, cell)
    assert len(warps) == 2
    assert max(warps) > 1
    exact = {one: x.double() for one, x in draw(case, cell).items()}
    for one, x in results(lambda x, h: naive_gated_scan(x, cell, h), exact).items():
        error = (found[one].double() - x).norm() / x.norm()
        assert error < TOLERANCES[found[one].dtype], one
