"""Process of another rank on the machine of rank 0: `python -m elmanctl.jobs.local_rank ...`.

Its arguments are the attempt's folder, rank 0's process id, the rank, the number of ranks, and the
id and the restart of the job.
"""

import ctypes
import logging
import os
import signal
import sys
from dataclasses import replace
from pathlib import Path

from elmanctl.jobs.claim import this_worker
from elmanctl.jobs.other_rank import train_along
from elmanctl.jobs.place import Place
from elmanctl.run.paths import AttemptPaths

# From <sys/prctl.h>: the signal that this process gets when its parent ends.
_PR_SET_PDEATHSIG = 1


def main(arguments: list[str]) -> None:
    """Train as the rank that the arguments name, and end with rank 0's process at the latest."""
    folder, parent, rank, count, job_id, restart = arguments
    _end_with_parent(int(parent))
    logging.basicConfig(format=f"rank {rank}: %(message)s", level=logging.WARNING)
    place = Place(rank=int(rank), count=int(count), local_rank=int(rank))
    worker = replace(this_worker(), job_id=job_id, restart=int(restart))
    train_along(AttemptPaths(Path(folder)), worker, place)


def _end_with_parent(parent: int) -> None:
    ctypes.CDLL(None, use_errno=True).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
    # It may have ended before it was asked for.
    if os.getppid() != parent:
        sys.exit(1)


if __name__ == "__main__":
    main(sys.argv[1:])
