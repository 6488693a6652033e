"""benchmarks/gpu_check.sh as it runs on a bare machine: from a copy without a history."""

import json
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]

Script = Callable[..., "subprocess.CompletedProcess[str]"]


def _not_copied(folder: str, names: list[str]) -> set[str]:
    """Name what a copy of the tree is without: hidden folders, and what tools leave."""
    left = {name for name in names if name.startswith(".") and name != ".ci"}
    return left | ({"__pycache__", "runs", "build", "dist"} & set(names))


@pytest.fixture
def copy(tmp_path: Path) -> Path:
    """A copy of the checkout that has no history."""
    target = tmp_path / "copy"
    shutil.copytree(ROOT, target, symlinks=True, ignore=_not_copied)
    return target


@pytest.fixture
def run(copy: Path, environment: dict[str, str]) -> Script:
    """Run the script of the copy with this Python, on a machine whose torch sees no GPU."""
    inherited = {k: v for k, v in environment.items() if k != "PYTHONPATH"}

    def run(
        *arguments: str, python: str = sys.executable, **variables: str
    ) -> "subprocess.CompletedProcess[str]":
        return subprocess.run(
            [str(copy / "benchmarks" / "gpu_check.sh"), "--python", python, *arguments],
            cwd=copy.parent,
            env={**inherited, "CUDA_VISIBLE_DEVICES": "", **variables},
            capture_output=True,
            text=True,
            stdin=subprocess.DEVNULL,
            check=False,
        )

    return run


@pytest.mark.parametrize(
    ("arguments", "code", "told"),
    [
        (["--part", "everything"], 2, "no such part: everything"),
        (["--device", "tpu"], 2, "no such device: tpu"),
        (["--parts"], 2, "unknown argument: --parts"),
        (["--out"], 2, "--out needs a value"),
        (["--device", "cpu"], 4, "nobody knows the commit of this copy"),
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
    assert "error: not installed: fla_of_nobody, which is measured beside ours" in done.stderr
    assert "or pass --without fla_of_nobody" in done.stderr
    done = run("--device", "cpu", "--without", "mamba_ssm,fla_of_nobody")
    assert "WITHOUT fla_of_nobody: its rows will say that it is missing" in done.stderr
    assert "nobody knows the commit" in done.stderr


def test_wheels_that_are_not_there_are_an_error(run: Script, tmp_path: Path) -> None:
    done = run("--device", "cpu", ELMAN_WHEELS=str(tmp_path / "none"), ELMAN_COMMIT="0123abc")
    assert done.returncode == 4
    assert f"ELMAN_WHEELS={tmp_path / 'none'} holds no wheel" in done.stderr


def test_part_that_takes_too_long_is_stopped_and_said_to_be(
    run: Script, copy: Path, tmp_path: Path
) -> None:
    script = copy / "benchmarks" / "gpu_check.sh"
    text = script.read_text()
    assert "MEASURE_S=450" in text
    script.write_text(text.replace("MEASURE_S=450", "MEASURE_S=4"))
    out = tmp_path / "out"
    done = run(*("--device", "cpu", "--part", "kernels", "--out", str(out)), ELMAN_COMMIT="0123abc")
    assert done.returncode == 1, done.stderr
    assert "gpu_check: STOPPED after 4 s" in done.stderr
    assert "gpu_check: FAILED: bench kernels, exit code 124" in done.stderr
    for path in out.glob("*.json"):
        assert json.loads(path.read_text())["machine"]["commit"] == "0123abc"


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_all_parts_run_end_to_end_and_label_what_they_find(
    run: Script, copy: Path, tmp_path: Path
) -> None:
    (copy / "COMMIT").write_text("fedcba98\n")
    out = tmp_path / "found"
    done = run("--device", "cpu", "--out", str(out))
    assert done.returncode == 0, done.stderr
    assert done.stderr.endswith("gpu_check: all done\n")
    # A machine of the kind that this is for gives back at most eight files.
    assert {path.name for path in out.iterdir()} == {
        *("tests.log", "doctor.json", "kernels.json", "kernels.md", "steps.json", "steps.md"),
        "results.md",
    }
    assert "skipped" in (out / "tests.log").read_text().splitlines()[-1]
    doctor, kernels, steps = (
        json.loads((out / f"{name}.json").read_text()) for name in ("doctor", "kernels", "steps")
    )
    assert {check["status"] for check in doctor["checks"]} == {"ok", "not run"}
    ours = [row for row in kernels["kernels"] if row["path"].startswith("triton")]
    assert any(row["status"] == "measured" for row in ours)
    assert any(row["status"] == "measured" for row in steps["steps"])
    for found in (doctor, kernels, steps):
        assert found["machine"]["commit"] == "fedcba98"
        assert found["machine"]["label"].startswith("cpu, ")
    results = (out / "results.md").read_text()
    for title in ("Targets", "Ceilings", "Operations", "Training steps"):
        assert f"\n## {title}\n" in results
    assert "- label: cpu, tiny shapes: no measure of a GPU\n" in results
    # The summary is the table of targets and nothing more.
    head, *rows = done.stdout.splitlines()
    assert head.startswith("TARGET\tBOUND\t")
    assert rows and all("\tnot measured\t" in row for row in rows)
