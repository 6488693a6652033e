"""Produce every verdict for real on a Slurm cluster of scripts/slurmbox, and compare.

    eval "$(scripts/slurmbox up)" && python -m benchmarks.verdicts_on_cluster --out verdicts.json

Prints case, expected, verdict, confidence and the first evidence; exits with 1 on any mismatch.
All jobs run side by side where they do not disturb each other.  `--only` runs some cases, `--list`
names them.  Cases that need accounting off are left out on a box that has it (ACCOUNTING=0).
"""

import argparse
import json
import os
import subprocess
import sys
import sysconfig
import tempfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from elmanctl.ledger.records import Verdict, VerdictKind
from tests.integration.cluster import Job
from tests.integration.runs import wait_for

SLURMBOX = Path(__file__).parents[1] / "scripts" / "slurmbox"

_K = VerdictKind
_HANG = "import time; time.sleep(600)"
_SLOW = "import time; time.sleep(20)"
_WIDE = {"dim": 4096, "depth": 2, "n_heads": 64, "n_state": 32}


def slurmbox(*arguments: str) -> None:
    """Run a command on the box that SLURM_CONF belongs to."""
    folder = Path(os.environ["SLURM_CONF"]).parents[1]
    subprocess.run(
        [SLURMBOX, *arguments],
        check=True,
        capture_output=True,
        env={**os.environ, "SLURMBOX": str(folder)},
    )


def start(job: Job) -> str:
    """Wait until a job's worker works; return its node."""
    claim = job.paths.attempt("g000-e00", 1).claim
    wait_for(claim.exists, f"the worker of {job.live.job_id}")
    return str(wait_for(lambda: job.report().node, "the job's node"))


def kill_node(job: Job) -> None:
    """Take the power from the node that the job runs on."""
    slurmbox("kill-node", start(job))


def preempt(job: Job) -> None:
    """Let a job of the partition `urgent` take all CPUs of the job's node."""
    node = start(job)
    claim = ["--partition=urgent", f"--nodelist={node}", "--exclusive", "--time=1"]
    subprocess.run(
        ["sbatch", "--parsable", *claim, "--output=/dev/null", "--wrap=sleep 5"],
        check=True,
        capture_output=True,
    )


def scancel(job: Job) -> None:
    """Cancel as a user does, behind the controller's back."""
    start(job)
    subprocess.run(["scancel", job.live.job_id], check=True)


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


@dataclass(frozen=True, slots=True, kw_only=True)
class Case:
    """A way to end a job, and the verdict it must get."""

    expected: VerdictKind
    job: dict[str, Any]
    disturb: Callable[[Job], None] | None = None
    on_full_disk: bool = False
    alone: bool = False


CASES = {
    "completed": Case(expected=_K.COMPLETED, job={}),
    "diverged": Case(expected=_K.DIVERGED, job={"spec": {"lr": 1e6}}),
    "invalid": Case(expected=_K.INVALID, job={"spec": {"level": "e99"}}),
    "python error": Case(
        expected=_K.PYTHON_ERROR, job={"broken_by": 'raise RuntimeError("a bug")'}
    ),
    "environment": Case(
        expected=_K.ENVIRONMENT, job={"broken_by": "import a_package_that_is_not_here"}
    ),
    "out of memory": Case(expected=_K.OOM, job={"config": _WIDE, "mem_gb": 0.5}),
    "time limit": Case(expected=_K.TIMEOUT, job={"broken_by": _HANG, "timeout_min": 1}),
    "cancelled by hand": Case(expected=_K.CANCELLED, job={"broken_by": _HANG}, disturb=scancel),
    "killed": Case(expected=_K.KILLED, job={"broken_by": _HANG}, disturb=kill_worker),
    "disk full": Case(expected=_K.DISK_FULL, job={}, on_full_disk=True),
    "preempted": Case(expected=_K.PREEMPTED, job={"broken_by": _HANG}, disturb=preempt, alone=True),
    "node killed": Case(
        expected=_K.NODE_FAILURE, job={"broken_by": _HANG}, disturb=kill_node, alone=True
    ),
    "slurmctld restarted": Case(
        expected=_K.COMPLETED, job={"broken_by": _SLOW}, disturb=restart_slurmctld, alone=True
    ),
    "slurmdbd down": Case(
        expected=_K.KILLED, job={"broken_by": _HANG}, disturb=kill_without_slurmdbd, alone=True
    ),
    "lost": Case(expected=_K.LOST, job={"broken_by": _HANG}, disturb=forget, alone=True),
}


