"""Rows of operations: every planned row becomes one, whatever becomes of it."""

from collections.abc import Mapping
from dataclasses import replace
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor

from elmanctl.bench import kernel_rows as rows_module
from elmanctl.bench import timing
from elmanctl.bench.floors import Rates
from elmanctl.bench.kernel_rows import KernelRow, PlannedRow, kernel_rows, plan
from elmanctl.bench.operation import Path
from elmanctl.bench.operations import OPERATIONS
from elmanctl.bench.size import Size
from elmanctl.bench.third_party import TIMING_ONLY

CPU = torch.device("cpu")
CUDA: Any = torch.device("cuda")
RATES = Rates(copied_bytes=1e9, matrix_flops=1e9, float_instructions=1e9, special_functions=1e9)
NAMED = {operation.name: operation for operation in OPERATIONS}
SCAN = NAMED["gated_scan:mingru"]
TINY = Size(batch=1, length=9, heads=4)


def measured(
    *planned: PlannedRow, is_over: Any = lambda: False, rates: Rates = RATES
) -> list[KernelRow]:
    return list(kernel_rows(planned, rates, CPU, 0, is_over))


def planned(size: Size = TINY, **changes: Any) -> PlannedRow:
    path = replace(SCAN.path("torch"), **{"name": "other", **changes})
    return PlannedRow(operation=SCAN, path=path, size=size)


def test_every_size_of_every_path_is_planned_on_a_gpu_ours_first_and_loops_last() -> None:
    rows = plan(CUDA)
    for operation in OPERATIONS:
        for path in operation.paths:
            sizes = [row.size for row in rows if row.operation is operation and row.path is path]
            wanted = operation.sizes[:1] if path.is_for_tests else operation.sizes
            assert sizes == list(wanted)
    names = [row.path.name for row in rows]
    assert names[0] == "triton" and rows[0].label == "matrix_recurrence triton B16 T512 H83 n32"
    assert set(names[names.index("torch") :]) == {"torch"}
    ours = [row.path.is_ours for row in rows]
    assert ours == sorted(ours, reverse=True)


def test_list_of_the_design_is_planned() -> None:
    sizes = {row.size.label for row in plan(CUDA) if row.operation.name == "matrix_recurrence"}
    assert sizes >= {
        *("B16 T512 H83 n32", "B16 T512 H99 n32", "B16 T512 H76 n16", "B16 T512 H108 n48"),
        *("B4 T2048 H83 n32", "B1 T8192 H83 n32"),
    }
    beside = {row.label for row in plan(CUDA)}
    assert "gated_delta_rule fla B16 T512 H24 n64" in beside
    assert "gated_delta_rule fla B16 T512 H83 n32" in beside
    assert "state_space_dual mamba-ssm B16 T512 H56 K96 V64" in beside
    assert any(name.startswith("attention flash") for name in beside)


def test_rows_are_kept_by_any_of_the_texts() -> None:
    rows = plan(CUDA, ["gated_scan:minlstm torch", "T8192"])
    names = [row.label for row in rows]
    assert names and all("gated_scan:minlstm torch" in n or "T8192" in n for n in names)
    assert plan(CUDA, ["nothing like it"]) == []


def test_row_holds_times_floors_and_error() -> None:
    (row,) = measured(planned())
    assert row.status == "measured" and row.reason is None and row.note is None
    assert row.forward_ms and row.forward_backward_ms and row.forward_floor_ms
    assert row.backward_ms == pytest.approx(
        max(0.0, row.forward_backward_ms - row.forward_ms), abs=1e-9
    )
    # Three and five numbers of two bytes, and a share of a kept state, for each of 9 x 4.
    assert row.forward_floor_ms == pytest.approx(6.25 * 36 / 1e9 * 1e3)
    assert row.backward_floor_ms == pytest.approx(10.25 * 36 / 1e9 * 1e3)
    assert row.forward_fraction == pytest.approx(row.forward_floor_ms / row.forward_ms)
    assert row.bytes_per_s == pytest.approx(16.5 * 36 / row.forward_backward_ms * 1e3)
    assert row.tokens_per_s == pytest.approx(9 / row.forward_backward_ms * 1e3)
    assert row.error is not None and row.error < 6e-3 and not row.is_wrong


def test_row_without_measured_rates_has_times_and_no_floor() -> None:
    (row,) = measured(planned(), rates=Rates())
    assert row.forward_ms and row.forward_floor_ms is None and row.forward_fraction is None


