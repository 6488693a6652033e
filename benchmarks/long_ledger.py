#!/usr/bin/env python3
"""Measures `elmanctl status` on a run of many evaluations, and how fast a controller records.

usage: long_ledger.py [--evaluations N] [--rounds N] [--folder PATH]

Makes the ledger of a search of N evaluations (default 100,000), by the events that a controller
would record for it, without syncing the disk; this takes minutes. It stays in the folder where one
is given, and is used again. Then `status` and `status RUN` are run and measured in turn. The exit
code is 1 when a median is not under 0.3 s, a peak of memory not under 150 MB, or the
snapshot larger than it may be.
"""

import argparse
import os
import statistics
import subprocess
import sys
import tempfile
import time
from multiprocessing import get_context
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

from elmanctl.ledger.payloads import (  # noqa: E402
    AttemptFinished,
    AttemptStarted,
    EvaluationClosed,
    GenerationTold,
    PointsAsked,
    RunInterrupted,
    SubmissionAccepted,
    SubmissionIntended,
)
from elmanctl.ledger.records import (  # noqa: E402
    EvaluationPlan,
    Evidence,
    EvidenceSource,
    State,
    Verdict,
    VerdictKind,
)
from elmanctl.ledger.snapshot import EVERY_BYTES, LIMIT_BYTES, SNAPSHOT_FILE  # noqa: E402
from elmanctl.ledger.submissions import Resources, SubmissionIntent, Task  # noqa: E402
from elmanctl.run.paths import RunPaths  # noqa: E402
from elmanctl.run.training import Training  # noqa: E402
from elmanctl.search.plan import plan_search  # noqa: E402
from elmanctl.search.run_creation import create_run  # noqa: E402
from elmanctl.search.session import Session  # noqa: E402
from elmanctl.settings import DataSettings, SearchSettings, Settings  # noqa: E402

POPULATION = 16
AXES = {
    "n_heads": {"kind": "int", "low": 1, "high": 16},
    "lr": {"kind": "log", "low": 1e-4, "high": 1e-1},
}
RESOURCES = Resources(timeout_min=60, partition="gpu", gres="gpu:1", mem_gb=32.0, cpus=4)
MOST_S = 0.3
MOST_BYTES = 150_000_000