def main() -> int:
    """Run the cases and print the table."""
    parser = argparse.ArgumentParser(description="Every verdict for real, on a slurmbox cluster.")
    parser.add_argument("--out", type=Path, help="write the table as JSON, too")
    parser.add_argument("--only", help="names of cases, with commas between them")
    parser.add_argument("--list", action="store_true", help="name the cases")
    options = parser.parse_args()
    if options.list:
        print("\n".join(CASES))
        return 0
    names = options.only.split(",") if options.only else list(CASES)
    with tempfile.TemporaryDirectory(prefix="verdicts-") as folder:
        rows = run([name.strip() for name in names], Path(folder))
    if options.out:
        options.out.write_text(json.dumps({"cases": rows}, indent=2) + "\n", encoding="utf-8")
    for row in rows:
        shown = (row["case"], row["expected"], row["verdict"], row["confidence"])
        print("".join(f"{word:<22}" for word in map(str, shown)) + str(row["evidence"])[:120])
    wrong = [row for row in rows if row["verdict"] != row["expected"]]
    print(f"\n{len(rows) - len(wrong)} of {len(rows)} as expected")
    return 1 if wrong else 0


def run(names: list[str], folder: Path) -> list[dict[str, Any]]:
    """Return a row for each case; what disturbs the whole cluster runs alone, at the end."""
    corpus = folder / "corpus.bytes"
    corpus.write_bytes((Path(sysconfig.get_path("stdlib")) / "turtle.py").read_bytes())
    together = {name: submit(name, folder, corpus) for name in names if not CASES[name].alone}
    for name, job in together.items():
        disturb = CASES[name].disturb
        if disturb is not None:
            disturb(job)
    rows = [row_of(name, job.verdict()) for name, job in together.items()]
    for name in (name for name in names if CASES[name].alone):
        case, job = CASES[name], submit(name, folder, corpus)
        assert case.disturb is not None
        case.disturb(job)
        rows.append(row_of(name, job.verdict()))
        slurmbox("up")
    for name in together:
        if CASES[name].on_full_disk:
            subprocess.run(["umount", folder / name.replace(" ", "-")], check=True)
    return rows


def submit(name: str, folder: Path, corpus: Path) -> Job:
    """Submit the job of a case, on a small file system where it asks for one."""
    case, run_folder = CASES[name], folder / name.replace(" ", "-")
    if case.on_full_disk:
        run_folder.mkdir()
        mount = ["mount", "-t", "tmpfs", "-o", "size=16m", "elmanctl", str(run_folder)]
        subprocess.run(mount, check=True)
    job = Job(run_folder, corpus, **case.job)
    if case.on_full_disk:
        fill(run_folder)
    return job


def fill(folder: Path) -> None:
    """Leave a file system with no room at all."""
    with (folder / "filler").open("wb", buffering=0) as stream:
        try:
            while True:
                stream.write(bytes(4096))
        except OSError:
            return


def row_of(name: str, verdict: Verdict) -> dict[str, Any]:
    """Return one case of the table."""
    return {
        "case": name,
        "expected": CASES[name].expected.value,
        "verdict": verdict.kind.value,
        "confidence": verdict.confidence and verdict.confidence.value,
        "cause": verdict.cause and verdict.cause.value,
        "evidence": verdict.summary,
    }


if __name__ == "__main__":
    sys.exit(main())
