"""Measure one turn of the controller beside 1,000 live attempts, in two versions of the code.

usage: controller_turn.py [COMMIT] [--live N] [--rounds N]

The code of COMMIT is unpacked beside this one, and both are measured by turns, each time in a new
process: CPU time, with that of the kernel, of one turn of the loop of `search` and `resume`.  The
scheduler is a stand-in that answers at once, so that what is measured is the controller's own.
Then `elmanctl --help` and `elmanctl status` are measured on the runs that were left.

Ends with 1 where a turn is not twice as fast as before, or a command slower.
"""

import argparse
import importlib
import inspect
import json
import os
import re
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator, Mapping, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
COMMIT = "fa2d121"
NAME = "turn"

TURNS = 20
# So many attempts end in one turn of those in which some do.
ENDING = 10
# So many wait to be tried again, in a run of its own, while the scheduler takes no more.
WAITING = 200

TIMES_AS_FAST = 2.0
COMMAND_ROUNDS = 10
# Between two measurements of the same command, with nothing changed.
NOISE = 1.05

SETTINGS: dict[str, dict[str, Any]] = {
    "model": {"dim": 512, "depth": 12, "n_state": 32},
    "search": {
        "space": "tiny",
        "axes": {
            "n_heads": {"kind": "int", "low": 1, "high": 64},
            "lr": {"kind": "log", "low": 1e-4, "high": 1e-1},
        },
        "generations": 2,
        "max_jobs": 100_000,
    },
    "train": {"steps": 1000, "batch": 64, "seq_len": 512},
    "slurm": {"partition": "gpu", "gres": "gpu:1", "mem_gb": 32.0, "gpu_memory_gb": 80.0},
}

# What is measured, the seconds of both versions, and the share of the first that is allowed now.
Row = tuple[str, float, float, float]


def find(name: str, under: str = "") -> Any:
    """Return a class or function of the package by its name (`a|b`: either), in any module."""
    package = Path(importlib.import_module("elmanctl").__file__ or "").parent
    for path in sorted((package / under).rglob("*.py")):
        found = re.search(rf"^(?:class|def) ({name})\b", path.read_text("utf-8"), re.MULTILINE)
        if found:
            parts = path.relative_to(package.parent).with_suffix("").parts
            return getattr(importlib.import_module(".".join(parts)), found[1])
    raise SystemExit(f"{package} has no `{name}`")


class Scheduler:
    """A scheduler that takes everything while it is open; every other job runs, the rest wait."""

    name = "scripted"
    has_arrays = True
    tasks_per_submission = None

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._report, self._state = find("JobReport"), find("JobState")
        self._result = find("PollResult|Sighting")  # the newer name and the older one
        self._submissions = 0
        self._reports: dict[str, Any] = {}
        self._begun: list[tuple[Path, Path, str, int]] = []
        self.is_open = True

    def free_slots(self, busy: Any) -> Sequence[None]:
        list(busy)
        return [None] * 100_000 if self.is_open else []

    def adjust(self, *arguments: Any) -> None:
        """It takes any number of jobs."""

    def gpus_of(self, slot: int | None) -> tuple[int | str, ...]:
        return ()

    def submit(self, submission: Any, folder: Path) -> str:
        self._submissions += 1
        for task in submission.tasks:
            job_id = f"{self._submissions}_{task.index}"
            self._reports[job_id] = self._state_of(task.index)
            attempt = (self._folder / "evaluations" / task.evaluation) / f"attempt-{task.attempt}"
            self._begun.append((attempt, folder, job_id, task.index))
        return str(self._submissions)

    def let_workers_begin(self) -> None:
        """Write what the workers write first, between two turns."""
        for begun in self._begun:
            leave_files(*begun)
        self._begun.clear()

    def _state_of(self, index: int) -> Any:
        if index % 2:
            return self._report(state=self._state.PENDING, raw="PENDING", reason="Priority")
        return self._report(state=self._state.RUNNING, raw="RUNNING", node=f"n{index % 100}")

    def poll(self, jobs: Any, intended: Any) -> Any:
        return self._result(reports=self._reports, found={})

    look = poll  # the older name

    def cancel(self, jobs: Any) -> None:
        raise AssertionError("nothing is cancelled here")

    def avoid(self, jobs: Any, resources: Any) -> None:
        raise AssertionError("no node is bad here")

    def log(self, job: Any) -> Path:
        folder = self._folder / "submissions" / str(job.submission)
        return folder / f"{job.job_id}_0_log.out"

    def check(self, *, asks: bool = True) -> None:
        """Always ready."""


