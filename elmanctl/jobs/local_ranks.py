"""Other ranks of an attempt as processes of this machine, which end when rank 0 does."""

import os
import signal
import subprocess
import sys
from pathlib import Path

import elmanctl
from elmanctl.jobs.claim import Worker

# How long an ended process may take until its parent can tell how.
_WAIT_S = 5.0
_STDERR = 2
_THREADS = "OMP_NUM_THREADS"


class LocalRanks:
    """The processes of ranks 1 to `count` - 1, each with the same files and the next GPU."""

    def __init__(self, folder: Path, worker: Worker, count: int) -> None:
        self._folder = folder
        self._worker = worker
        self._count = count
        self._processes: dict[int, subprocess.Popen[bytes]] = {}

    def __enter__(self) -> "LocalRanks":
        # Also for rank 0: the last bits of a model depend on the number of threads.
        share = len(os.sched_getaffinity(0)) // self._count
        os.environ.setdefault(_THREADS, str(max(1, share)))
        try:
            for rank in range(1, self._count):
                self._processes[rank] = self._start(rank)
        except BaseException:
            self._end(0.0)
            raise
        return self

    def __exit__(self, kind: type | None, *error: object) -> None:
        # They end by themselves once rank 0 has told them that all is over.
        self._end(_WAIT_S)

    def how_ended(self, rank: int) -> str | None:
        """Return the signal that ended a rank's process, None if none did."""
        try:
            code = self._processes[rank].wait(_WAIT_S)
        except subprocess.TimeoutExpired:
            return None
        return f"signal {-code} ({signal.Signals(-code).name})" if code < 0 else None

    def _start(self, rank: int) -> "subprocess.Popen[bytes]":
        # The code of this process, wherever Python looks first.
        code = str(Path(elmanctl.__file__).parents[1])
        known = os.environ.get("PYTHONPATH")
        names = (str(rank), str(self._count), self._worker.job_id, str(self._worker.restart))
        return subprocess.Popen(
            [
                *(sys.executable, "-P", "-u", "-m", "elmanctl.jobs.local_rank"),
                *(str(self._folder), str(os.getpid()), *names),
            ],
            env={**os.environ, "PYTHONPATH": f"{code}{os.pathsep}{known}" if known else code},
            stdin=subprocess.DEVNULL,
            # Nothing but results belongs on stdout.
            stdout=_STDERR,
        )

    def _end(self, wait_s: float) -> None:
        for process in self._processes.values():
            try:
                process.wait(wait_s)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()
