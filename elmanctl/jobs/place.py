"""Place of a process among the ranks that train one model."""

import os
from collections.abc import Mapping
from dataclasses import dataclass


@dataclass(frozen=True, slots=True, kw_only=True)
class Place:
    """The number of a rank among all, and on its node, which is that of its GPU."""

    rank: int = 0
    count: int = 1
    local_rank: int = 0

    def describe(self, node: str) -> str:
        """Return the rank and its node in words."""
        return f"rank {self.rank} of {self.count} on {node}"


def task_place(environ: Mapping[str, str] = os.environ) -> Place | None:
    """Return the place among the tasks of a Slurm job of ours, None for any other process.

    A process that merely runs inside an allocation sees that job's variables too.
    """
    if environ.get("SUBMITIT_EXECUTOR") != "slurm":
        return None
    return Place(
        rank=int(environ.get("SLURM_PROCID") or 0),
        count=int(environ.get("SLURM_NTASKS") or 1),
        local_rank=int(environ.get("SLURM_LOCALID") or 0),
    )
