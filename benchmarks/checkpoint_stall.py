"""Measure how long a checkpoint stops a training, and what keeping a model costs a worker.

    python benchmarks/checkpoint_stall.py [COMMIT] [--dim N] [--rounds N]

Workers of this code, and of COMMIT if one is named, train the same model on one thread of the CPU
in turns, write checkpoints, and at the end their model if they know how to.  Numbers are medians.
`CPU` is the processor time of a write, which other processes do not change.  `Plain` is the speed
of a write and fsync of as many bytes in the same round.  `Share` is what a write takes of the time
if there is one every 10 minutes.  `Memory` is the most that a write needs on top of what the worker
holds before it, `Peak` that of the worker without its writes.  Exits with 1 if the share is above
3 %, or if a write takes the worker above its peak.
"""

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from controller_turn import unpack

ROOT = Path(__file__).parents[1]
THIS = "this code"

INTERVAL_S = 600.0
MOST_STALL = 0.03

LEVEL = "mingru"
STEPS, EVERY = 25, 3

# Runs on the code of either commit: it writes the spec, trains, and prints what it has measured.
_WORKER = """
import json, sys, time
from contextlib import suppress
from itertools import count
from pathlib import Path
from elmanctl.jobs.checkpoints import Checkpoints
from elmanctl.jobs.evaluation import evaluate_attempt
from elmanctl.models.params import count_parameters
from elmanctl.run.corpus import describe, standard_library_corpus
from elmanctl.run.paths import AttemptPaths
from elmanctl.run.spec import AttemptSpec, DataSpec
from elmanctl.run.training import Training

asked = json.loads(sys.argv[1])
paths = AttemptPaths(Path(asked["folder"]))
corpus = describe(standard_library_corpus())
spec = AttemptSpec(
    run="stall", evaluation="g000-e00", attempt=1, level=asked["level"], config=asked["model"],
    parameters_expected=count_parameters(asked["level"], asked["model"]),
    training=Training(
        steps=asked["steps"], batch=1, seq_len=32, device="cpu", threads=1, val_windows=1,
        checkpoint_min=10,
    ),
    data=DataSpec(path=str(corpus.path), sha256=corpus.sha256, size_bytes=corpus.size_bytes),
    timeout_min=60,
)
AttemptTraining = None
with suppress(ImportError):  # of a commit that keeps no models
    from elmanctl.jobs.attempt_training import AttemptTraining
keeps = AttemptTraining is not None
paths.spec.write_text(json.dumps(spec.encode() | ({"keep": ["model"]} if keeps else {})))

def memory_bytes(name):
    with open("/proc/self/status") as lines:
        return next(int(line.split()[1]) * 1024 for line in lines if line.startswith(name))

peaks, writes = [], {"checkpoint": [], "model": []}

def timed(write, kind):
    def call(*arguments):
        peaks.append(memory_bytes("VmHWM"))
        # The peak is that of what follows from here on.
        Path("/proc/self/clear_refs").write_text("5")
        before, began, cpu_began = memory_bytes("VmRSS"), time.perf_counter(), time.process_time()
        write(*arguments)
        took_s, cpu_s = time.perf_counter() - began, time.process_time() - cpu_began
        file = next(paths.folder.glob(kind + "*"))
        writes[kind].append({
            "took_s": took_s, "cpu_s": cpu_s, "size_bytes": file.stat().st_size,
            "peak_bytes": memory_bytes("VmHWM"), "memory_bytes": memory_bytes("VmHWM") - before,
        })
        Path("/proc/self/clear_refs").write_text("5")
    return call

asks = count(1)
Checkpoints.is_due = property(lambda self: next(asks) % asked["every"] == 0)
Checkpoints.write = timed(Checkpoints.write, "checkpoint")
if keeps:
    AttemptTraining._keep_model = timed(AttemptTraining._keep_model, "model")
result = evaluate_attempt(asked["folder"])
assert result["verdict"]["kind"] == "completed", result
peaks.append(memory_bytes("VmHWM"))
print(json.dumps({
    "writes": writes, "peak_bytes": max(peaks), "parameters": spec.parameters_expected,
}))
"""


