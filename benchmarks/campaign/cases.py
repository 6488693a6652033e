"""The ways to end a job on a real cluster, and the verdict that each must get."""

import json
import os
import subprocess
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from campaign.cluster import slurmbox
from elmanctl.ledger.records import Cause, VerdictKind
from tests.integration.cluster import Job
from tests.integration.runs import wait_for

# A file of the run's folder for which the script of a gated job waits before it calls srun.
GATE = "gate"

_K = VerdictKind
_HANG = "import time; time.sleep(600)"
_SLOW = "import time; time.sleep(20)"
# As under `ulimit -St`, but not before the worker works.
_OVER_CPU_TIME = """
import resource, time
resource.setrlimit(resource.RLIMIT_CPU, (int(time.process_time()) + 2, resource.RLIM_INFINITY))
while True:
    pass
"""
# The first start hangs, until somebody ends it; the second trains.
_HANG_ONCE = """
import os, time
if os.environ.get("SLURM_RESTART_COUNT", "0") == "0":
    time.sleep(600)
"""
_WIDE = {"dim": 4096, "depth": 2, "n_heads": 64, "n_state": 32}


def start(job: Job) -> str:
    """Wait until a job's worker works; return its node."""
    claim = job.paths.attempt("g000-e00", 1).claim
    wait_for(claim.exists, f"the worker of {job.live.job_id}")
    return str(wait_for(lambda: job.report().node, "the job's node"))


def kill_node(job: Job) -> None:
    """Take the power from the node that the job runs on."""
    slurmbox("kill-node", start(job))


def kill_node_and_requeue(job: Job) -> None:
    """Take the power from the node of a job that Slurm may put back, and have it start again."""
    allow_requeue(job)
    slurmbox("kill-node", start(job))
    restart(job)


def preempt(job: Job) -> None:
    """Let a job of the partition `urgent` take all CPUs of the job's node."""
    node = start(job)
    claim = ["--partition=urgent", f"--nodelist={node}", "--exclusive", "--time=1"]
    slurm("sbatch", "--parsable", *claim, "--output=/dev/null", "--wrap=sleep 5")


def preempt_and_requeue(job: Job) -> None:
    """Preempt a job that Slurm may put back, and have it start again."""
    allow_requeue(job)
    preempt(job)
    restart(job)


def requeue(job: Job) -> None:
    """Put a job back as an administrator does; Slurm refuses that for a job of ours."""
    start(job)
    for word in ("requeue", "requeuehold"):
        done = subprocess.run(["scontrol", word, job.live.job_id], capture_output=True, check=False)
        assert done.returncode != 0, f"Slurm has carried out `scontrol {word}`"


def allow_requeue(job: Job) -> None:
    """Let Slurm put the job back, as where an administrator changes it."""
    slurm("scontrol", "update", f"JobId={job.live.job_id}", "Requeue=1")


def restart(job: Job) -> None:
    """Wait until a job was put back and has started again."""
    name = job.live.job_id

    def has_restarted() -> bool:
        # Slurm waits two minutes before it starts a job again, unless it is told not to.
        again = ["scontrol", "update", f"JobId={name}", "StartTime=now"]
        subprocess.run(again, capture_output=True, check=False)
        shown = slurm("scontrol", "show", "job", name)
        # At first it is still completing.
        again_at_work = "JobState=RUNNING" in shown or "JobState=COMPLETED" in shown
        return "Restarts=1" in shown and again_at_work

    wait_for(has_restarted, f"job {name} to start again")


def scancel(job: Job) -> None:
    """Cancel as a user does, behind the controller's back."""
    start(job)
    slurm("scancel", job.live.job_id)


def kill_worker(job: Job) -> None:
    """Send the worker itself SIGKILL."""
    start(job)
    beat = job.paths.attempt("g000-e00", 1).heartbeat
    wait_for(beat.exists, "a heartbeat")
    pid = int(json.loads(beat.read_text(encoding="utf-8"))["pid"])
    os.kill(pid, 9)


def restart_slurmctld(job: Job) -> None:
    """Restart the cluster's controller while the job runs."""
    start(job)
    slurmbox("stop", "slurmctld")
    slurmbox("start", "slurmctld")


def open_without_slurmctld(job: Job) -> None:
    """Let srun of a job that has begun find no slurmctld."""
    wait_for(lambda: job.report().node, "the job's node")
    open_without(job, "slurmctld")


def open_without_slurmd(job: Job) -> None:
    """Let srun of a job that has begun find no slurmd on its node."""
    node = wait_for(lambda: job.report().node, "the job's node")
    open_without(job, f"slurmd.{node}")


def open_without(job: Job, daemon: str) -> None:
    """Stop a daemon, let a gated job call srun, and start the daemon when srun has complained."""
    log = job.executor.log(job.live)
    slurmbox("stop", daemon)
    try:
        (job.paths.folder / GATE).touch()
        wait_for(lambda: log.exists() and "srun: " in log.read_text(errors="replace"), "srun")
    finally:
        slurmbox("start", daemon)


def kill_without_slurmdbd(job: Job) -> None:
    """Kill the worker while the accounting daemon is down: nobody knows the exit code."""
    start(job)
    slurmbox("stop", "slurmdbd")
    kill_worker(job)


