"""`bench` and `doctor --gpu` as a user runs them, on a machine without a GPU."""

import json
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from tests.command_line import CommandLine, QuickCommandLine, rows_of
from tests.patience import PATIENCE_S


@pytest.fixture
def interpreted(elmanctl: CommandLine) -> CommandLine:
    """The command line whose Triton is an interpreter."""
    return replace(elmanctl, environment={**elmanctl.environment, "TRITON_INTERPRET": "1"})


@pytest.fixture
def without_cuda(elmanctl: CommandLine) -> CommandLine:
    """The command line on a machine whose torch sees no GPU, wherever the tests run."""
    return replace(elmanctl, environment={**elmanctl.environment, "CUDA_VISIBLE_DEVICES": ""})


@pytest.mark.torch
@pytest.mark.parametrize(
    "words", [("bench", "kernels"), ("bench", "step"), ("doctor", "--gpu")], ids=" ".join
)
def test_without_a_gpu_the_machine_is_not_ready_and_the_hint_is_a_way_on(
    without_cuda: CommandLine, words: tuple[str, ...]
) -> None:
    done = without_cuda(*words)
    assert (done.returncode, done.stdout) == (4, "")
    assert "error: torch sees no GPU on this machine" in done.stderr
    assert "`--device cpu`" in done.stderr and "TRITON_INTERPRET=1" in done.stderr


@pytest.mark.torch
@pytest.mark.parametrize(
    ("name", "row", "listed"),
    [("kernels", "gated_scan:mingru", "kernels"), ("step", "e88", "steps")],
)
def test_rows_not_begun_in_time_are_in_the_table(
    quick: QuickCommandLine, name: str, row: str, listed: str
) -> None:
    done = quick("bench", name, "--device", "cpu", "--only", row, "--minutes", "0", "--json")
    assert done.returncode == 0, done.stderr
    rows = json.loads(done.stdout)[listed]
    assert rows and {row["status"] for row in rows} <= {"not measured", "missing"}


@pytest.mark.torch
@pytest.mark.parametrize(
    ("words", "told"),
    [
        (("kernels", "--device", "tpu"), "tpu is not one of cuda, cpu"),
        (("kernels", "--device", "cpu", "--only", "e99"), "no row matches any of: e99"),
        (("step", "--device", "cpu", "--out", "steps.md"), "steps.md is the JSON file"),
        (("report", "gone.json", "--out", "all.md"), "all.md is the JSON file"),
    ],
)
def test_what_cannot_be_meant_is_refused_before_anything_is_measured(
    quick: QuickCommandLine, words: tuple[str, ...], told: str
) -> None:
    done = quick("bench", *words)
    assert done.returncode == 2, done.stderr
    assert told in done.stderr
    assert not list(quick.folder.iterdir())


def test_report_that_is_not_there_is_not_found(quick: QuickCommandLine) -> None:
    done = quick("bench", "report", "gone.json")
    assert done.returncode == 3 and "there is no report gone.json" in done.stderr


def document(**lists: object) -> Mapping[str, object]:
    empty: dict[str, object] = {k: [] for k in ("ceilings", "products", "kernels", "steps")}
    machine = {"device": "cuda", "name": "NVIDIA H100", "commit": "0123abc"}
    return {"version": 1, "machine": machine, "products_alone_ms": {}, **empty, **lists}


def test_report_joins_what_was_measured_apart(quick: QuickCommandLine) -> None:
    step: dict[str, Any] = {
        "model": "e88 D1920 L17 H83 n32",
        "backend": "triton",
        "status": "measured",
        "reason": None,
        "note": None,
        "tokens_per_s": 123_456.7,
        **dict.fromkeys(("step_ms", "step_low_ms", "step_high_ms", "idle_ms"), 66.0),
        **dict.fromkeys(("peak_bytes", "model_flops_per_s", "mfu"), None),
        "parts_ms": {},
    }
    (quick.folder / "kernels.json").write_text(json.dumps(document()))
    (quick.folder / "steps.json").write_text(json.dumps(document(steps=[step])))
    done = quick("bench", "report", "kernels.json", "steps.json", "--out", "all.json")
    assert done.returncode == 0, done.stderr
    targets = {row["TARGET"]: row for row in rows_of(done.stdout)["TARGET"]}
    assert targets["e88 D1920 L17 H83 n32"]["VERDICT"] == "met"
    assert targets["e88 D1920 L17 H83 n32"]["MEASURED"] == "123456.7"
    row = rows_of(done.stdout)["MODEL"][0]
    assert (row["TOK/S"], row["STEP MS"]) == ("123456.7", "66.0")
    text = (quick.folder / "all.md").read_text()
    assert "| e88 D1920 L17 H83 n32 |" in text and "| 123,457 |" in text


# The plain scan with a wrong gradient, put in place of the right one as a user's process starts,
# among operations of which the others are left out.
SPOILED = """
import sys
from elmanctl.bench import operations
from elmanctl.kernels.minimal_scan import chunked
operations.OPERATIONS = [x for x in operations.OPERATIONS if x.name.startswith("gated_scan:")]
right = chunked.chunked_minimal_scan
chunked.chunked_minimal_scan = lambda decay, written, state: right(decay, 1.02 * written, state)
sys.argv = ["elmanctl", *sys.argv[1:]]
from elmanctl.__main__ import main
main()
"""


@pytest.fixture
def spoiled(interpreted: CommandLine) -> CommandLine:
    """The command line with a plain scan that is wrong by a fiftieth."""
    (interpreted.folder / "spoiled.py").write_text(SPOILED)
    return interpreted


def run_spoiled(spoiled: CommandLine, *words: str) -> tuple[int, str, str]:
    process = spoiled.start(words, program=(str(Path(spoiled.folder) / "spoiled.py"),))
    output, _ = process.communicate(timeout=PATIENCE_S)
    return process.returncode, output, ""


@pytest.mark.torch
def test_doctor_finds_a_kernel_that_is_wrong_and_fails(spoiled: CommandLine) -> None:
    code, text, _ = run_spoiled(spoiled, "-q", "doctor", "--gpu")
    assert code == 1, text
    wrong = [row for row in rows_of(text)["OPERATION"] if row["RESULT"] == "wrong"]
    assert len(wrong) < len(rows_of(text)["OPERATION"])
    assert {(row["OPERATION"], row["PATH"], row["DTYPE"]) for row in wrong} == {
        (f"gated_scan:{cell}", "torch", dtype)
        for cell in ("mingru", "minlstm")
        for dtype in ("float32", "bfloat16")
    }
    assert all(0.005 < float(row["ERROR"]) < 0.1 for row in wrong)


@pytest.mark.torch
def test_bench_of_a_kernel_that_is_wrong_is_a_partial_failure(spoiled: CommandLine) -> None:
    words = ("bench", "kernels", "--device", "cpu", "--only", "gated_scan:mingru torch")
    code, text, _ = run_spoiled(spoiled, *words)
    assert code == 5, text
    assert "error: 1 rows failed or are wrong: gated_scan:mingru torch" in text
    assert "WRONG: " in text