def trained(tree: Path, folder: Path, model: Mapping[str, Any]) -> dict[str, Any]:
    """Return what a worker has measured that ran on the code of a tree."""
    folder.mkdir(parents=True)
    asked = {
        **{"folder": str(folder), "level": LEVEL, "model": model},
        **{"steps": STEPS, "every": EVERY},
    }
    done = subprocess.run(
        [sys.executable, "-c", _WORKER, json.dumps(asked)],
        env={**os.environ, "PYTHONPATH": str(tree), "OMP_NUM_THREADS": "1"},
        cwd=folder,
        capture_output=True,
        text=True,
        check=False,
    )
    if done.returncode != 0:
        raise SystemExit(f"a worker of {tree} failed:\n{done.stderr[-4000:]}")
    measured: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return measured


def plain_write_s(folder: Path, size_bytes: int) -> float:
    """Return the seconds of a plain write of that many bytes, with fsync."""
    block = os.urandom(1 << 22)
    path = folder / "plain"
    began = time.perf_counter()
    with path.open("wb") as file:
        for written in range(0, size_bytes, len(block)):
            file.write(block[: size_bytes - written])
        file.flush()
        os.fsync(file.fileno())
    took_s = time.perf_counter() - began
    path.unlink()
    return took_s


def main() -> int:
    """Measure and print a table."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("commit", nargs="?", help="commit of the code to compare with")
    parser.add_argument("--dim", type=int, default=1024, help="of the model")
    parser.add_argument("--rounds", type=int, default=5)
    asked = parser.parse_args()
    model = {"dim": asked.dim, "depth": 4, "expansion": 1.5}
    found: dict[str, list[dict[str, Any]]] = {}
    plain: list[float] = []
    with tempfile.TemporaryDirectory(prefix="checkpoint-stall-") as scratch:
        trees = {THIS: ROOT}
        if asked.commit:
            trees = {asked.commit: unpack(asked.commit, Path(scratch) / "older"), **trees}
        for number in range(asked.rounds):
            for name, tree in trees.items():
                folder = Path(scratch) / f"{name}-{number}" / "evaluations/g000-e00/attempt-1"
                found.setdefault(name, []).append(trained(tree, folder, model))
            size_bytes = found[THIS][-1]["writes"]["checkpoint"][-1]["size_bytes"]
            plain.append(size_bytes / plain_write_s(Path(scratch), size_bytes))
    print(f"{LEVEL}, {found[THIS][0]['parameters']:,} parameters, one thread of the CPU\n")
    print("| Code | Written | Size | Time | CPU | Speed | Plain | Share | Memory | Peak |")
    print("| --- | --- | ---: | ---: | ---: | ---: | ---: | ---: | ---: | ---: |")
    good = [
        report(name, kind, workers, statistics.median(plain))
        for name, workers in found.items()
        for kind in ("checkpoint", "model")
        if workers[0]["writes"][kind]
    ]
    return 0 if all(good) else 1


def report(name: str, kind: str, workers: list[dict[str, Any]], plain: float) -> bool:
    """Print the row of a kind of file that the workers of one code wrote; return if it is good."""
    writes = [write for worker in workers for write in worker["writes"][kind]]
    size_bytes, took_s, cpu_s, memory = (
        statistics.median(write[key] for write in writes)
        for key in ("size_bytes", "took_s", "cpu_s", "memory_bytes")
    )
    share = took_s / (INTERVAL_S + took_s)
    peak = statistics.median(worker["peak_bytes"] for worker in workers)
    # A model is written once.
    shown = f"{share:.2%}" if kind == "checkpoint" else "–"
    print(
        f"| {name} | {kind} | {size_bytes / 1e6:.1f} MB | {took_s:.2f} s | {cpu_s:.2f} s "
        f"| {size_bytes / took_s / 1e6:.0f} MB/s | {plain / 1e6:.0f} MB/s | {shown} "
        f"| {memory / 1e6:.1f} MB | {peak / 1e6:.1f} MB |"
    )
    is_below_peak = all(
        write["peak_bytes"] <= worker["peak_bytes"]
        for worker in workers
        for write in worker["writes"][kind]
    )
    return name != THIS or (share <= MOST_STALL and is_below_peak)


if __name__ == "__main__":
    sys.exit(main())
