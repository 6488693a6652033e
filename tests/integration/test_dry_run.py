"""What a dry run hears from a real cluster."""

import json
import subprocess
from pathlib import Path

import pytest

from tests.command_line import CommandLine

pytestmark = [pytest.mark.slurm, pytest.mark.timeout(300)]


def queue() -> str:
    command = ["squeue", "-h", "-t", "all", "-o", "%i %j"]
    return subprocess.run(command, check=True, capture_output=True, text=True).stdout


def test_dry_run_tells_what_sbatch_would_say_and_submits_nothing(
    elmanctl: CommandLine, corpus: Path
) -> None:
    words = ("search", "e88", "--preset", "tiny", "--data", str(corpus), "--dry-run", "--json")
    done = elmanctl(*words, "--partition", "gpu", "--name", "never-made")
    assert (done.returncode, done.stderr) == (0, "")
    found = json.loads(done.stdout)["cluster"]
    assert (found["silence"], found["outcome"], found["name"]) == (None, "accepted", "slurmbox")
    assert found["starts_at"] and found["array_limit"]
    (partition,) = found["partitions"]
    assert partition["name"] == "gpu" and partition["is_default"] and partition["nodes"] > 0
    done = elmanctl(*words, "--partition", "nowhere", "--name", "never-made")
    found = json.loads(done.stdout)["cluster"]
    assert (found["outcome"], found["key"]) == ("never", "slurm.partition")
    assert "no partition `nowhere` is listed; partitions here: gpu" in found["warnings"][0]
    # More memory than any node has: sbatch alone knows.
    (elmanctl.folder / "elman.toml").write_text(
        "[search]\nparams = '100K'\ntolerance = 0.1\nmultiple_of = 8\nspace = 'tiny'\n"
        "[train]\nsteps = 5\n[slurm]\nmem_gb = 99999\n",
        encoding="utf-8",
    )
    words = ("search", "e88", "--data", str(corpus), "--dry-run", "--json", "--partition", "gpu")
    done = elmanctl(*words, "--name", "never-made")
    assert json.loads(done.stdout)["cluster"]["outcome"] == "never"
    assert "never-made" not in queue()
