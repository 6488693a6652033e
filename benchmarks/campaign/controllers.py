"""Two controllers on one run, and one that is paused, replaced and woken."""

import os
import random
import signal
import subprocess
import time
from collections import Counter
from collections.abc import Sequence
from functools import partial
from pathlib import Path

from campaign.search import Fault, Search, wait_for

# Another machine's name, under which a lease is taken over that gives no sign of life.
ELSEWHERE = ("--host", "elsewhere", "--stale-s", "2")

# What LedgerLocked says, by the state in which the lease was found.
_LOCKED = ("the run is held by", "several processes are taking over", "was written under lease")

# The words of a controller that was replaced, also of one paused before it had the lease.
_DEPOSED = ("the lease of the run was taken over", *_LOCKED)


def start_pairs(search: Search, wanted: int, chance: random.Random, kinds: Counter[str]) -> str:
    """Start two controllers at the same instant, again and again; kill the one that drives.

    Counts how often exactly one drove and the other said so.  Raises Fault when both drove or
    both gave up.  The search is driven to its end.
    """
    begin(search)
    while kinds["pairs"] < wanted:
        both = [search.start(["resume", "run"]) for _ in range(2)]
        first = wait_for(partial(_ended, both), "one of two controllers to give up")
        (other,) = [process for process in both if process is not first]
        if first.returncode == 0:
            search.wait(other)
            return ""
        words = search.words(first)
        if first.returncode != 1 or not any(text in words for text in _LOCKED):
            raise Fault(f"the second controller ended with {first.returncode}: {words}")
        time.sleep(chance.uniform(0.0, 1.0))
        if other.poll() is None:
            search.kill(other)
        elif other.returncode != 0:
            raise Fault(f"nobody drives: {words}\n{search.words(other)}")
        kinds["pairs"] += 1
    search.finish()
    return ""


def _ended(processes: Sequence[subprocess.Popen[bytes]]) -> subprocess.Popen[bytes] | None:
    return next((process for process in processes if process.poll() is not None), None)


def begin(search: Search) -> None:
    """Start a search and kill its controller as soon as a worker trains."""
    process = search.start()
    wait_for(lambda: search.trainings() or process.poll() is not None, "a worker to train")
    search.kill(process)


def pause_and_replace(
    search: Search, chance: random.Random, point: str | None = None, *, wakes_late: bool = False
) -> None:
    """Pause a controller, let another one take over, and wake the first.

    It is paused at a random instant, or at `point` as dying.py knows them.  It wakes while the
    other one drives, or when that has ended.  Raises Fault when it does not stop by itself; the
    search is driven to its end.
    """
    options = ["--die", point, "--stop"] if point else []
    paused = search.start(options=options)
    if point:
        wait_for(lambda: _is_stopped(paused), f"a controller to pause at {point}")
    else:
        wait_for(lambda: search.exists or paused.poll() is not None, "the search to begin")
        time.sleep(chance.uniform(0.0, 3.0))
        paused.send_signal(signal.SIGSTOP)
    time.sleep(2.5)
    successor = search.start(["resume", "run"], options=ELSEWHERE)
    wait_for(lambda: _has_begun(search), "another controller to take over")
    if wakes_late:
        search.expect(successor, 0)
    else:
        time.sleep(chance.uniform(0.0, 2.0))
    os.kill(paused.pid, signal.SIGCONT)
    code = search.wait(paused)
    if code == 0 or not any(words in search.words(paused) for words in _DEPOSED):
        raise Fault(f"the woken controller ended with {code}: {search.words(paused)}")
    if not wakes_late:
        search.expect(successor, 0)


def submit_after_replacement(
    search: Search, chance: random.Random, *, wakes_late: bool = False
) -> str:
    """Pause a controller before it calls sbatch, and wake it when it was replaced.

    By then its successor has given that submission up and makes another one; with `wakes_late`
    it has finished the search.  Returns what became of the orphan's jobs.
    """
    paused = search.start(options=["--die", "submit:before:1", "--stop"])
    wait_for(lambda: _is_stopped(paused), "a controller to pause before sbatch")
    (orphan,) = search.state().unanswered()
    time.sleep(2.5)
    successor = search.start(["resume", "run"], options=ELSEWHERE)
    wait_for(lambda: not search.state().unanswered() or successor.poll() is not None, "a verdict")
    if wakes_late:
        search.expect(successor, 0)
    else:
        time.sleep(chance.uniform(0.0, 1.0))
    os.kill(paused.pid, signal.SIGCONT)
    code = search.wait(paused)
    if code == 0 or not any(words in search.words(paused) for words in _DEPOSED):
        raise Fault(f"the woken controller ended with {code}: {search.words(paused)}")
    if not wakes_late:
        search.expect(successor, 0)
    wait_for(lambda: not _queue(orphan.job_name), "the orphan's jobs to end")
    known = {a.job_id for e in search.state().evaluations.values() for a in e.attempts}
    begun = len(list((search.run_folder / "submissions" / orphan.id).glob("*_log.out")))
    if not begun:
        raise Fault("the orphan was never submitted")
    trained = sum(what == "start" for _, _, job, what in search.trainings() if job not in known)
    return f"of {begun} jobs that nobody knew of, {trained} trained"


def _queue(job_name: str) -> str:
    """Return what Slurm's queue holds under a name."""
    command = ["squeue", "--noheader", "--name", job_name]
    return subprocess.run(command, capture_output=True, text=True, check=True).stdout


def _is_stopped(process: subprocess.Popen[bytes]) -> bool:
    if process.poll() is not None:
        raise Fault(f"ended with {process.returncode} before it paused")
    text = Path(f"/proc/{process.pid}/stat").read_text(encoding="utf-8", errors="replace")
    return text.rpartition(")")[2].split()[0] == "T"


def _has_begun(search: Search) -> bool:
    lease = search.run_folder / "lease.json"
    return lease.exists() and '"elsewhere"' in lease.read_text(encoding="utf-8")
