import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from elmanctl.bench.ceilings import Ceiling
from elmanctl.bench.kernel_rows import KernelRow
from elmanctl.bench.products import Product
from elmanctl.bench.report import Report, check_out, read_reports
from elmanctl.bench.step_rows import StepRow
from elmanctl.bench.tables import Table, kernel_table, machine_lines, markdown_of, step_table
from elmanctl.errors import NotFound, UsageError

MACHINE = {
    "device": "cuda",
    "name": "NVIDIA H100 80GB HBM3",
    "commit": "0123abc",
    "torch": "2.11.0",
    "driver": {"driver_version": "580.1", "power.limit": "700.00 W"},
    "mamba-ssm": None,
}


def kernel(**changes: Any) -> KernelRow:
    values: dict[str, Any] = {
        "operation": "matrix_recurrence",
        "path": "triton",
        "is_ours": True,
        "size": "B16 T512 H83 n32",
        "dtype": "bfloat16",
        "status": "measured",
        "forward_ms": 0.25,
        "forward_spread": 0.01,
        "forward_backward_ms": 1.25,
        "forward_backward_spread": 0.02,
        "backward_ms": 1.0,
        "forward_floor_ms": 0.17,
        "backward_floor_ms": 0.3,
        "forward_fraction": 0.68,
        "backward_fraction": 0.3,
        "tokens_per_s": 6_553_600.0,
        "bytes_per_s": 7.7e11,
        "peak_bytes": 400_000_000,
        "error": 1.8e-3,
        "error_of": "d_gate",
    }
    return KernelRow(**(values | changes))


def step(**changes: Any) -> StepRow:
    values: dict[str, Any] = {
        "model": "e88 D1920 L17 H83 n32",
        "level": "e88",
        "config": {"dim": 1920},
        "backend": "triton",
        "status": "measured",
        "tokens_per_s": 112_345.6,
        "step_ms": 72.9,
        "step_low_ms": 72.5,
        "step_high_ms": 73.4,
        "parts_ms": {"matrix products": 36.0, "recurrence": 24.0},
        "idle_ms": 1.5,
        "peak_bytes": 21_000_000_000,
        "model_flops_per_s": 2.98e14,
        "mfu": 0.37,
        "kernels": [("nvjet", 20.0, 51.0)],
    }
    return StepRow(**(values | changes))


def ceiling(name: str = "tanh", value: float | None = 4.1e12) -> Ceiling:
    return Ceiling(
        name=name, unit="results", value=value, spread=0.01, clocks={"clocks.sm": "1980 MHz"}
    )


def product() -> Product:
    return Product(
        tokens=8192,
        n_in=1920,
        n_out=7968,
        forward_ms=0.4,
        input_gradient_ms=0.4,
        weight_gradient_ms=0.5,
        spread=0.01,
    )


def filled() -> Report:
    report = Report(machine=MACHINE)
    report.add("ceilings", ceiling())
    report.add("products", product())
    report.add("kernels", kernel())
    report.add("steps", step())
    report.products_alone_ms["e88 D1920 L17 H83 n32"] = 33.0
    return report


def cells(table: Table, row: int = 0) -> dict[str, str | None]:
    return dict(zip(table.head, table.rows[row], strict=True))


def test_kernel_has_its_numbers_under_their_heads() -> None:
    found = cells(kernel_table(filled().kernels))
    assert found == {
        "OPERATION": "matrix_recurrence",
        "PATH": "triton",
        "SIZE": "B16 T512 H83 n32",
        "FORWARD MS": "0.25",
        "BACKWARD MS": "1",
        "SPREAD": "2.0%",
        "FLOOR F": "0.17",
        "FLOOR B": "0.3",
        "OF FLOOR F": "68.0%",
        "OF FLOOR B": "30.0%",
        "TOK/S": "6,553,600",
        "GB/S": "770",
        "MEMORY": "400 MB",
        "ERROR": "1.8e-03",
        "NOTE": None,
    }


def test_bound_and_missing_row_say_what_they_are() -> None:
    report = Report(machine=MACHINE)
    report.add("kernels", kernel(path="torch", bound_length=128, forward_ms=99.0))
    missing = KernelRow(
        operation="gated_delta_rule",
        path="fla",
        is_ours=False,
        size="B16 T512 H24 n64",
        dtype="bfloat16",
        status="missing",
        reason="fla is not installed",
    )
    report.add("kernels", missing)
    bound, absent = (cells(kernel_table(report.kernels), row) for row in (0, 1))
    assert bound["FORWARD MS"] == ">= 99"
    assert bound["NOTE"] == "lower bound: only the first 128 positions"
    assert absent["FORWARD MS"] is None
    assert absent["NOTE"] == "missing: fla is not installed"


def test_step_has_its_parts_and_what_its_products_take_alone() -> None:
    report = filled()
    found = cells(step_table(report.steps, report.products_alone_ms))
    assert found["TOK/S"] == "112,346" and found["STEP MS"] == "72.9"
    assert found["MATRIX PRODUCTS MS"] == "36" and found["RECURRENCE MS"] == "24"
    assert "ATTENTION MS" not in found
    assert (found["PRODUCTS ALONE MS"], found["IDLE MS"]) == ("33", "1.5")
    assert (found["MODEL TFLOP/S"], found["MFU"]) == ("298", "37.0%")


