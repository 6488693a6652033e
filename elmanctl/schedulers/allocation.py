"""Allocation of the user: its nodes, what each has of it, when it ends, and the slots in it; pure.

`scontrol show job --details` shows all of that, in the same words in all versions of Slurm.
"""

import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime

from elmanctl.errors import EnvironmentNotReady
from elmanctl.ledger.submissions import Allocation, Resources
from elmanctl.schedulers.executor import JobState
from elmanctl.schedulers.slurm_environment import allocation as job_here
from elmanctl.schedulers.slurm_output import count_gpus, job_state

# Steps of srun have small numbers; those beyond are the script's and the shell's of salloc.
_FIRST_SPECIAL_STEP = 0xFFFFFF00

_NODES = re.compile(r"\bNodes=(\S+) CPU_IDs=(\S+) Mem=(\d+)(?: GRES=(\S*))?")


@dataclass(frozen=True, slots=True, kw_only=True)
class Share:
    """A node of an allocation, with what this has of it; memory 0 is not limited."""

    node: str
    cpus: int
    mem_mb: int
    gpus: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Granted:
    """An allocation as Slurm shows it; `ends_at` is in seconds since 1970, None without a limit."""

    allocation: Allocation
    is_alive: bool
    ends_at: float | None
    shares: tuple[Share, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class Slot:
    """Room for one attempt on a node, as srun asks for it; memory 0 is not asked for."""

    node: str
    cpus: int
    mem_mb: int
    gres: str


def job_id_here(environ: Mapping[str, str]) -> str:
    """Return the id of the allocation that a process with this environment runs in.

    Raises EnvironmentNotReady outside of one.
    """
    array, element = environ.get("SLURM_ARRAY_JOB_ID"), environ.get("SLURM_ARRAY_TASK_ID")
    job_id = f"{array}_{element}" if array and element else job_here(environ)
    if job_id is None:
        raise EnvironmentNotReady(
            "`--inside` uses the allocation that it is started in, and this shell is in none",
            hint="run it in `salloc` or in a script of sbatch; without `--inside` each evaluation "
            "is a job of its own",
        )
    return job_id


def is_in_step(environ: Mapping[str, str]) -> bool:
    """Whether a process with this environment runs in a step of srun, which holds its share."""
    step = environ.get("SLURM_STEP_ID", "")
    return step.isdecimal() and int(step) < _FIRST_SPECIAL_STEP


def read_granted(job_id: str, text: str, host_names: Callable[[str], Sequence[str]]) -> Granted:
    """Return an allocation from what scontrol shows of it.

    `host_names` expands a list of nodes.  Raises EnvironmentNotReady for one without nodes.
    """
    name, state = _field(text, "JobName"), _field(text, "JobState")
    shares = [
        Share(node=node, cpus=_count(cpus), mem_mb=int(mem), gpus=count_gpus(gres or ""))
        for nodes, cpus, mem, gres in _NODES.findall(text)
        for node in host_names(nodes)
    ]
    if not shares:
        raise EnvironmentNotReady(f"Slurm shows no nodes of the allocation {job_id}")
    try:
        ends_at = datetime.fromisoformat(_field(text, "EndTime")).timestamp()
    except ValueError:
        ends_at = None
    return Granted(
        allocation=Allocation(job_id=job_id, job_name=name),
        is_alive=job_state(state) is not JobState.ENDED,
        ends_at=ends_at,
        shares=tuple(shares),
    )


def slots_of(granted: Granted, resources: Resources, gpus: int) -> tuple[Slot, ...]:
    """Return the slots for attempts with so many GPUs each, node by node.

    What they do not ask for, CPUs and memory, is divided between the slots of a node.  Raises
    EnvironmentNotReady where no node has room for one.
    """
    slots = [slot for share in granted.shares for slot in _on_node(share, resources, gpus)]
    if not slots:
        largest = max(granted.shares, key=lambda share: (share.gpus, share.cpus, share.mem_mb))
        raise EnvironmentNotReady(
            f"no node of the allocation {granted.allocation.job_id} has room for an evaluation: "
            f"it asks for {_described(gpus, resources.cpus, _asked_mb(resources))}, and "
            f"{largest.node} has {_described(largest.gpus, largest.cpus, largest.mem_mb)}",
            hint="set `slurm.gres`, `slurm.cpus` and `slurm.mem_gb` to what an evaluation needs; "
            "`--set slurm.gres=` trains without a GPU",
        )
    return tuple(slots)


def _on_node(share: Share, resources: Resources, gpus: int) -> list[Slot]:
    wanted_mb = _asked_mb(resources)
    limits = [share.cpus // (resources.cpus or 1)]
    if gpus:
        limits.append(share.gpus // gpus)
    if wanted_mb and share.mem_mb:
        limits.append(share.mem_mb // wanted_mb)
    count = min(limits)
    if not count:
        return []
    slot = Slot(
        node=share.node,
        cpus=resources.cpus or share.cpus // count,
        mem_mb=share.mem_mb and (wanted_mb or share.mem_mb // count),
        gres=(resources.gres or f"gpu:{gpus}") if gpus else "none",
    )
    return [slot] * count


def _asked_mb(resources: Resources) -> int:
    return 0 if resources.mem_gb is None else round(resources.mem_gb * 1024)


def _described(gpus: int, cpus: int | None, mem_mb: int) -> str:
    parts = [f"{gpus} GPU" + "s" * (gpus != 1)]
    if cpus:
        parts.append(f"{cpus} CPU" + "s" * (cpus != 1))
    if mem_mb:
        parts.append(f"{mem_mb / 1024:.3g} GB")
    return ", ".join(parts)


def _field(text: str, name: str) -> str:
    found = re.search(rf"(?:^|\s){name}=(\S*)", text)
    return found[1] if found else ""


def _count(ids: str) -> int:
    """Return how many numbers a list like `0-3,8` names."""
    total = 0
    for part in ids.split(","):
        first, _, last = part.partition("-")
        total += int(last or first) - int(first) + 1
    return total
