"""Folders and values that a shell would trip over, by way of a real sbatch, slurmd and srun."""

import json
import os
import shlex
import subprocess
import sys
from pathlib import Path

import pytest

from elmanctl.clock import now, to_text
from elmanctl.ledger.submissions import Resources, Submission, Task
from elmanctl.run.paths import RunPaths
from elmanctl.schedulers.slurm_executor import SlurmExecutor
from tests.integration.runs import wait_for

pytestmark = [pytest.mark.slurm, pytest.mark.timeout(120)]

NASTY = '-it\'s a "run"; $(touch canary) `touch canary` #SBATCH --wrap=x & é漢 {a,b} !! ~'

# In place of Python: tells what it was called with, and leaves.
_WORKER = """\
#!{python}
import json, os, pathlib, sys
out = pathlib.Path(sys.argv[-1]) / "told.json"
out.with_suffix(".new").write_text(json.dumps([sys.argv[1:], os.environ["PYTHONPATH"]]))
out.with_suffix(".new").rename(out)
"""


def test_nasty_folder_and_values_arrive_as_they_are(tmp_path: Path) -> None:
    paths = RunPaths(tmp_path / NASTY)
    folder = paths.submission("s0001")
    folder.mkdir(parents=True)
    worker = paths.folder / "python stub"
    worker.write_text(_WORKER.format(python=sys.executable), encoding="utf-8")
    worker.chmod(0o755)
    submission = Submission(
        id="s0001",
        job_name=f"elman-nasty-{os.getpid()}-s0001",
        tasks=(Task(index=0, evaluation="g000-e00", attempt=1),),
        resources=Resources(
            timeout_min=1,
            partition="gpu",
            python=shlex.quote(str(worker)),
            extra={"comment": NASTY, "export": "NONE"},
        ),
        intended_at=to_text(now()),
    )
    job_id = SlurmExecutor(paths, max_jobs=1).submit(submission, folder)
    told = folder / "told.json"
    wait_for(told.exists, "the worker")
    words, python_path = json.loads(told.read_text(encoding="utf-8"))
    assert words == ["-P", "-u", "-m", "submitit.core._submit", str(folder)]
    assert python_path.split(":")[0] == str(paths.code)
    comment = ["squeue", "-h", "-t", "all", "-j", job_id, "-o", "%k"]
    assert subprocess.check_output(comment).decode().rstrip("\n") == NASTY
    assert (folder / f"{job_id}_0_0_log.out").exists()
    assert not list(tmp_path.rglob("canary"))
