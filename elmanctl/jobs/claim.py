"""Claim of a job on an attempt: one job works on it, even if two were submitted by mistake."""

import json
import os
import socket
from collections.abc import Mapping
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from elmanctl import clock
from elmanctl.constants import LOCAL_JOB_VARIABLE
from elmanctl.ledger.files import create_atomically, parse_object, read_small, write_json
from elmanctl.processes import start_ticks


@dataclass(frozen=True, slots=True, kw_only=True)
class Worker:
    """One start of one job; `restart` counts how often the scheduler has requeued it."""

    job_id: str
    restart: int
    host: str
    pid: int
    pid_start: int | None


def node_name(environ: Mapping[str, str] = os.environ) -> str:
    """Return Slurm's name of this node, which is not always the host name."""
    return environ.get("SLURMD_NODENAME") or socket.gethostname()


def this_worker(environ: Mapping[str, str] = os.environ) -> Worker:
    """Return the job that this process belongs to, from the variables of its launcher."""
    host = node_name(environ)
    pid = os.getpid()
    job_id, restart = f"{host}-{pid}", 0
    if local := environ.get(LOCAL_JOB_VARIABLE):
        # Checked first: a local worker in an interactive Slurm job sees that job's variables.
        job_id = local
    elif slurm := environ.get("SLURM_JOB_ID"):
        array, element = environ.get("SLURM_ARRAY_JOB_ID"), environ.get("SLURM_ARRAY_TASK_ID")
        job_id = f"{array}_{element}" if array and element else slurm
        restart = int(environ.get("SLURM_RESTART_COUNT") or 0)
    return Worker(job_id=job_id, restart=restart, host=host, pid=pid, pid_start=start_ticks(pid))


def successor(path: Path, worker: Worker) -> Worker:
    """Return the worker as a later start of the job that holds a claim, if there is one."""
    try:
        holder = parse_object(read_small(path))
    except FileNotFoundError:
        return worker
    earlier = holder["restart"]
    restart = earlier + 1 if isinstance(earlier, int) else 1
    return replace(worker, job_id=str(holder["job_id"]), restart=restart)


@dataclass(frozen=True, slots=True, kw_only=True)
class Claim:
    """The result of `take_claim`: whether the attempt is ours, and who held it before."""

    is_ours: bool
    earlier: Mapping[str, Any] | None = None


def take_claim(path: Path, worker: Worker) -> Claim:
    """Claim an attempt for `worker`, or return who holds it.

    The first job wins.  A restart of the same job takes over from its earlier start, which the
    scheduler has ended.
    """
    record = {"version": 1, **asdict(worker), "at": clock.to_text(clock.now())}
    try:
        create_atomically(path, json.dumps(record).encode())
        return Claim(is_ours=True)
    except FileExistsError:
        holder = parse_object(read_small(path))
    restart = holder["restart"]
    is_later = isinstance(restart, int) and restart < worker.restart
    if holder["job_id"] != worker.job_id or not is_later:
        return Claim(is_ours=False, earlier=holder)
    write_json(path, record)
    return Claim(is_ours=True, earlier=holder)
