"""Measure a turn of the controller of an asynchronous search with 2,000 live attempts.

usage: live_slots.py [--live N] [--rounds N] [--optimizer NAME] [--profile KIND]

Each round is a search in a new process.  The scheduler is a stand-in that answers at once and
nothing waits for the disk, so that what is measured is the controller's own: CPU time, with that of
the kernel, of one turn of the loop of `search` and `resume`.  The time of the optimizer is measured
inside the turns and told apart.  Memory is the peak of the resident set of the whole process.

`--profile` prints where the time of one kind of turn goes: `quiet`, `polled`, or the number of
attempts that end in it.

Ends with 1 where a turn in which at most ten attempts end takes 50 ms or more without the
optimizer, by the median.
"""

import argparse
import cProfile
import json
import os
import pstats
import random
import resource
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from controller_turn import SETTINGS, Clock, Scheduler, end, until_live

from elmanctl.config import decode_settings
from elmanctl.search import rebuild
from elmanctl.search.loop import Controller
from elmanctl.search.plan import plan_search
from elmanctl.search.poll import QueryPace
from elmanctl.search.run_creation import create_run
from elmanctl.search.session import Session
from elmanctl.settings import SearchSettings

MOST_S = 0.050
TURNS = 20
# So many attempts end in each of the turns of a kind.
ENDING = (1, 10, 100)
WARM_UP = 100

FIRST = "the first turn, in which all are asked and submitted"
KINDS = {
    "quiet": "nothing changed",
    "polled": "a fresh poll, nothing changed",
    **{str(count): f"{count} end, are reported and replaced" for count in ENDING},
}
# Turns of which more is done than is said of the controller.
_LONG = (FIRST, KINDS["100"])


class OptimizerTime:
    """CPU seconds that pass inside optimizers, less those in which they have points checked."""

    def __init__(self) -> None:
        self.s = 0.0

    def watch(self, start: Callable[..., Any]) -> Callable[..., Any]:
        """Return a function that starts optimizers as `start` does, whose time is added up."""

        def started(*arguments: Any) -> Any:
            optimizer = start(*arguments)
            ask, report = optimizer.ask, optimizer.report

            def timed_ask(count: int, is_valid: Callable[[Any], bool]) -> Any:
                def checked(point: Any) -> bool:
                    return self._counted(-1, is_valid, point)

                return self._counted(1, ask, count, checked)

            optimizer.ask = timed_ask
            optimizer.report = lambda results: self._counted(1, report, results)
            return optimizer

        return started

    def _counted(self, sign: int, call: Callable[..., Any], *arguments: Any) -> Any:
        began = time.process_time()
        try:
            return call(*arguments)
        finally:
            self.s += sign * (time.process_time() - began)


class Stopwatch:
    """A view that takes the CPU time of each turn, all of it and that of the optimizer."""

    def __init__(self, stop: threading.Event, optimizer: OptimizerTime, profiled: str) -> None:
        self.times: dict[str, list[tuple[float, float]]] = {}
        self.profile = cProfile.Profile()
        self._stop = stop
        self._optimizer = optimizer
        self._profiled = profiled
        self._turns: Iterator[str | None] = iter(())
        self._name: str | None = FIRST
        self._began = (0.0, 0.0)

    def follow(self, turns: Iterator[str | None]) -> None:
        """Take the names of the turns to come from here; the first turn begins."""
        self._turns = turns
        self._begin()

    def refresh(self, session: Any, trouble: str | None) -> None:
        """End one turn and begin the next."""
        self.profile.disable()
        if self._name is not None:
            taken = (time.process_time() - self._began[0], self._optimizer.s - self._began[1])
            self.times.setdefault(self._name, []).append(taken)
        try:
            self._name = next(self._turns)
        except StopIteration:
            self._stop.set()
        self._begin()

    def _begin(self) -> None:
        if self._profiled and self._name == self._profiled:
            self.profile.enable()
        self._began = (time.process_time(), self._optimizer.s)

    def judged(self, *told: object) -> None:
        """Nobody is told."""

    generation_done = confirmation_asked = judged


def create(folder: Path, live: int, optimizer: str) -> None:
    """Make a run in `folder`, in a process of its own: the plan of a search needs more memory."""
    folder.mkdir(parents=True, exist_ok=True)
    corpus = folder / "corpus.bytes"
    corpus.write_bytes(b"\x1e".join(b"document %d" % number for number in range(2000)))
    tables = {**SETTINGS, "data": {"path": str(corpus)}}
    tables["search"] = {
        **SETTINGS["search"],
        "mode": "asynchronous",
        **{"population": live, "max_jobs": live, "generations": 4},
        "optimizer": optimizer,
    }
    settings = decode_settings(tables)
    plan = plan_search("e88", settings, executor="slurm", name="turn", runs=folder / "runs")
    create_run(plan)