def test_rows_that_failed_or_are_wrong_are_failures_and_missing_ones_are_not() -> None:
    report = filled()
    assert report.failures == []
    report.add("kernels", kernel(status="missing", reason="no triton"))
    assert report.failures == []
    report.add("kernels", kernel(is_wrong=True, note="WRONG: d_q"))
    report.add("kernels", kernel(status="failed", reason="RuntimeError: boom"))
    report.add("steps", step(status="failed", reason="out of memory"))
    assert [told.rpartition(": ")[2] for told in report.failures] == [
        "d_q",
        "boom",
        "out of memory",
    ]


def test_number_that_is_none_is_null_in_json(tmp_path: Path) -> None:
    report = Report(machine=MACHINE)
    report.add("kernels", kernel(error=float("nan"), is_wrong=True, note="WRONG"))
    report.write(tmp_path / "k.json")
    (row,) = json.loads((tmp_path / "k.json").read_text())["kernels"]
    assert row["error"] is None and row["is_wrong"]


def test_what_is_written_is_what_is_read(tmp_path: Path) -> None:
    report = filled()
    report.write(tmp_path / "deep" / "all.json")
    again = read_reports([tmp_path / "deep" / "all.json"])
    assert again.document() == report.document()
    assert again.markdown() == report.markdown()


def test_markdown_names_the_machine_and_has_every_table_that_has_rows(tmp_path: Path) -> None:
    report = filled()
    report.write(tmp_path / "all.json")
    text = (tmp_path / "all.md").read_text()
    assert text.startswith("# Measured on NVIDIA H100 80GB HBM3\n\n- device: cuda\n")
    assert "- driver: driver_version 580.1, power.limit 700.00 W\n" in text
    assert "mamba-ssm" not in text, "what is not known has no line"
    titles = [line[3:] for line in text.splitlines() if line.startswith("## ")]
    assert titles == [
        "Targets",
        "Ceilings",
        "Matrix products of the models",
        "Operations",
        "Training steps",
    ]
    assert (
        "| E88 recurrence forward, B16 T512 H83 n32 | <= 0.3 | 0.25 | ms | met | triton |" in text
    )
    widths = {
        title: {line.count(" |") for line in part.splitlines() if line.startswith("|")}
        for title, part in ((p.splitlines()[0], p) for p in text.split("\n## ")[1:])
    }
    assert all(len(counts) == 1 for counts in widths.values()), widths


def test_cell_cannot_break_a_table() -> None:
    table = Table(title="T", head=("A", "NOTE"), rows=[["a|b", "one\ntwo"]])
    assert markdown_of("x", [], [table]).splitlines()[-1] == "| a\\|b | one two |"


def test_facts_without_a_value_have_no_line() -> None:
    assert machine_lines({"a": None, "b": "", "c": 0, "d": {}}) == [("c", "0")]


def write(path: Path, change: Callable[[Report], None] = lambda report: None) -> Path:
    report = filled()
    change(report)
    report.write(path)
    return path


def test_parts_measured_apart_are_joined(tmp_path: Path) -> None:
    first = write(tmp_path / "kernels.json", lambda report: report.steps.clear())
    second = write(tmp_path / "steps.json", lambda report: report.kernels.clear())
    joined = read_reports([first, second])
    assert len(joined.kernels) == len(joined.steps) == 1
    assert len(joined.ceilings) == len(joined.products) == 1
    verdicts = {target["name"]: target["verdict"] for target in joined.targets}
    assert verdicts["e88 D1920 L17 H83 n32"] == "met"
    assert verdicts["E88 recurrence backward, B16 T512 H83 n32"] == "met"


def test_parts_of_other_machines_or_other_code_are_not_joined(tmp_path: Path) -> None:
    def other(report: Report) -> None:
        report.machine = {**MACHINE, "commit": "fedcba9"}

    first, second = write(tmp_path / "a.json"), write(tmp_path / "b.json", other)
    with pytest.raises(UsageError, match=r"b\.json was measured with commit fedcba9"):
        read_reports([first, second])


def test_what_is_no_report_is_refused_by_name(tmp_path: Path) -> None:
    with pytest.raises(NotFound, match=r"there is no report .*gone\.json"):
        read_reports([tmp_path / "gone.json"])
    (tmp_path / "torn.json").write_text('{"version": 1, "kern')
    with pytest.raises(UsageError, match=r"torn\.json is not JSON"):
        read_reports([tmp_path / "torn.json"])
    (tmp_path / "other.json").write_text('{"version": 1}')
    with pytest.raises(UsageError, match=r"other\.json is not a report of `elmanctl bench`"):
        read_reports([tmp_path / "other.json"])


def test_markdown_would_overwrite_a_json_of_its_own_name() -> None:
    check_out(None)
    check_out(Path("a.json"))
    with pytest.raises(UsageError, match="is the JSON file"):
        check_out(Path("a.md"))