def make_run(runs: Path, evaluations: int) -> None:
    """Record a search of so many evaluations and print how fast that goes, without the disk."""
    corpus = runs / "corpus.bytes"
    runs.mkdir(parents=True, exist_ok=True)
    corpus.write_bytes(b"\x1e".join(b"document %d" % number for number in range(2000)))
    settings = Settings(
        model={"dim": 32, "depth": 1, "n_state": 8},
        search=SearchSettings(space="tiny", axes=AXES, generations=10**5, population=POPULATION),
        train=Training(steps=10, batch=2, seq_len=16),
        data=DataSettings(path=str(corpus)),
    )
    folder = create_run(plan_search("e88", settings, executor="local", name="long", runs=runs))
    os.fsync = lambda descriptor: None  # type: ignore[assignment]
    with Session.open(folder) as session:
        session.start_controller()
        tenth = max(1, evaluations // POPULATION // 10)
        begun, seq = time.process_time(), session.state.seq
        for generation in range(evaluations // POPULATION):
            _record_generation(session, generation)
            if (generation + 1) % tenth == 0:
                rate = (session.state.seq - seq) / (time.process_time() - begun)
                known = len(session.state.evaluations)
                print(f"{known:7} evaluations: {rate:5.0f} events a second of CPU", flush=True)
                begun, seq = time.process_time(), session.state.seq
        session.record(RunInterrupted())


def renew(folder: Path) -> None:
    """Have a run's snapshot written again."""
    with Session.open(folder) as session:
        session.record(RunInterrupted())


def _record_generation(session: Session, generation: int) -> None:
    names = [f"g{generation:03}-e{index:02}" for index in range(POPULATION)]
    session.record(
        PointsAsked(
            generation=generation,
            evaluations=tuple(_plan(each, n, generation) for n, each in enumerate(names)),
            refused=1,
        )
    )
    name = f"s{generation + 1:04}"
    tasks = tuple(Task(index=i, evaluation=each, attempt=1) for i, each in enumerate(names))
    submission = SubmissionIntent(
        id=name, job_name=f"elman-long-{name}", tasks=tasks, resources=RESOURCES
    )
    session.record(SubmissionIntended(submission=submission))
    session.record(SubmissionAccepted(submission=name, job_id=str(generation), adopted=False))
    losses = {each: 2 + (hash((each, 7)) % 10**6) / 10**6 for each in names}
    for each in names:
        session.record(AttemptStarted(evaluation=each, attempt=1, node="node-17"))
        session.record(_ending(each, losses[each]))
        session.record(EvaluationClosed(evaluation=each, state=State.COMPLETED))
    session.record(GenerationTold(generation=generation, told=tuple(losses.items())))


def _plan(name: str, index: int, generation: int) -> EvaluationPlan:
    share = (index + 0.123456789) / POPULATION
    config = {"dim": 512 + 16 * index, "depth": 12, "n_heads": 8, "n_state": 32}
    flags = {"variant": "documented", "backend": "auto", "expansion": 1.5, "use_gate": True}
    return EvaluationPlan(
        id=name,
        point=tuple(share + generation / 1e9 + axis / 7 for axis in range(8)),
        config={**config, **flags},
        lr=share / 100,
        parameters=480_123_456 + index,
        seed=42,
    )


def _ending(name: str, loss: float) -> AttemptFinished:
    text = "the worker finished its budget and wrote its result"
    result = {"loss": loss, "steps": 5123, "tokens": 83935232, "train_s": 600.0712890625}
    return AttemptFinished(
        evaluation=name,
        attempt=1,
        verdict=Verdict(
            kind=VerdictKind.COMPLETED,
            evidence=(Evidence(source=EvidenceSource.RESULT, text=text),),
        ),
        result={**result, "peak_memory_bytes": 31457280000, "last_losses": [loss] * 4},
        size_bytes=123456,
        node="node-17",
        elapsed_s=612.5,
    )


def measure(runs: Path, words: list[str], rounds: int) -> tuple[float, float, int]:
    """Return the medians of wall and CPU time in s, and the highest peak of memory in bytes."""
    command = [sys.executable, "-m", "elmanctl", *words]
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "ELMAN_PATHS_RUNS": str(runs)}
    walls, busy, peaks = [], [], []
    for _ in range(rounds):
        begun = time.perf_counter()
        with subprocess.Popen(
            command, env=environment, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
        ) as child:
            _, status, used = os.wait4(child.pid, 0)
            child.returncode = os.waitstatus_to_exitcode(status)
        walls.append(time.perf_counter() - begun)
        busy.append(used.ru_utime + used.ru_stime)
        if child.returncode:
            raise SystemExit(f"{' '.join(words)} ended with exit code {child.returncode}")
        peaks.append(used.ru_maxrss * 1024)
    return statistics.median(walls), statistics.median(busy), max(peaks)


def main() -> int:
    """Make, measure, print."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--evaluations", type=int, default=100_000)
    parser.add_argument("--rounds", type=int, default=11)
    parser.add_argument("--folder", type=Path)
    asked = parser.parse_args()
    with tempfile.TemporaryDirectory() as scratch:
        runs = (asked.folder or Path(scratch)).resolve() / f"runs-{asked.evaluations}"
        paths = RunPaths(runs / "long")
        if not paths.ledger.exists():
            # In a process of its own: what it needs of memory would count as its children's.
            made = get_context("spawn").Process(target=make_run, args=(runs, asked.evaluations))
            made.start()
            made.join()
        else:
            # The snapshot may be that of other code.
            made = get_context("spawn").Process(target=renew, args=(paths.folder,))
            made.start()
            made.join()
        snapshot = paths.folder / SNAPSHOT_FILE
        print(f"ledger {paths.ledger.stat().st_size / 1e6:.1f} MB,", end=" ")
        print(f"snapshot {snapshot.stat().st_size / 1e6:.3f} MB")
        good = snapshot.stat().st_size <= LIMIT_BYTES + EVERY_BYTES
        for words in (["--version"], ["status"], ["status", "long"]):
            wall_s, busy_s, peak_bytes = measure(runs, words, asked.rounds)
            times = f"{wall_s:.3f} s wall, {busy_s:.3f} s CPU"
            print(f"{' '.join(words):12} {times}, peak {peak_bytes / 1e6:.0f} MB", flush=True)
            good = good and wall_s < MOST_S and peak_bytes < MOST_BYTES
    return 0 if good else 1


if __name__ == "__main__":
    sys.exit(main())
