"""`bench` and `doctor --gpu` as a user runs them, on a machine without a GPU."""

import json
import re
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from tests.command_line import CommandLine
from tests.patience import PATIENCE_S

LABEL = "cpu, tiny shapes: no measure of a GPU"


@pytest.fixture
def interpreted(elmanctl: CommandLine) -> CommandLine:
    """The command line whose Triton is an interpreter."""
    return replace(elmanctl, environment={**elmanctl.environment, "TRITON_INTERPRET": "1"})


@pytest.fixture
def without_cuda(elmanctl: CommandLine) -> CommandLine:
    """The command line on a machine whose torch sees no GPU, wherever the tests run."""
    return replace(elmanctl, environment={**elmanctl.environment, "CUDA_VISIBLE_DEVICES": ""})


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


def rows_of(text: str) -> dict[str, list[dict[str, str]]]:
    """Return the tables of a pipe by the first word of their heads."""
    tables: dict[str, list[dict[str, str]]] = {}
    head: list[str] = []
    for line in text.splitlines():
        cells = line.split("\t")
        if re.fullmatch(r"[A-Z]+", cells[0]):
            head = cells
            tables[head[0]] = []
        else:
            tables[head[0]].append(dict(zip(head, cells, strict=True)))
    return tables


def test_kernels_run_end_to_end_on_a_cpu_and_say_that_it_is_one(
    interpreted: CommandLine,
) -> None:
    done = interpreted("bench", "kernels", "--device", "cpu", "--out", "found/kernels.json")
    assert done.returncode == 0, done.stderr
    tables = rows_of(done.stdout)
    assert {*tables} == {"TARGET", "CEILING", "PRODUCT", "OPERATION"}
    assert {row["VERDICT"] for row in tables["TARGET"]} == {"not measured"}
    assert all(row["RATE"] for row in tables["CEILING"]), "a ceiling was not measured"
    paths = {(row["OPERATION"], row["PATH"]) for row in tables["OPERATION"]}
    assert paths >= {("matrix_recurrence", "triton-exact"), ("gated_scan:mingru", "triton")}
    for name in ("matrix_recurrence", "gated_scan:mingru", "gated_delta_rule", "state_space_dual"):
        assert (name, "torch") in paths
    for row in tables["OPERATION"]:
        if row["PATH"] == "torch":
            assert all(row[head] for head in ("FORWARD MS", "BACKWARD MS", "ERROR", "FLOOR F"))
        if row["PATH"] in ("fla", "mamba-ssm"):
            assert row["NOTE"] == "missing: its kernels run on cuda, not on cpu"
    assert done.stderr.startswith(f"{LABEL}\n")
    assert f"Operations, {LABEL}:" in done.stderr
    kept = json.loads((interpreted.folder / "found" / "kernels.json").read_text())
    assert kept["machine"]["label"] == LABEL
    assert len(kept["kernels"]) == len(tables["OPERATION"])
    assert f"- label: {LABEL}\n" in (interpreted.folder / "found" / "kernels.md").read_text()


def test_steps_run_end_to_end_on_a_cpu_and_as_json(elmanctl: CommandLine) -> None:
    done = elmanctl(
        "bench", "step", "--device", "cpu", "--only", "e88", "--only", "mamba", "--json"
    )
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout)
    assert found["version"] == 1 and found["machine"]["label"] == LABEL
    by_backend = {(row["level"], row["backend"]): row for row in found["steps"]}
    assert by_backend["mamba2", "mamba-ssm"]["status"] == "missing"
    for level in ("e88", "mamba2"):
        row = by_backend[level, "torch"]
        assert row["status"] == "measured" and row["tokens_per_s"] > 0
        assert row["parts_ms"]["matrix products"] > 0
        assert found["products_alone_ms"][row["model"]] > 0
    assert all(target["verdict"] == "not measured" for target in found["targets"])


def test_rows_not_begun_in_time_are_in_the_table(elmanctl: CommandLine) -> None:
    done = elmanctl(
        *("bench", "kernels", "--device", "cpu", "--only", "gated_scan:mingru", "--minutes", "0"),
        "--json",
    )
    assert done.returncode == 0, done.stderr
    rows = json.loads(done.stdout)["kernels"]
    assert rows and {row["status"] for row in rows} <= {"not measured", "missing"}


