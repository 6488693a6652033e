"""benchmarks/gpu_check.sh as it runs on a bare machine: from a copy without a history.

What its parts find is also what `bench` and `doctor --gpu` find on a machine without a GPU.
"""

import json
import shutil
import subprocess
import sys
from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path

import pytest

from tests.command_line import CommandLine, rows_of
from tests.patience import PATIENCE_S

ROOT = Path(__file__).parents[2]

LABEL = "cpu, tiny shapes: says nothing about a GPU"

Found = tuple["subprocess.CompletedProcess[str]", Path]
Script = Callable[..., "subprocess.CompletedProcess[str]"]


def _not_copied(folder: str, names: list[str]) -> set[str]:
    """Name what a copy of the tree is without: hidden folders, and what programs leave.

    What Python compiled comes along: it is valid as long as the sources keep their times.
    """
    left = {name for name in names if name.startswith(".") and name != ".ci"}
    return left | ({"runs", "build", "dist"} & set(names))


def copy_of_the_checkout(folder: Path) -> Path:
    """Return a copy of the checkout that has no history."""
    target = folder / "copy"
    shutil.copytree(ROOT, target, symlinks=True, ignore=_not_copied)
    return target


def run_script(
    copy: Path,
    environment: Mapping[str, str],
    *arguments: str,
    python: str = sys.executable,
    **variables: str,
) -> "subprocess.CompletedProcess[str]":
    """Run the script of the copy with this Python, on a machine whose torch sees no GPU."""
    inherited = {k: v for k, v in environment.items() if k != "PYTHONPATH"}
    return subprocess.run(
        [str(copy / "benchmarks" / "gpu_check.sh"), "--python", python, *arguments],
        cwd=copy.parent,
        env={**inherited, "CUDA_VISIBLE_DEVICES": "", **variables},
        capture_output=True,
        text=True,
        stdin=subprocess.DEVNULL,
        check=False,
    )


@pytest.fixture
def copy(tmp_path: Path) -> Path:
    return copy_of_the_checkout(tmp_path)


@pytest.fixture
def run(copy: Path, environment: dict[str, str]) -> Script:
    return partial(run_script, copy, environment)


@pytest.mark.parametrize(
    ("arguments", "code", "told"),
    [
        (["--part", "everything"], 2, "no such part: everything"),
        (["--device", "tpu"], 2, "no such device: tpu"),
        (["--parts"], 2, "unknown argument: --parts"),
        (["--out"], 2, "--out needs a value"),
        (["--device", "cpu"], 4, "the commit of this copy is unknown"),
        ([], 4, "torch sees no GPU"),
    ],
)
def test_what_cannot_be_done_is_refused_at_once(
    run: Script, copy: Path, arguments: list[str], code: int, told: str
) -> None:
    done = run(*arguments)
    assert done.returncode == code, done.stderr
    assert f"gpu_check: error: {told}" in done.stderr
    assert not (copy / "benchmarks" / "results" / "gpu").exists()


def test_missing_packages_are_named_before_anything_runs(run: Script, tmp_path: Path) -> None:
    bare = tmp_path / "python"
    # Without site there is Python's own library alone.
    bare.write_text(f'#!/bin/sh\nexec {sys.executable} -S "$@"\n')
    bare.chmod(0o755)
    done = run("--device", "cpu", python=str(bare), ELMAN_COMMIT="0123abc")
    assert done.returncode == 4
    assert "error: not installed: torch triton numpy typer rich schedulefree" in done.stderr
    assert "hint: put their wheels into the folder ELMAN_WHEELS" in done.stderr


def test_package_to_compare_with_is_missed_unless_it_is_said_to_be_left_out(
    run: Script, copy: Path
) -> None:
    script = copy / "benchmarks" / "gpu_check.sh"
    text = script.read_text()
    # A name that no machine has stands for a package that this one has not.
    script.write_text(text.replace("COMPARED=(fla ", "COMPARED=(fla_of_nobody "))
    done = run("--device", "cpu")
    assert done.returncode == 4
    assert "error: not installed: fla_of_nobody, which elmanctl is compared with" in done.stderr
    assert "or pass --without fla_of_nobody" in done.stderr
    done = run("--device", "cpu", "--without", "mamba_ssm,fla_of_nobody")
    assert "WITHOUT fla_of_nobody: its rows will be listed as missing" in done.stderr
    assert "the commit of this copy is unknown" in done.stderr


def test_wheels_that_are_not_there_are_an_error(run: Script, tmp_path: Path) -> None:
    done = run("--device", "cpu", ELMAN_WHEELS=str(tmp_path / "none"), ELMAN_COMMIT="0123abc")
    assert done.returncode == 4
    assert f"ELMAN_WHEELS={tmp_path / 'none'} contains no wheel" in done.stderr


