"""What stands in a user's shell, on a real cluster: an allocation, filters, limits, defaults."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

from elmanctl.ledger.records import State
from elmanctl.run.paths import RunPaths
from elmanctl.schedulers.scheduler_note import read_note
from tests.command_line import CommandLine
from tests.integration.runs import load, search_arguments, wait_for, with_standins
from tests.patience import PATIENCE_S

pytestmark = [pytest.mark.slurm, pytest.mark.timeout(280)]

# Of a partition in which none of our jobs is.
FILTERS = {
    "SQUEUE_PARTITION": "gpu",
    "SQUEUE_STATES": "SUSPENDED",
    "SQUEUE_NAMES": "another",
    "SACCT_FORMAT": "JobID",
    "SINFO_PARTITION": "gpu",
    "SINFO_FORMAT": "%A",
    "SCANCEL_PARTITION": "gpu",
    "SCANCEL_INTERACTIVE": "1",
}

SETTINGS = """\
[slurm]
poll_s = 1.0
mem_gb = 0.5
setup = [
    "env -0 > env-$SLURM_ARRAY_TASK_ID",
    "srun bash -c 'ulimit -St; ulimit -Sc' > limits-$SLURM_ARRAY_TASK_ID",
]
"""


def user(elmanctl: CommandLine, settings: str, **variables: str) -> CommandLine:
    (elmanctl.folder / "elman.toml").write_text(settings, encoding="utf-8")
    return CommandLine(
        folder=elmanctl.folder, environment={**elmanctl.environment, **FILTERS, **variables}
    )


def test_controller_in_a_step_of_an_allocation_searches_as_from_anywhere(
    elmanctl: CommandLine, corpus: Path
) -> None:
    """By salloc and srun, whose variables say how their own step runs; under a soft limit."""
    shell = user(elmanctl, SETTINGS, SBATCH_PARTITION="urgent", SBATCH_COMMENT="mine")
    inside = with_standins(shell)
    limited = ("bash", "-c", 'ulimit -St 600 -Sc 0 && exec "$@"', "bash")
    allocation = ("salloc", "-p", "gpu", "-n1", "--mem-per-cpu=700", "--gpus-per-task=1")
    step = ("srun", "--cpu-bind=cores")
    arguments = [*search_arguments(corpus), "--generations", "1"]
    done = subprocess.run(
        [*limited, *allocation, *step, sys.executable, "-m", "elmanctl", *arguments],
        cwd=inside.folder,
        env=inside.environment,
        capture_output=True,
        text=True,
        stdin=subprocess.DEVNULL,
        timeout=PATIENCE_S,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert "slurm.partition = urgent, from SBATCH_PARTITION" in done.stderr
    assert "SBATCH_COMMENT is not used" in done.stderr
    state = load(inside.folder / "runs" / "run")
    assert {e.state for e in state.evaluations.values()} == {State.COMPLETED}
    assert {len(e.attempts) for e in state.evaluations.values()} == {1}
    assert state.excluded_nodes == {}
    # On record, for a controller that goes on elsewhere.
    assert state.run["settings"]["slurm"]["partition"] == "urgent"
    for index in range(4):
        text = (inside.folder / f"env-{index}").read_text(encoding="utf-8")
        seen = dict(line.partition("=")[::2] for line in text.split("\0") if line)
        assert seen["SLURM_JOB_PARTITION"] == "urgent"
        assert seen["SLURM_ARRAY_TASK_ID"] == str(index)
        assert seen["HOME"] == inside.environment["HOME"]
        left = {"MEM_PER_CPU", "GPUS_PER_TASK", "CPU_BIND", "SRUN_COMM_HOST"}
        assert not {f"SLURM_{name}" for name in left} & set(seen)
        # Slurm 26.05 numbers the step of the script, by less than zero.
        assert seen.get("SLURM_STEP_ID", "-") != "0"
        assert not set(FILTERS) & set(seen)
        limits = (inside.folder / f"limits-{index}").read_text(encoding="utf-8").split()
        # What a step gets: time without the shell's limit, and no core files, as in the shell.
        assert limits[0] != "600" and limits[1] == "0"


HELD = """\
[slurm]
partition = "urgent"
poll_s = 1.0
extra = { hold = true }
"""


def test_filters_of_a_profile_hide_no_waiting_job_and_keep_none_from_being_cancelled(
    elmanctl: CommandLine, corpus: Path
) -> None:
    held = user(elmanctl, HELD)
    controller = held.start(search_arguments(corpus))
    folder = held.folder / "runs" / "run"
    try:
        wait_for(lambda: len(_waiting(folder)) == 4, "the jobs to be seen waiting")
        controller.terminate()
        output, _ = controller.communicate(timeout=PATIENCE_S)
        assert controller.returncode == 130, output
    finally:
        controller.kill()
    state = load(folder)
    jobs = {str(e.attempts[0].job_id) for e in state.evaluations.values()}
    cancel = ("cancel", "--run", "run", "--all", "--yes", "--json")
    # A wrapper that does nothing and says that all is well.
    tools = held.folder / "bin"
    tools.mkdir()
    (tools / "scancel").symlink_to("/bin/true")
    path = f"{tools}:{held.environment['PATH']}"
    wrapped = CommandLine(folder=held.folder, environment={**held.environment, "PATH": path})
    failed = wrapped(*cancel)
    assert failed.returncode == 5
    assert f"{len(jobs)} of their jobs still exist" in failed.stderr
    told = json.loads(failed.stdout)["still_there"]
    assert {(row["job"], row["now"]) for row in told} == {(job, "waiting") for job in jobs}
    done = held(*cancel)
    assert done.returncode == 0, done.stderr
    answer = json.loads(done.stdout)
    assert {row["job"] for row in answer["cancelled"]} == jobs
    assert {row["now"] for row in answer["cancelled"]} <= {"gone", "ending", None}
    assert (answer["still_there"], answer["unknown"]) == ([], None)
    # Nothing was called lost and submitted again meanwhile.
    (submission,) = load(folder).submissions.values()
    named = ("squeue", "-h", "-n", submission.job_name)
    assert subprocess.check_output(named, text=True) == ""


def _waiting(folder: Path) -> dict[str, str]:
    note = read_note(RunPaths(folder).scheduler)
    return {} if note is None else dict(note.pending)