def leave_files(attempt: Path, submission: Path, job_id: str, index: int) -> None:
    """Write what an attempt has on disk while it runs."""
    at = datetime.now(UTC).isoformat(timespec="milliseconds").replace("+00:00", "Z")
    beat = {
        "version": 1,
        "host": f"n{index % 100}",
        "pid": 4711,
        "pid_start": 12345,
        "job_id": job_id,
        "restart": 0,
        "started_at": at,
        "phase": "training",
        **{"step": 500, "loss": 2.5, "tokens": 500 * 64 * 512},
        "at": at,
        "elapsed_s": 300.125,
        "signals": [],
    }
    claim = {"version": 1, "job_id": job_id, "host": f"n{index % 100}", "pid": 4711, "at": at}
    steps = "".join(f'{{"step": {step}, "loss": 2.5}}\n' for step in range(100))
    submission.mkdir(parents=True, exist_ok=True)
    (attempt / "heartbeat.json").write_text(json.dumps(beat), encoding="utf-8")
    (attempt / "claim.json").write_text(json.dumps(claim), encoding="utf-8")
    (attempt / "metrics.jsonl").write_text(steps, encoding="utf-8")
    (submission / f"task-{index}.pkl").write_bytes(b"pickle")
    (submission / f"{job_id}_0_log.out").write_text("step\n" * 100, encoding="utf-8")


def end(folder: Path, evaluation: Any, kind: str, loss: float = 2.007) -> None:
    """Write what a worker writes at its end."""
    number = evaluation.attempts[-1].number
    attempt = folder / "evaluations" / evaluation.id / f"attempt-{number}"
    result = {
        "version": 1,
        "verdict": {"kind": kind, "evidence": [{"source": "result", "text": f"it is {kind}"}]},
        "evaluation": evaluation.id,
        "attempt": number,
        "parameters_expected": evaluation.parameters,
        "loss": loss if kind == "completed" else None,
        **{"steps": 1000, "tokens": 32_768_000, "train_s": 600.0, "last_losses": [2.0] * 4},
    }
    (attempt / "result.json").write_text(json.dumps(result), encoding="utf-8")
    (folder / "finished" / f"{evaluation.id}-{number}").touch()


class Stopwatch:
    """Looks on, lets a script prepare each turn, and takes the CPU time of those with a name."""

    def __init__(self, stop: threading.Event) -> None:
        self.times: dict[str, list[float]] = {}
        self._stop = stop
        self._turns: Iterator[str | None] = iter(())
        self._name: str | None = None
        self._began = 0.0

    def follow(self, turns: Iterator[str | None]) -> None:
        """Take the names of the turns to come from here."""
        self._turns = turns

    def refresh(self, session: Any, trouble: str | None) -> None:
        """End one turn and begin the next."""
        passed = time.process_time() - self._began
        if self._name is not None:
            self.times.setdefault(self._name, []).append(passed)
        try:
            self._name = next(self._turns)
        except StopIteration:
            self._stop.set()
        self._began = time.process_time()

    def judged(self, *told: object) -> None:
        """Nobody is told."""

    def generation_done(self, *told: object) -> None:
        """Nobody is told."""

    def confirmation_asked(self, *told: object) -> None:
        """Nobody is told."""


class Clock:
    """A clock that the script moves, so that the scheduler is asked when it says so."""

    def __init__(self) -> None:
        self.now_s = 1000.0

    def __call__(self) -> float:
        return self.now_s


def measure_turns(folder: Path, live: int, waiting: int) -> dict[str, list[float]]:
    """Drive a new run in `folder` and return the CPU times of its turns by what happens in them."""
    folder.mkdir(parents=True, exist_ok=True)
    corpus = folder / "corpus.bytes"
    corpus.write_bytes(b"\x1e".join(b"document %d" % number for number in range(2000)))
    # Not the disk of this machine.
    os.fsync = lambda descriptor: None  # type: ignore[assignment]
    tables = {**SETTINGS, "data": {"path": str(corpus)}}
    tables["search"] = {**SETTINGS["search"], "population": live + waiting}
    settings = find("decode_settings")(tables)
    plan = find("plan_search")("e88", settings, executor="slurm", name=NAME, runs=folder / "runs")
    run: Path = find("create_run")(plan)
    stop, clock = threading.Event(), Clock()
    watch, scheduler = Stopwatch(stop), Scheduler(run)
    with find("Session", "search").open(run) as session:
        session.start_controller()
        make = find("Controller")
        # The newer way and the older one.
        is_paced = "pace" in inspect.signature(make).parameters
        pace = {"pace": find("QueryPace")(60.0, now=clock)} if is_paced else {"poll_s": 60.0}
        controller = make(session, scheduler, watch, **pace, tick_s=0.0, stop=stop, now=clock)
        turns = turns_beside_waiting if waiting else turns_beside_live
        watch.follow(turns(session, scheduler, clock, live))
        controller.drive()
        session.close()
    return watch.times


