"""sbatch of a controller that was killed while it submitted, and the jobs that have started."""

import contextlib
import logging
import os
import re
import signal
import time
from collections.abc import Collection, Iterable, Iterator
from pathlib import Path

from elmanctl.processes import command_lines
from elmanctl.schedulers.slurm import SlurmSilent

SBATCH_TIMEOUT_S = 180

# A process that hangs in the kernel, at a file server that is down, outlives SIGKILL.
_KILLED_S = 5.0

logger = logging.getLogger(__name__)


def wait_for_sbatch(scripts: Iterable[str]) -> None:
    """Wait while a dead controller's sbatch is still talking to Slurm: its answer decides.

    After the timeout that its own controller would have enforced, it is killed.  Raises SlurmSilent
    if it cannot even be killed: it may still submit.
    """
    wanted = set(scripts)
    deadline = time.monotonic() + SBATCH_TIMEOUT_S
    while wanted and (alive := list(_sbatch_of(wanted))):
        late_s = time.monotonic() - deadline
        if late_s > _KILLED_S:
            raise SlurmSilent(f"sbatch of an earlier controller cannot be killed: {alive}")
        if late_s > 0:
            logger.warning("sbatch of an earlier controller does not end, and is killed: %s", alive)
            for process in alive:
                with contextlib.suppress(OSError):
                    os.kill(process, signal.SIGKILL)
        time.sleep(0.2)


def _sbatch_of(scripts: Collection[str]) -> Iterator[int]:
    """Yield the processes that run sbatch, or a wrapper of that name, on one of these scripts."""
    wanted = re.compile(rf"(?:^|[/ ])sbatch(?: --\S+)* (?:{'|'.join(map(re.escape, scripts))}) *$")
    yield from (process for process, line in command_lines() if wanted.search(line))


def started_job(folder: Path) -> str | None:
    """Return the array's job id from the links that its tasks make when they start."""
    for link in folder.glob("*_submitted.pkl"):
        job_id = link.name.partition("_")[0]
        if job_id.isdigit():
            return job_id
    return None