def test_what_cannot_run_here_has_a_row_that_says_why() -> None:
    missing, ran = measured(
        planned(unavailable_reason=lambda device: f"not installed on {device}"), planned()
    )
    assert (missing.status, missing.reason) == ("missing", "not installed on cpu")
    assert missing.forward_ms is None and ran.status == "measured"


def test_what_raises_has_failed_and_ends_no_other_row() -> None:
    def broken(**inputs: Tensor) -> Mapping[str, Tensor]:
        raise RuntimeError("out of resource: shared memory")

    failed, ran = measured(planned(run=broken), planned())
    assert failed.status == "failed"
    assert failed.reason == "RuntimeError: out of resource: shared memory"
    assert ran.status == "measured"


def test_wrong_results_are_measured_and_said_to_be_wrong() -> None:
    plain = SCAN.path("torch").run
    (row,) = measured(planned(run=lambda **i: {name: 1.1 * x for name, x in plain(**i).items()}))
    assert row.status == "measured" and row.is_wrong
    assert row.error == pytest.approx(0.1, rel=0.05)
    assert row.note and row.note.startswith("WRONG: ")


def test_nothing_is_begun_once_the_time_is_used_up() -> None:
    asked = iter([False, True, True])
    first, second, third = measured(*[planned()] * 3, is_over=lambda: next(asked))
    assert first.status == "measured"
    assert {second.status, third.status} == {"not measured"}
    assert second.reason == "the time limit was reached"


def test_rows_after_a_lost_device_are_not_measured_and_name_what_lost_it(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def broken(**inputs: Tensor) -> Mapping[str, Tensor]:
        raise RuntimeError("CUDA error: an illegal memory access was encountered")

    monkeypatch.setattr("elmanctl.bench.rows.loss_of", lambda device, what: f"lost to {what}")
    failed, rest = measured(planned(run=broken), planned())
    assert failed.status == "failed"
    assert (rest.status, rest.reason) == (
        "not measured",
        "lost to gated_scan:mingru other B1 T9 D4",
    )


def test_gradients_that_are_not_trusted_are_timed_inside_their_guard_and_labelled() -> None:
    from contextlib import contextmanager

    inside: list[bool] = [False]

    @contextmanager
    def guard() -> Any:
        inside[0] = True
        yield
        inside[0] = False

    class Refusing(torch.autograd.Function):
        @staticmethod
        def forward(ctx: Any, x: Tensor) -> Tensor:
            return x.clone()

        @staticmethod
        def backward(ctx: Any, d_x: Tensor) -> Tensor:
            if not inside[0]:
                raise RuntimeError("gradients are refused")
            return d_x

    refusing: Any = Refusing.apply
    plain = SCAN.path("torch").run
    (row,) = measured(
        planned(
            run=lambda **i: {name: refusing(x) for name, x in plain(**i).items()},
            gradient_unavailable=lambda: "this Triton",
            for_timing=guard,
        )
    )
    assert row.status == "measured", row
    assert row.note == TIMING_ONLY and not inside[0]
    assert row.error is not None and row.error_of in ("output", "state")


def slow(seconds_a_position: float, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The plain path, whose time is made to grow with the length as a loop's does."""
    plain, now_s = SCAN.path("torch"), [0.0]
    for module in (rows_module, timing):
        monkeypatch.setattr(module, "time", SimpleNamespace(perf_counter=lambda: now_s[0]))

    def run(**inputs: Tensor) -> Mapping[str, Tensor]:
        now_s[0] += seconds_a_position * inputs["scores"].shape[1]
        return plain.run(**inputs)

    return replace(plain, run=run)


def test_loop_that_takes_too_long_is_cut_and_is_then_a_bound(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setitem(rows_module._MAX_CALL_S, "cpu", 0.5)
    long = Size(batch=1, length=2048, heads=2)
    (row,) = measured(PlannedRow(operation=SCAN, path=slow(1e-3, monkeypatch), size=long))
    assert row.bound_length == 128
    assert row.size == long.label
    assert row.forward_ms == pytest.approx(128)
    assert row.tokens_per_s is None and row.forward_fraction is None, "of a whole that was not run"


def test_loop_that_is_bearable_is_run_whole(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(rows_module._MAX_CALL_S, "cpu", 5.0)
    (row,) = measured(
        PlannedRow(
            operation=SCAN, path=slow(1e-4, monkeypatch), size=Size(batch=1, length=512, heads=2)
        )
    )
    assert row.bound_length is None and row.forward_ms == pytest.approx(51.2)
