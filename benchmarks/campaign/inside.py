"""Searches inside an allocation, of which now the controller and now the allocation itself ends."""

import random
import shlex
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Callable

from campaign.search import PATIENCE_S, Fault, Search, wait_for

_JOB_NAME = "held-by-the-campaign"
_ASKED = (
    *(f"--job-name={_JOB_NAME}", "--partition=gpu", "--nodes=2", "--ntasks-per-node=1"),
    *("--cpus-per-task=2", "--mem=1500", "--gres=gpu:2", "--time=30"),
)

# The exit code of a search that paused, as it does when its allocation ends.
_PAUSED = 6

_WITHIN_S = 4.0

_ENDED = ("CANCELLED", "COMPLETED", "FAILED", "PREEMPTED", "TIMEOUT", "NODE_FAIL")


class InsideKiller:
    """Ends controllers and their allocations until a search is done, in turns of every kind.

    The next controller begins in the same allocation if that is left, and in a new one if not.
    """

    def __init__(self, search: Search, chance: random.Random, kinds: Counter[str]) -> None:
        self._search = search
        self._chance = chance
        self._kinds = kinds
        self._job: str | None = None
        ways: dict[str, Callable[[subprocess.Popen[bytes]], bool]] = {
            "controller killed, its allocation goes on": self._kill_controller,
            "allocation cancelled under its controller": self._cancel,
            "controller killed, then its allocation cancelled": self._kill_both,
            "allocation preempted": self._preempt,
            "allocation near its time limit": self._shorten,
        }
        self._ways = ways
        self._in_script = "script with the controller cancelled"

    def disturb(self, most: int) -> str:
        """Disturb the search at most so often, and let it finish."""
        names = [*self._ways, self._in_script]
        while self._kinds.total() < most and not self._is_finished():
            # Each kind as often as the others, over all searches.
            name = min(names, key=lambda each: (self._kinds[each], self._chance.random()))
            done = self._end_script() if name == self._in_script else self._end(name)
            if done:
                self._kinds[name] += 1
        try:
            if not self._is_finished():
                self._search.expect(self._start(), 0)
        finally:
            self._give_back()
        return ""

    def _is_finished(self) -> bool:
        return self._search.exists and self._search.state().status.value == "finished"

    def _end(self, name: str) -> bool:
        """Start a controller and end it in one way; False if it had reached the end before."""
        process = self._start()
        self._wait_for_life(process)
        time.sleep(self._chance.uniform(0.0, _WITHIN_S))
        if process.poll() is not None:
            self._search.expect(process, 0)
            return False
        return self._ways[name](process)

    def _start(self) -> subprocess.Popen[bytes]:
        if self._job is None:
            self._job = _allocate()
        self._search.environment["SLURM_JOB_ID"] = self._job
        return self._search.start([*self._search.next_arguments(), "--inside"])

    def _wait_for_life(self, process: subprocess.Popen[bytes]) -> None:
        before = len(self._search.trainings())
        wait_for(
            lambda: process.poll() is not None or len(self._search.trainings()) > before,
            "a training to begin",
        )

    def _kill_controller(self, process: subprocess.Popen[bytes]) -> bool:
        self._search.kill(process)
        return True

    def _cancel(self, process: subprocess.Popen[bytes]) -> bool:
        self._give_back()
        return self._expect_pause(process)

    def _kill_both(self, process: subprocess.Popen[bytes]) -> bool:
        self._search.kill(process)
        self._give_back()
        return True

    def _preempt(self, process: subprocess.Popen[bytes]) -> bool:
        command = [
            *("sbatch", "--partition=urgent", "--nodes=4", "--exclusive", "--wait"),
            *("--output=/dev/null", "--wrap=sleep 1"),
        ]
        subprocess.run(command, check=True, capture_output=True)
        self._job = None
        return self._expect_pause(process)

    def _shorten(self, process: subprocess.Popen[bytes]) -> bool:
        seconds = self._chance.choice((15, 40, 95))
        update = ["scontrol", "update", f"JobId={self._job}", f"EndTime=now+{seconds}"]
        subprocess.run(update, check=True, capture_output=True)
        is_paused = self._expect_pause(process)
        self._give_back()
        return is_paused

    def _end_script(self) -> bool:
        """Run a controller in a script of sbatch, and cancel that job."""
        self._give_back()
        words = [sys.executable, "-m", "elmanctl", *self._search.next_arguments(), "--inside"]
        script = f"--wrap=exec {shlex.join(words)}"
        log = self._search.folder / "script.log"
        environment = {k: v for k, v in self._search.environment.items() if k != "SLURM_JOB_ID"}
        before = len(self._search.trainings())
        done = subprocess.run(
            ["sbatch", "--parsable", *_ASKED, f"--output={log}", "--open-mode=append", script],
            cwd=self._search.folder,
            env=environment,
            capture_output=True,
            text=True,
            check=True,
        )
        job = done.stdout.strip()
        wait_for(
            lambda: len(self._search.trainings()) > before or not _is_there(job),
            "a training to begin",
        )
        time.sleep(self._chance.uniform(0.0, _WITHIN_S))
        was_there = _is_there(job)
        how = self._chance.choice(((), ("--full", "--signal=KILL")))
        subprocess.run(["scancel", "--quiet", *how, job], check=False)
        wait_for(lambda: not _is_there(job), "the job to end")
        return was_there and not self._is_finished()

    def _expect_pause(self, process: subprocess.Popen[bytes]) -> bool:
        """Whether the controller paused; it may have reached the search's end before."""
        code = self._search.wait(process, PATIENCE_S)
        if code not in (0, _PAUSED):
            words = self._search.words(process)
            raise Fault(f"a controller ended with {code}, not paused\n{words}")
        return code == _PAUSED

    def _give_back(self) -> None:
        if self._job is not None:
            subprocess.run(["scancel", "--quiet", self._job], check=False)
            wait_for(lambda job=self._job: not _is_there(job), "the allocation to end")
            self._job = None


def _allocate() -> str:
    done = subprocess.run(
        ["salloc", "--no-shell", *_ASKED], capture_output=True, text=True, check=True
    )
    return done.stderr.split("Granted job allocation ")[1].split()[0]


def _is_there(job: str) -> bool:
    """Whether a job has not ended yet."""
    command = ["squeue", "--noheader", "--jobs", job, "--format=%T"]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    return done.stdout.strip() not in ("", *_ENDED)
