"""The self-test finds what is wrong: it is tested on implementations that are."""

import math
from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor

from elmanctl.bench import selftest
from elmanctl.bench.operation import Operation, Path
from elmanctl.bench.operations import OPERATIONS
from elmanctl.bench.selftest import Check, check, check_all, draw_inputs, poisoned_memory
from elmanctl.errors import InvalidConfiguration

CPU = torch.device("cpu")
NAMED = {operation.name: operation for operation in OPERATIONS}

RUNNABLE = [
    (operation, path, dtype)
    for operation in OPERATIONS
    for path in operation.paths
    if path.unavailable_reason("cpu") is None
    for dtype in path.tolerances
]


def checked(operation: Operation, path: Path, dtype: str, **options: Any) -> Check:
    return check(operation, path, operation.tiny_sizes[0], dtype, CPU, with_times=False, **options)


@pytest.mark.parametrize(
    ("operation", "path", "dtype"), RUNNABLE, ids=lambda one: getattr(one, "name", one)
)
def test_implementation_that_runs_here_is_right(
    operation: Operation, path: Path, dtype: str
) -> None:
    found = checked(operation, path, dtype)
    assert found.status == "ok", found
    assert found.error is not None and found.allowed is not None
    # Rounding is seen, and so is the room that is left: neither is nothing.
    assert 0 < found.error <= found.allowed


def test_every_operation_has_a_path_that_runs_anywhere() -> None:
    names = {operation.name for operation, *_ in RUNNABLE}
    assert names == {operation.name for operation in OPERATIONS}
    for operation in OPERATIONS:
        assert operation.tiny_sizes and operation.test_sizes
        if operation.is_tested:
            assert operation.path("torch").unavailable_reason("cpu") is None


def test_names_of_operations_are_their_own() -> None:
    names = [operation.name for operation in OPERATIONS]
    assert len(set(names)) == len(names)


Spoil = Callable[[Mapping[str, Tensor]], Mapping[str, Tensor]]


def spoiled(operation: Operation, spoil: Spoil) -> Path:
    """The plain path with something done to its results."""
    plain = operation.path("torch")
    return replace(plain, run=lambda **inputs: spoil(plain.run(**inputs)))


class _GradientOff(torch.autograd.Function):
    """Hands x on; its gradient is a hundredth too large."""

    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        return x.clone()

    @staticmethod
    def backward(ctx: Any, d_x: Tensor) -> Tensor:
        return 1.01 * d_x


def _with_gradient_off(x: Tensor) -> Tensor:
    return _GradientOff.apply(x)  # type: ignore[no-untyped-call]


def _with_gradients_off(results: Mapping[str, Tensor]) -> Mapping[str, Tensor]:
    return {name: _with_gradient_off(x) for name, x in results.items()}


def _with_a_nan(output: Tensor) -> Tensor:
    return torch.where(output == output.max(), torch.nan, output)


def _late_zero(output: Tensor) -> Tensor:
    return torch.cat((output[:, :-1], 0 * output[:, -1:]), dim=1)


@pytest.mark.parametrize(
    ("spoil", "worst"),
    [
        (lambda r: {**r, "output": r["output"] + 1e-3 * r["output"].detach()}, "output"),
        (lambda r: {**r, "state": r["state"] + 1e-5 * r["state"].detach()}, "state"),
        (lambda r: {**r, "state": r["state"].mT}, None),
        (lambda r: {**r, "output": _late_zero(r["output"])}, None),
        (lambda r: {**r, "output": _with_a_nan(r["output"])}, None),
        (lambda r: {**r, "output": _with_gradient_off(r["output"])}, None),
        (lambda r: {**r, "output": r["output"] + torch.empty_like(r["output"])}, None),
    ],
    ids=["output", "state", "transposed", "last-missing", "nan", "gradient", "unwritten"],
)
def test_implementation_that_is_wrong_is_found(spoil: Spoil, worst: str | None) -> None:
    operation = NAMED["matrix_recurrence"]
    found = checked(operation, spoiled(operation, spoil), "float32")
    assert found.status == "wrong" and found.is_wrong, found
    if worst:
        assert found.worst == worst


