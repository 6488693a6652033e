"""Measure one turn of the controller of an asynchronous search beside thousands of live attempts.

    python benchmarks/live_slots.py [--live 2000] [--rounds 3]

The scheduler is a stand-in that answers at once, so that what is measured is the controller's own:
CPU time, with that of the kernel, of one turn of the loop, without a disk.  Attempts that end are
reported one by one, and others are asked in their place.  Each round has a process of its own.
Prints medians of the turns, the most of one turn, and the memory of the controller.
"""

import argparse
import json
import os
import resource
import statistics
import subprocess
import sys
import tempfile
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[1]
sys.path.insert(0, str(ROOT))

from controller_turn import SETTINGS, Clock, Scheduler, Stopwatch, end  # noqa: E402

from elmanctl.config import decode_settings  # noqa: E402
from elmanctl.search.loop import Controller  # noqa: E402
from elmanctl.search.plan import plan_search  # noqa: E402
from elmanctl.search.poll import QueryPace  # noqa: E402
from elmanctl.search.run_creation import create_run  # noqa: E402
from elmanctl.search.session import Session  # noqa: E402

TURNS = 20
ENDING = (1, 10, 100)
QUIET, POLLED = "nothing changed", "a fresh poll, nothing changed"


class Slots(Scheduler):
    """A scheduler with so many slots, which counts how often it is asked."""

    def __init__(self, folder: Path, slots: int) -> None:
        super().__init__(folder)
        self._slots = slots
        self.polls = 0

    def free_slots(self, busy: Any) -> list[None]:
        return [None] * max(0, self._slots - len(list(busy)))

    def poll(self, jobs: Any, intended: Any) -> Any:
        self.polls += 1
        return super().poll(jobs, intended)


def measure(folder: Path, live: int, optimizer: str) -> dict[str, Any]:
    """Drive a new search and return the CPU times of its turns by what happens in them."""
    corpus = folder / "corpus.bytes"
    corpus.write_bytes(b"\x1e".join(b"document %d" % number for number in range(2000)))
    # Not the disk of this machine.
    os.fsync = lambda descriptor: None  # type: ignore[assignment]
    search = {
        **SETTINGS["search"],
        **{"mode": "asynchronous", "optimizer": optimizer, "max_jobs": live},
        **{"population": live // 4, "generations": 8},
    }
    settings = decode_settings({**SETTINGS, "search": search, "data": {"path": str(corpus)}})
    plan = plan_search("e88", settings, executor="slurm", name="live", runs=folder / "runs")
    run = create_run(plan)
    stop, clock = threading.Event(), Clock()
    watch, scheduler = Stopwatch(stop), Slots(run, live)
    with Session.open(run) as session:
        session.start_controller()
        pace = QueryPace(60.0, now=clock)
        controller = Controller(
            session, scheduler, watch, pace=pace, tick_s=0.0, stop=stop, now=clock
        )
        watch.follow(_turns(session, scheduler, clock, live))
        controller.drive()
    peak_mb = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    return {"times": watch.times, "peak_mb": peak_mb}


def _turns(session: Session, scheduler: Slots, clock: Clock, live: int) -> Iterator[str | None]:
    """Name the turns of a run whose attempts are all live."""
    # Submitted in the first turns, started in the next one.
    while len(session.state.live_attempts()) < live:
        yield None
    scheduler.let_workers_begin()
    for _ in range(2):
        clock.now_s += 61
        yield None
    for _ in range(TURNS):
        yield QUIET
    for _ in range(TURNS):
        clock.now_s += 61
        yield POLLED
    for count in ENDING:
        for _ in range(TURNS // 2):
            scheduler.let_workers_begin()
            for evaluation, _ in session.state.live_attempts()[:count]:
                end(session.paths.folder, evaluation, "completed")
            yield f"{count} end and are replaced"
    # The scheduler is asked when a minute is over, however many turns that is.
    before = scheduler.polls
    for _ in range(300):
        clock.now_s += 2
        yield None
    print(f"{scheduler.polls - before} polls in 10 minutes", file=sys.stderr)


def main() -> None:
    """Do what the usage says."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--live", type=int, default=2000)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--optimizer", default="random")
    parser.add_argument("--measure", type=Path, help=argparse.SUPPRESS)
    own = parser.parse_args()
    if own.measure is not None:
        print(json.dumps(measure(own.measure, own.live, own.optimizer)))
        return
    times: dict[str, list[float]] = {}
    peaks = []
    for _ in range(own.rounds):
        with tempfile.TemporaryDirectory(prefix="live-") as folder:
            options = ["--live", str(own.live), "--optimizer", own.optimizer]
            done = subprocess.run(
                [sys.executable, __file__, "--measure", folder, *options],
                env={**os.environ, "PYTHONPATH": str(ROOT), "XDG_CACHE_HOME": f"{folder}/cache"},
                stdout=subprocess.PIPE,
                check=True,
            )
        found = json.loads(done.stdout)
        peaks.append(found["peak_mb"])
        for name, each in found["times"].items():
            times.setdefault(name, []).extend(each)
    print("| turn | median | most |\n| --- | ---: | ---: |")
    for name, each in times.items():
        print(f"| {name} | {1000 * statistics.median(each):.1f} ms | {1000 * max(each):.1f} ms |")
    print(f"\n{own.live} live, optimizer {own.optimizer}, at most {max(peaks):.0f} MB")


if __name__ == "__main__":
    main()
