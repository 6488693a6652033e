"""Searches on a Slurm cluster that itself is disturbed; slurmbox commands do that."""

import os
import subprocess
import time
from collections.abc import Callable
from pathlib import Path

from campaign.search import ROOT, Fault, Search, wait_for
from elmanctl.ledger.records import State


def slurmbox(*arguments: str) -> None:
    """Run one command of scripts/slurmbox on the box whose cluster is in use."""
    folder = Path(os.environ["SLURM_CONF"]).parents[1]
    done = subprocess.run(
        [str(ROOT / "scripts" / "slurmbox"), *arguments],
        capture_output=True,
        text=True,
        check=False,
        env={**os.environ, "SLURMBOX": str(folder)},
    )
    if done.returncode != 0:
        raise RuntimeError(f"slurmbox {arguments}: {done.stderr}")


def restart_slurmctld(search: Search) -> None:
    """Stop slurmctld for some seconds."""
    slurmbox("stop", "slurmctld")
    time.sleep(6)
    slurmbox("start", "slurmctld")


def stop_slurmdbd(search: Search) -> None:
    """Stop slurmdbd; `start_slurmdbd` comes when the search has ended."""
    slurmbox("stop", "slurmdbd")


def start_slurmdbd() -> None:
    """Start slurmdbd again."""
    slurmbox("start", "slurmdbd")


def kill_a_node(search: Search) -> None:
    """Cut the power of a node that trains, and bring it back later."""
    node = wait_for(lambda: _busy_node(search), "an attempt to run")
    slurmbox("kill-node", node)
    time.sleep(12)
    slurmbox("start-node", node)


def preempt(search: Search) -> None:
    """Let a job of the partition `urgent` take all nodes for some seconds."""
    wait_for(lambda: _busy_node(search), "an attempt to run")
    subprocess.run(
        [
            *("sbatch", "--partition=urgent", "--nodes=4", "--exclusive", "--wait"),
            *("--output=/dev/null", "--wrap=sleep 4"),
        ],
        check=True,
        capture_output=True,
    )


def disturb(
    search: Search, disturbance: Callable[[Search], None], after: Callable[[], None] | None = None
) -> int:
    """Start a search, disturb the cluster while a worker trains, and let the search finish.

    Returns how often `resume` was needed; raises Fault when more than three do not help.
    """
    process = search.start()
    try:
        wait_for(lambda: search.trainings(), "a worker to train")
        disturbance(search)
        for resumes in range(4):
            if search.wait(process) == 0:
                return resumes
            process = search.start()
        raise Fault(f"not finished after {resumes} times resume\n{search.words(process)}")
    finally:
        if process.poll() is None:
            search.kill(process)
        if after is not None:
            after()


def _busy_node(search: Search) -> str | None:
    if not search.exists:
        return None
    for evaluation, attempt in search.state().live_attempts():
        claim = search.run_folder / "evaluations" / evaluation.id / f"attempt-{attempt.number}"
        if attempt.state is State.RUNNING and attempt.node and (claim / "claim.json").exists():
            return attempt.node
    return None