def test_part_that_takes_too_long_is_stopped_and_said_to_be(
    run: Script, copy: Path, tmp_path: Path
) -> None:
    script = copy / "benchmarks" / "gpu_check.sh"
    text = script.read_text()
    assert "MEASURE_S=450" in text
    assert "--kill-after=15" in text
    patient = text.replace("--kill-after=15", f"--kill-after={PATIENCE_S}")
    script.write_text(patient.replace("MEASURE_S=450", "MEASURE_S=4"))
    out = tmp_path / "out"
    done = run(*("--device", "cpu", "--part", "kernels", "--out", str(out)), ELMAN_COMMIT="0123abc")
    assert done.returncode == 1, done.stderr
    assert "gpu_check: STOPPED after 4 s" in done.stderr
    assert "gpu_check: FAILED: bench kernels, exit code 124" in done.stderr
    for path in out.glob("*.json"):
        assert json.loads(path.read_text())["machine"]["commit"] == "0123abc"


@pytest.fixture(scope="module")
def checked(tmp_path_factory: pytest.TempPathFactory, environment: dict[str, str]) -> Found:
    """All parts of the script, and the folder of what they found."""
    copy = copy_of_the_checkout(tmp_path_factory.mktemp("checked"))
    (copy / "COMMIT").write_text("fedcba98\n")
    # Without a GPU every test is skipped: those of one file say as much as all.
    for path in copy.glob("tests/*/test_*.py"):
        if path.name != "test_kernels_gpu.py":
            path.unlink()
    out = copy.parent / "found"
    return run_script(copy, environment, "--device", "cpu", "--out", str(out)), out


def test_all_parts_run_end_to_end(
    checked: Found,
) -> None:
    done, out = checked
    assert done.returncode == 0, done.stderr
    assert done.stderr.endswith("gpu_check: all done\n")
    # A machine of the kind that this is for gives back at most eight files.
    assert {path.name for path in out.iterdir()} == {
        *("tests.log", "doctor.json", "kernels.json", "kernels.md", "steps.json", "steps.md"),
        "results.md",
    }
    assert "skipped" in (out / "tests.log").read_text().splitlines()[-1]
    for name in ("doctor", "kernels", "steps"):
        machine = json.loads((out / f"{name}.json").read_text())["machine"]
        assert machine["commit"] == "fedcba98"
        assert machine["label"].startswith("cpu, ")
    results = (out / "results.md").read_text()
    for title in ("Targets", "Ceilings", "Operations", "Training steps"):
        assert f"\n## {title}\n" in results
    assert f"- label: {LABEL}\n" in results
    # The summary is the table of targets and nothing more.
    head, *rows = done.stdout.splitlines()
    assert head.startswith("TARGET\tBOUND\t")
    assert rows and all("\tnot measured\t" in row for row in rows)


def test_doctor_checks_every_kernel_that_runs_here(
    checked: Found,
) -> None:
    found = json.loads((checked[1] / "doctor.json").read_text())
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


def test_kernels_run_on_a_cpu_and_say_that_it_is_one(checked: Found, elmanctl: CommandLine) -> None:
    done, out = checked
    assert f"{LABEL}\n" in done.stderr
    assert f"Operations, {LABEL}:" in done.stderr
    assert f"- label: {LABEL}\n" in (out / "kernels.md").read_text()
    kept = json.loads((out / "kernels.json").read_text())
    assert kept["machine"]["label"] == LABEL
    assert any(
        row["path"].startswith("triton") and row["status"] == "measured" for row in kept["kernels"]
    )
    tables = rows_of(elmanctl("bench", "report", str(out / "kernels.json")).stdout)
    assert {row["VERDICT"] for row in tables["TARGET"]} == {"not measured"}
    assert all(row["RATE"] for row in tables["CEILING"]), "a ceiling was not measured"
    assert tables["PRODUCT"]
    assert len(kept["kernels"]) == len(tables["OPERATION"])
    paths = {(row["OPERATION"], row["PATH"]) for row in tables["OPERATION"]}
    assert paths >= {("matrix_recurrence", "triton-exact"), ("gated_scan:mingru", "triton")}
    for name in ("matrix_recurrence", "gated_scan:mingru", "gated_delta_rule", "state_space_dual"):
        assert (name, "torch") in paths
    for row in tables["OPERATION"]:
        if row["PATH"] == "torch":
            assert all(row[head] for head in ("FORWARD MS", "BACKWARD MS", "ERROR", "FLOOR F"))
        if row["PATH"] in ("fla", "mamba-ssm"):
            assert row["NOTE"] == "missing: its kernels run on cuda, not on cpu"


def test_steps_run_on_a_cpu(checked: Found) -> None:
    found = json.loads((checked[1] / "steps.json").read_text())
    assert found["version"] == 1 and found["machine"]["label"] == LABEL
    by_backend = {(row["level"], row["backend"]): row for row in found["steps"]}
    assert by_backend["mamba2", "mamba-ssm"]["status"] == "missing"
    for level in ("e88", "mamba2"):
        row = by_backend[level, "torch"]
        assert row["status"] == "measured" and row["tokens_per_s"] > 0
        assert row["parts_ms"]["matrix products"] > 0
        assert found["products_alone_ms"][row["model"]] > 0
    assert all(target["verdict"] == "not measured" for target in found["targets"])