@pytest.mark.parametrize(
    ("words", "told"),
    [
        (("kernels", "--device", "tpu"), "tpu is not one of cuda, cpu"),
        (("kernels", "--device", "cpu", "--only", "e99"), "no row holds any of: e99"),
        (("step", "--device", "cpu", "--out", "steps.md"), "steps.md would be JSON"),
        (("report", "gone.json", "--out", "all.md"), "all.md would be JSON"),
    ],
)
def test_what_cannot_be_meant_is_refused_before_anything_is_measured(
    elmanctl: CommandLine, words: tuple[str, ...], told: str
) -> None:
    done = elmanctl("bench", *words)
    assert done.returncode == 2, done.stderr
    assert told in done.stderr
    assert not list(elmanctl.folder.iterdir())


def test_report_that_is_not_there_is_not_found(elmanctl: CommandLine) -> None:
    done = elmanctl("bench", "report", "gone.json")
    assert done.returncode == 3 and "there is no report gone.json" in done.stderr


def document(**lists: object) -> Mapping[str, object]:
    empty: dict[str, object] = {k: [] for k in ("ceilings", "products", "kernels", "steps")}
    machine = {"device": "cuda", "name": "NVIDIA H100", "commit": "0123abc"}
    return {"version": 1, "machine": machine, "products_alone_ms": {}, **empty, **lists}


def test_report_joins_what_was_measured_apart(elmanctl: CommandLine) -> None:
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
    (elmanctl.folder / "kernels.json").write_text(json.dumps(document()))
    (elmanctl.folder / "steps.json").write_text(json.dumps(document(steps=[step])))
    done = elmanctl("bench", "report", "kernels.json", "steps.json", "--out", "all.json")
    assert done.returncode == 0, done.stderr
    targets = {row["TARGET"]: row for row in rows_of(done.stdout)["TARGET"]}
    assert targets["e88 D1920 L17 H83 n32"]["VERDICT"] == "met"
    assert targets["e88 D1920 L17 H83 n32"]["MEASURED"] == "123456.7"
    row = rows_of(done.stdout)["MODEL"][0]
    assert (row["TOK/S"], row["STEP MS"]) == ("123456.7", "66.0")
    text = (elmanctl.folder / "all.md").read_text()
    assert "| e88 D1920 L17 H83 n32 |" in text and "| 123,457 |" in text


# The plain scan with a wrong gradient, put in place of the right one as a user's process starts.
SPOILED = """
import sys
from elmanctl.kernels.minimal_scan import chunked
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


def test_doctor_finds_a_kernel_that_is_wrong_and_fails(spoiled: CommandLine) -> None:
    code, text, _ = run_spoiled(spoiled, "-q", "doctor", "--gpu")
    assert code == 1, text
    wrong = [row for row in rows_of(text)["OPERATION"] if row["RESULT"] == "wrong"]
    assert {(row["OPERATION"], row["PATH"], row["DTYPE"]) for row in wrong} == {
        (f"gated_scan:{cell}", "torch", dtype)
        for cell in ("mingru", "minlstm")
        for dtype in ("float32", "bfloat16")
    }
    assert all(0.005 < float(row["ERROR"]) < 0.1 for row in wrong)


def test_bench_of_a_kernel_that_is_wrong_is_a_partial_failure(spoiled: CommandLine) -> None:
    words = ("bench", "kernels", "--device", "cpu", "--only", "gated_scan:mingru torch")
    code, text, _ = run_spoiled(spoiled, *words)
    assert code == 5, text
    assert "error: 1 rows failed or are wrong: gated_scan:mingru torch" in text
    assert "WRONG: " in text


def test_doctor_checks_every_kernel_that_runs_here(interpreted: CommandLine) -> None:
    done = interpreted("doctor", "--gpu", "--json")
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout)
    assert found["machine"]["label"].startswith("cpu, Triton's interpreter")
    ran = [check for check in found["checks"] if check["status"] == "ok"]
    assert {(check["operation"].partition(":")[0], check["path"]) for check in ran} == {
        *(("matrix_recurrence", path) for path in ("triton-exact", "torch")),
        *(("gated_scan", path) for path in ("triton", "torch")),
        *(("gated_delta_rule", "torch"), ("state_space_dual", "torch")),
    }
    assert all(0 < check["error"] <= check["allowed"] for check in ran)
    assert all(check["forward_ms"] > 0 for check in ran)
    rest = [check for check in found["checks"] if check["status"] != "ok"]
    assert all(check["status"] == "not run" and check["reason"] for check in rest)