def forget(job: Job) -> None:
    """Let Slurm lose the job: its node dies, and then all records of it."""
    node = start(job)
    if subprocess.run(["sacct", "-n"], capture_output=True, check=False).returncode == 0:
        slurmbox("stop", "slurmdbd")
    slurmbox("kill-node", node)
    slurmbox("stop", "slurmctld")
    for name in ("job_state", "job_state.old"):
        (Path(os.environ["SLURM_CONF"]).parents[1] / "state" / name).unlink(missing_ok=True)
    slurmbox("start", "slurmctld")


def slurm(*command: str) -> str:
    """Run a command of Slurm and return its answer."""
    return subprocess.run(command, check=True, capture_output=True, text=True).stdout


@dataclass(frozen=True, slots=True, kw_only=True)
class Case:
    """A way to end a job, and the verdict it must get.

    `alone`: it disturbs the whole cluster.  `node` counts the nodes of the cluster, from the last
    one back, of a case that disturbs the jobs on its node.
    """

    name: str
    done: str
    expected: VerdictKind
    job: dict[str, Any]
    cause: Cause | None = None
    disturb: Callable[[Job], None] | None = None
    on_full_disk: bool = False
    gated: bool = False
    alone: bool = False
    node: int | None = None
    needs_accounting: bool = False


CASES = {
    case.name: case
    for case in (
        Case(name="completed", done="nothing", expected=_K.COMPLETED, job={}),
        Case(
            name="diverged",
            done="a learning rate of 1,000,000",
            expected=_K.DIVERGED,
            job={"spec": {"lr": 1e6}},
        ),
        Case(
            name="invalid",
            done="a model that does not exist",
            expected=_K.INVALID,
            job={"spec": {"level": "e99"}},
        ),
        Case(
            name="python error",
            done="an exception in the worker",
            expected=_K.PYTHON_ERROR,
            job={"broken_by": 'raise RuntimeError("a bug")'},
        ),
        Case(
            name="environment",
            done="an import that fails",
            expected=_K.ENVIRONMENT,
            job={"broken_by": "import a_package_that_is_not_here"},
        ),
        Case(
            name="out of memory",
            done="a model of 2 GB under `--mem=512M`",
            expected=_K.OOM,
            cause=Cause.HOST,
            job={"config": _WIDE, "mem_gb": 0.5},
        ),
        Case(
            name="time limit",
            done="a worker that hangs, under `--time=1`",
            expected=_K.TIMEOUT,
            job={"broken_by": _HANG, "timeout_min": 1},
        ),
        Case(
            name="cpu time",
            done="a soft limit on CPU time",
            expected=_K.TIMEOUT,
            cause=Cause.CPU_TIME,
            job={"broken_by": _OVER_CPU_TIME},
        ),
        Case(
            name="cancelled by hand",
            done="`scancel`",
            expected=_K.CANCELLED,
            job={"broken_by": _HANG},
            disturb=scancel,
        ),
        Case(
            name="killed",
            done="`kill -9` of the worker",
            expected=_K.KILLED,
            job={"broken_by": _HANG},
            disturb=kill_worker,
        ),
        Case(
            name="disk full",
            done="a file system without a free byte",
            expected=_K.DISK_FULL,
            job={},
            on_full_disk=True,
        ),
        Case(
            name="requeue refused",
            done="`scontrol requeue` and `requeuehold`, both refused",
            expected=_K.COMPLETED,
            job={"broken_by": _SLOW},
            disturb=requeue,
        ),
        Case(
            name="preempted",
            done="a job of a higher partition takes the node",
            expected=_K.PREEMPTED,
            job={"broken_by": _HANG},
            disturb=preempt,
            node=1,
        ),
        Case(
            name="preempted and requeued",
            done="a higher partition takes the node, and Slurm may put the job back",
            expected=_K.COMPLETED,
            job={"broken_by": _HANG_ONCE},
            disturb=preempt_and_requeue,
            alone=True,
        ),
        Case(
            name="node killed",
            done="a node's power is cut",
            expected=_K.NODE_FAILURE,
            job={"broken_by": _HANG},
            disturb=kill_node,
            node=2,
        ),
        Case(
            name="node killed and requeued",
            done="a node's power is cut, and Slurm may put the job back",
            expected=_K.COMPLETED,
            job={"broken_by": _HANG_ONCE},
            disturb=kill_node_and_requeue,
            alone=True,
        ),
        Case(
            name="slurmctld restarted",
            done="slurmctld is restarted while the job runs",
            expected=_K.COMPLETED,
            job={"broken_by": _SLOW},
            disturb=restart_slurmctld,
            alone=True,
        ),
        Case(
            name="slurmctld down",
            done="slurmctld is down when the job calls srun",
            expected=_K.ENVIRONMENT,
            cause=Cause.SCHEDULER,
            job={},
            gated=True,
            disturb=open_without_slurmctld,
            alone=True,
        ),
        Case(
            name="slurmd down",
            done="slurmd of the node is down when the job calls srun",
            expected=_K.NODE_FAILURE,
            job={},
            gated=True,
            disturb=open_without_slurmd,
            alone=True,
        ),
        Case(
            name="slurmdbd down",
            done="`kill -9` of the worker while slurmdbd is down",
            expected=_K.KILLED,
            job={"broken_by": _HANG},
            disturb=kill_without_slurmdbd,
            alone=True,
            needs_accounting=True,
        ),
        Case(
            name="lost",
            done="the node dies and slurmctld forgets its jobs",
            expected=_K.LOST,
            job={"broken_by": _HANG},
            disturb=forget,
            alone=True,
        ),
    )
}