def turns_beside_live(
    session: Any, scheduler: Scheduler, clock: Clock, live: int
) -> Iterator[str | None]:
    """Name the turns of a run whose attempts are all live."""
    yield from until_live(session, clock, live)
    for _ in range(TURNS):
        yield "nothing changed"
    for _ in range(TURNS):
        clock.now_s += 61
        yield "a fresh poll, nothing changed"
    for kind, name in (
        ("preempted", f"{ENDING} attempts are preempted and tried again"),
        ("completed", f"{ENDING} attempts complete"),
    ):
        for _ in range(TURNS // 2):
            scheduler.let_workers_begin()
            for evaluation, _ in session.state.live_attempts()[:ENDING]:
                end(session.paths.folder, evaluation, kind)
            yield name


def turns_beside_waiting(
    session: Any, scheduler: Scheduler, clock: Clock, live: int
) -> Iterator[str | None]:
    """Name the turns of a run in which attempts wait until the scheduler takes more."""
    yield from until_live(session, clock, live + WAITING)
    scheduler.is_open = False
    scheduler.let_workers_begin()
    for evaluation, _ in session.state.live_attempts()[:WAITING]:
        end(session.paths.folder, evaluation, "preempted")
    yield None
    for _ in range(TURNS):
        yield f"nothing changed, {WAITING} more wait to be tried again"


def until_live(session: Any, clock: Clock, live: int) -> Iterator[str | None]:
    """Name turns that are not measured until so many attempts are live."""
    # Submitted in the first turn, started in the second.
    for _ in range(3):
        clock.now_s += 61
        yield None
    found = len(session.state.live_attempts())
    if found != live:
        raise SystemExit(f"{found} attempts are live, not {live}")


def in_process(tree: Path, folder: Path, live: int, waiting: int) -> dict[str, float]:
    """Return the median CPU time in s of each kind of turn, measured in a process of its own."""
    done = subprocess.run(
        [sys.executable, __file__, "--measure", str(folder), str(live), str(waiting)],
        env={**os.environ, "PYTHONPATH": str(tree), "XDG_CACHE_HOME": str(folder / "cache")},
        stdout=subprocess.PIPE,
        check=True,
    )
    times: Mapping[str, list[float]] = json.loads(done.stdout)
    return {name: statistics.median(each) for name, each in times.items()}


def command_s(tree: Path, folder: Path, words: Sequence[str]) -> float:
    """Return the CPU time in s of one command."""
    environment = {**os.environ, "PYTHONPATH": str(tree), "ELMAN_PATHS_RUNS": str(folder / "runs")}
    environment.pop("PYTHONDONTWRITEBYTECODE", None)
    with subprocess.Popen(
        [sys.executable, "-m", "elmanctl", *words],
        env=environment,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    ) as child:
        _, status, used = os.wait4(child.pid, 0)
        child.returncode = os.waitstatus_to_exitcode(status)
    if child.returncode:
        raise SystemExit(f"{' '.join(words)} ended with exit code {child.returncode}")
    return used.ru_utime + used.ru_stime


def unpack(commit: str, folder: Path) -> Path:
    """Write the package of a commit into a folder and return that."""
    folder.mkdir()
    archive = subprocess.run(
        ["git", "-C", str(ROOT), "archive", commit, "elmanctl"], stdout=subprocess.PIPE, check=True
    )
    subprocess.run(["tar", "-x", "-C", str(folder)], input=archive.stdout, check=True)
    return folder


def rows(trees: Sequence[Path], scratch: Path, live: int, rounds: int) -> Iterator[Row]:
    """Yield a row for each kind of turn, then for each command."""
    turns: list[dict[str, list[float]]] = [{}, {}]
    for round_number in range(rounds):
        for index, tree in enumerate(trees):
            for waiting in (0, WAITING):
                folder = scratch / f"{index}-{round_number}-{waiting}"
                for name, each in in_process(tree, folder, live, waiting).items():
                    turns[index].setdefault(name, []).append(each)
    for name in turns[0]:
        before_s, now_s = (statistics.median(each[name]) for each in turns)
        yield name, before_s, now_s, 1 / TIMES_AS_FAST
    for words in (["--help"], ["status"], ["status", NAME]):
        least = [float("inf"), float("inf")]
        for _ in range(COMMAND_ROUNDS):
            for index, tree in enumerate(trees):
                taken = command_s(tree, scratch / f"{index}-0-0", words)
                least[index] = min(least[index], taken)
        yield f"`elmanctl {' '.join(words)}`", least[0], least[1], NOISE


def main() -> int:
    """Measure both, and print a table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("commit", nargs="?", default=COMMIT)
    parser.add_argument("--live", type=int, default=1000)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--measure", nargs=3, help=argparse.SUPPRESS)
    asked = parser.parse_args()
    if asked.measure:
        folder, live, waiting = asked.measure
        print(json.dumps(measure_turns(Path(folder), int(live), int(waiting))))
        return 0
    good = True
    with tempfile.TemporaryDirectory() as scratch:
        old = unpack(asked.commit, Path(scratch) / "code")
        print(f"| CPU time, {asked.live} live attempts | {asked.commit} | now | times as fast |")
        print("| --- | ---: | ---: | ---: |")
        found = rows((old, ROOT), Path(scratch), asked.live, asked.rounds)
        for name, before_s, now_s, most in found:
            good = good and now_s <= most * before_s
            times = f"{1000 * before_s:.1f} ms | {1000 * now_s:.1f} ms | {before_s / now_s:.1f}"
            print(f"| {name} | {times} |", flush=True)
    return 0 if good else 1


if __name__ == "__main__":
    sys.exit(main())