def test_gradient_that_is_wrong_is_named_though_all_outputs_are_right() -> None:
    operation = NAMED["gated_scan:mingru"]
    found = checked(
        operation,
        spoiled(
            operation,
            _with_gradients_off,
        ),
        "float32",
    )
    assert found.is_wrong and (found.worst or "").startswith("d_")
    assert found.error == pytest.approx(0.01, rel=1e-3)


def test_error_that_is_no_number_is_the_worst_and_no_number_in_json() -> None:
    operation = NAMED["gated_scan:mingru"]
    found = checked(
        operation, spoiled(operation, lambda r: {**r, "output": r["output"] * torch.nan}), "float32"
    )
    assert found.error is not None and math.isnan(found.error)
    assert found.is_wrong and found.encode()["error"] is None


def test_implementation_that_raises_has_failed_and_says_how() -> None:
    operation = NAMED["gated_scan:mingru"]

    def broken(**inputs: Tensor) -> Mapping[str, Tensor]:
        raise RuntimeError("an illegal memory access was encountered")

    found = checked(operation, replace(operation.path("torch"), run=broken), "float32")
    assert (found.status, found.is_wrong) == ("failed", True)
    assert found.reason == "RuntimeError: an illegal memory access was encountered"


def test_implementation_that_refuses_a_size_is_not_run_and_not_wrong() -> None:
    operation = NAMED["gated_scan:mingru"]

    def strict(**inputs: Tensor) -> Mapping[str, Tensor]:
        raise InvalidConfiguration("no code for this size")

    found = checked(operation, replace(operation.path("torch"), run=strict), "float32")
    assert (found.status, found.is_wrong) == ("not run", False)
    assert found.reason == "refused: no code for this size"


def test_gradients_that_are_known_to_be_wrong_are_not_compared() -> None:
    operation = NAMED["gated_scan:mingru"]
    bad = spoiled(
        operation,
        _with_gradients_off,
    )
    found = checked(operation, replace(bad, gradient_unavailable=lambda: "this Triton"), "float32")
    assert found.status == "ok" and found.worst in ("output", "state")
    assert found.reason == "outputs only: this Triton"


def test_new_memory_holds_no_number_while_results_are_made() -> None:
    before = torch.are_deterministic_algorithms_enabled()
    with poisoned_memory():
        assert torch.empty(100).isnan().all()
    assert torch.are_deterministic_algorithms_enabled() == before


def test_inputs_of_the_recurrence_lie_as_one_projection_writes_them() -> None:
    operation = NAMED["matrix_recurrence"]
    inputs = draw_inputs(operation, operation.test_sizes[1], "bfloat16", CPU)
    q, k, v = (inputs[name] for name in ("q", "k", "v"))
    assert not q.is_contiguous() and q.stride() == k.stride() == v.stride()
    assert k.data_ptr() - q.data_ptr() == q[0, 0].numel() * q.element_size()
    assert all(x.is_leaf and x.requires_grad for x in inputs.values())
    assert inputs["alpha"].dtype == torch.float32


def test_what_cannot_run_here_is_told_once_with_its_reason(monkeypatch: pytest.MonkeyPatch) -> None:
    rule = NAMED["gated_delta_rule"]
    monkeypatch.setattr(selftest, "OPERATIONS", (rule, NAMED["attention"]))
    found = list(check_all(CPU))
    missing = [c for c in found if c.path == "fla"]
    assert [(c.status, c.reason) for c in missing] == [
        ("not run", "its kernels run on cuda, not on cpu")
    ]
    ran = [c for c in found if c.path == "torch"]
    assert len(ran) == 2 * len(rule.tiny_sizes)
    assert all(c.forward_ms and c.forward_backward_ms for c in ran)
    assert {c.operation for c in found} == {"gated_delta_rule"}, "what no model uses was checked"
