"""The steps of CI have names, the same here and on the hosted machines."""

import re
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parents[1]


def run_ci(*words: str) -> "subprocess.CompletedProcess[str]":
    return subprocess.run(
        [ROOT / ".ci" / "run", *words], capture_output=True, text=True, check=False
    )


def test_hosted_file_has_a_job_for_each_step() -> None:
    hosted = (ROOT / ".github" / "workflows" / "ci.yml").read_text(encoding="utf-8")
    (steps,) = re.findall(r"step: \[(.*)\]", hosted)
    assert steps.split(", ") == run_ci("--list").stdout.split()
    assert "run: .ci/run ${{ matrix.step }}" in hosted


def test_steps_of_clusters_find_every_test_that_needs_one() -> None:
    """They look in one folder: to collect all tests takes longer than a cluster to start."""
    paths = [path for path in (ROOT / "tests").rglob("*.py") if "mark.slurm" in path.read_text()]
    assert {path.parent.name for path in paths if path != Path(__file__)} == {"integration"}
    named = re.findall(r"tests/integration/\w+\.py", (ROOT / ".ci" / "run").read_text())
    assert named and {ROOT / name for name in named} <= {*paths}


def test_unknown_step_is_refused_before_anything_is_installed() -> None:
    done = run_ci("lint", "tests")
    assert (done.returncode, done.stdout) == (2, "")
    assert "no step named tests" in done.stderr


def test_pre_commit_accepts_its_configuration() -> None:
    command = [sys.executable, "-m", "pre_commit", "validate-config"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
