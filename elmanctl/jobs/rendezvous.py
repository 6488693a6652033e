"""Rendezvous of the ranks of an attempt: a file in its folder with the address of rank 0."""

import time
from dataclasses import asdict, dataclass
from typing import Any

from elmanctl.errors import EnvironmentNotReady
from elmanctl.jobs.claim import Worker
from elmanctl.ledger.files import write_json
from elmanctl.run.paths import AttemptPaths
from elmanctl.run.progress import read_table

# How long the ranks wait for each other: a slow file system and a slow node included.
TIMEOUT_S = 300.0

_PAUSE_S = 0.2


@dataclass(frozen=True, slots=True, kw_only=True)
class Address:
    """Where rank 0 can be reached; only who knows the `key` is one of its ranks."""

    host: str
    port: int
    key: str


def publish(paths: AttemptPaths, worker: Worker, address: Address) -> None:
    """Write the address for the other ranks of this start of this job."""
    start = {"job_id": worker.job_id, "restart": worker.restart}
    write_json(paths.rendezvous, {"version": 1, **start, **asdict(address)})


def await_address(
    paths: AttemptPaths, worker: Worker, *, timeout_s: float = TIMEOUT_S
) -> Address | None:
    """Return where rank 0 of this start of this job is, None if it has nothing to do.

    What an earlier start left is never used.  Raises EnvironmentNotReady when there is no address
    in time.
    """
    deadline = time.monotonic() + timeout_s
    while time.monotonic() < deadline:
        table = read_table(paths.rendezvous)
        if table is not None and _is_of(table, worker):
            return Address(host=str(table["host"]), port=int(table["port"]), key=str(table["key"]))
        if paths.result.exists() or _is_held_by_another(paths, worker):
            return None
        time.sleep(_PAUSE_S)
    raise EnvironmentNotReady(
        f"rank 0 of job {worker.job_id} gave no address within {timeout_s:g} s",
        hint=f"all nodes of a job must see the same folder: {paths.folder}",
    )


def _is_of(table: dict[str, Any], worker: Worker) -> bool:
    return table.get("job_id") == worker.job_id and table.get("restart") == worker.restart


def _is_held_by_another(paths: AttemptPaths, worker: Worker) -> bool:
    """Whether another job, or a later start of this one, has claimed the attempt."""
    claim = read_table(paths.claim)
    if claim is None:
        return False
    return claim.get("job_id") != worker.job_id or int(claim.get("restart", 0)) > worker.restart
