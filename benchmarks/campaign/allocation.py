"""A controller inside an allocation of the cluster, as users have it who may not stay outside."""

import os
import shlex
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

from campaign.search import Search

JOB_NAME = "soak-controller"
_SILENT = ("`elmanctl resume` when it answers", "Unable to contact slurm controller")
_CONTROLLER = (sys.executable, "-m", "elmanctl")


class Allocation:
    """One job that holds a controller, and the client that waits for its end."""

    def __init__(self, search: Search, number: int) -> None:
        asked = [
            *(f"--job-name={JOB_NAME}", "--partition=gpu", "--ntasks=1", "--cpus-per-task=1"),
            *("--mem=600", "--time=60"),
        ]
        words = [*_CONTROLLER, *search.next_arguments()]
        self.kind = tuple(_KINDS)[number % len(_KINDS)]
        self.log = search.folder / f"controller-{number:03}-{self.kind}.log"
        command = _KINDS[self.kind](asked, words, self.log)
        with self.log.open("ab") as output:
            self._client = subprocess.Popen(
                command,
                cwd=search.folder,
                env=search.environment,
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=subprocess.STDOUT,
                start_new_session=True,
            )

    @property
    def exit_code(self) -> int | None:
        """The controller's exit code as its client passes it on, None while that waits."""
        return self._client.poll()

    @property
    def words(self) -> str:
        """The last words of controller and client."""
        return self.log.read_bytes()[-600:].decode(errors="replace")

    @property
    def found_slurm_silent(self) -> bool:
        """Whether slurmctld was away when it began, for the controller or for its client."""
        return any(text in self.words for text in _SILENT)

    def end(self, signal: str) -> None:
        """End the job as its time limit does (TERM), or at once (KILL)."""
        how = [] if signal == "TERM" else [f"--signal={signal}", "--full"]
        subprocess.run(
            ["scancel", *how, f"--name={JOB_NAME}", "--me"], check=False, capture_output=True
        )
        if self.kind == "salloc":
            # Its command runs beside the job, and what ends it is the loss of the allocation.
            subprocess.run(
                ["scancel", f"--name={JOB_NAME}", "--me"], check=False, capture_output=True
            )

    def leave(self) -> None:
        """Kill the client that still waits."""
        if self._client.poll() is None:
            self._client.kill()
        self._client.wait()


def node_of_controller() -> str | None:
    """Return the node whose power is the controller's, None while there is none."""
    command = ["squeue", "--me", "-h", "-t", "running", f"--name={JOB_NAME}", "-o", "%N"]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    return done.stdout.strip() or None


def _srun(asked: list[str], words: list[str], log: Path) -> list[str]:
    return ["srun", "--quiet", *asked, *words]


def _salloc(asked: list[str], words: list[str], log: Path) -> list[str]:
    # Without the option it would let the controller live on outside.
    return ["salloc", "--quiet", "--kill-command=KILL", *asked, *words]


def _sbatch(asked: list[str], words: list[str], log: Path) -> list[str]:
    script = f"exec {shlex.join(words)}"
    out = [f"--output={os.fspath(log)}", "--open-mode=append", "--no-requeue"]
    return ["sbatch", "--quiet", "--wait", *asked, *out, f"--wrap={script}"]


_KINDS: dict[str, Callable[[list[str], list[str], Path], list[str]]] = {
    "srun": _srun,
    "salloc": _salloc,
    "sbatch": _sbatch,
}