def measure(folder: Path, live: int, profiled: str = "") -> dict[str, Any]:
    """Drive the run in `folder`; return the times of its turns and the memory in MB."""
    # Not the disk of this machine.
    os.fsync = lambda descriptor: None  # type: ignore[assignment]
    run = folder / "runs" / "turn"
    stop, clock, scheduler = threading.Event(), Clock(), Slots(run, live)
    optimizers = OptimizerTime()
    rebuild.start_optimizer = optimizers.watch(rebuild.start_optimizer)
    watch = Stopwatch(stop, optimizers, profiled)
    with Session.open(run) as session:
        session.start_controller()
        pace = QueryPace(60.0, now=clock)
        before_mb = _peak_mb()
        controller = Controller(
            *(session, scheduler, watch), pace=pace, tick_s=0.0, stop=stop, now=clock
        )
        watch.follow(_turns(session, scheduler, clock, live))
        controller.drive()
        session.close()
    if profiled:
        pstats.Stats(watch.profile, stream=sys.stderr).sort_stats("cumulative").print_stats(60)
    memory_mb = [before_mb, _peak_mb()]
    return {"times": watch.times, "mb": memory_mb, "polls": scheduler.polls}


class Slots(Scheduler):
    """A scheduler that takes so many jobs at once, and counts how often it is asked."""

    def __init__(self, folder: Path, slots: int) -> None:
        super().__init__(folder)
        self._slots = slots
        self.polls = 0

    def poll(self, jobs: Any, intended: Any) -> Any:
        self.polls += 1
        return super().poll(jobs, intended)

    def free_slots(self, busy: Any) -> Sequence[None]:
        return [None] * max(0, self._slots - len(list(busy)))


def _turns(session: Session, scheduler: Scheduler, clock: Clock, live: int) -> Iterator[str | None]:
    """Name the turns of an asynchronous search whose slots are all taken.

    Attempts end in no order.  As many have ended before those turns are measured as are live.
    """
    generator = random.Random(1)
    yield from until_live(session, clock, live)
    for _ in range(TURNS):
        yield KINDS["quiet"]
    for _ in range(TURNS):
        clock.now_s += 61
        yield KINDS["polled"]
    turns: list[tuple[int, str | None]] = [(WARM_UP, None)] * (live // WARM_UP)
    turns += [(count, KINDS[str(count)]) for count in ENDING for _ in range(TURNS)]
    for count, name in turns:
        scheduler.let_workers_begin()
        for evaluation, _ in generator.sample(session.state.live_attempts(), count):
            end(session.paths.folder, evaluation, "completed", generator.uniform(2.0, 3.0))
        yield name
        found = len(session.state.live_attempts())
        if found != live:
            raise SystemExit(f"{found} attempts are live, not {live}")
    # The scheduler is asked when a minute is over, however many turns that is.
    before = scheduler.polls
    for _ in range(300):
        clock.now_s += 2
        yield None
    scheduler.polls -= before


def _peak_mb() -> float:
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024


def in_process(action: str, folder: Path, live: int, optimizer: str) -> str:
    """Let a process of its own `create` or `measure`; return what it prints."""
    done = subprocess.run(
        [sys.executable, __file__, "--in-process", action, str(folder), str(live), optimizer],
        env={**os.environ, "XDG_CACHE_HOME": str(folder / "cache")},
        stdout=subprocess.PIPE,
        check=True,
    )
    return done.stdout.decode()


def _cells(rounds: Sequence[Sequence[tuple[float, float]]]) -> list[float]:
    """Return the medians over rounds of the median and slowest turn, and of the optimizer's time.

    The first two are without the optimizer.
    """
    middle = [statistics.median(whole - own for whole, own in turns) for turns in rounds]
    most = [max(whole - own for whole, own in turns) for turns in rounds]
    owns = [statistics.median(own for _, own in turns) for turns in rounds]
    return [statistics.median(each) for each in (middle, most, owns)]


def main() -> int:
    """Measure some rounds, and print a table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--live", type=int, default=2000)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--optimizer", default=SearchSettings().optimizer)
    parser.add_argument("--profile", choices=KINDS)
    parser.add_argument("--in-process", nargs=4, help=argparse.SUPPRESS)
    asked = parser.parse_args()
    if asked.in_process:
        action, folder, live, optimizer = asked.in_process
        if action == "create":
            create(Path(folder), int(live), optimizer)
        else:
            print(json.dumps(measure(Path(folder), int(live), profiled=KINDS.get(action, ""))))
        return 0
    rounds: list[Mapping[str, Any]] = []
    with tempfile.TemporaryDirectory() as scratch:
        for number in range(1 if asked.profile else asked.rounds):
            run = (Path(scratch) / str(number), asked.live, asked.optimizer)
            in_process("create", *run)
            rounds.append(json.loads(in_process(asked.profile or "measure", *run)))
    print(f"| CPU time, {asked.live} live attempts | median | slowest | optimizer |")
    print("| --- | ---: | ---: | ---: |")
    slowest_s = 0.0
    for name in rounds[0]["times"]:
        cells = _cells([each["times"][name] for each in rounds])
        print(f"| {name} | {' | '.join(f'{1000 * cell:.1f} ms' for cell in cells)} |")
        if name not in _LONG:
            slowest_s = max(slowest_s, cells[0])
    print(f"\nThe optimizer is `{asked.optimizer}`.")
    before_mb, peak_mb = (statistics.median(r["mb"][index] for r in rounds) for index in (0, 1))
    print(f"Peak memory {peak_mb:.0f} MB, {before_mb:.0f} MB of it before the first turn.")
    print(f"The scheduler was polled {rounds[0]['polls']} times in ten minutes.")
    return 0 if slowest_s < MOST_S else 1


if __name__ == "__main__":
    sys.exit(main())
