"""Measure how long many short trainings take, through plain submitit and through elmanctl.

    python benchmarks/against_submitit.py [--evaluations 24] [--seconds 2] [--rounds 3]

Needs a Slurm cluster made by scripts/slurmbox.  In each round so many stand-in workers go through
one generation of a search: as single jobs, with two attempts in each job, and inside an allocation
of all nodes; then the same evaluations, with the specs of the first of these searches, through one
array of plain submitit.  Each asks for the same GPU, CPU and memory.  The time goes from the first
submission to the end of the last training, by the clock of the workers; an allocation is there
before.  Prints the medians.
"""

import argparse
import json
import os
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import submitit

ROOT = Path(__file__).parents[1]
sys.path.insert(0, str(ROOT))

from campaign.search import Search, Shape  # noqa: E402

from elmanctl import clock  # noqa: E402

PLAIN, JOBS, PER_JOB, INSIDE = "submitit", "single jobs", "`slurm.per_job = 2`", "`--inside`"

_NODES, _GPUS_OF_A_NODE, _MEM_MB = 4, 2, 300


def through_submitit(folder: Path, search: Search) -> float:
    """Return the seconds that the evaluations of a search take as one array of submitit."""
    run = folder / "plain"
    shutil.copytree(search.run_folder, run, symlinks=True, ignore=_all_but_specs)
    attempts = sorted(run.glob("evaluations/*/attempt-1"))
    # What the controller sets for its workers.
    code = {"PYTHONPATH": f"{run / 'code'}{os.pathsep}{search.environment['PYTHONPATH']}"}
    os.environ.update({**{k: v for k, v in search.environment.items() if "STANDIN" in k}, **code})
    executor = submitit.AutoExecutor(folder=folder / "logs", cluster="slurm")
    executor.update_parameters(
        slurm_partition="gpu",
        slurm_gres="gpu:1",
        cpus_per_task=1,
        slurm_mem=f"{_MEM_MB}M",
        timeout_min=10,
        slurm_array_parallelism=len(attempts),
    )
    began = time.time()
    jobs = executor.map_array(_evaluate, [str(attempt) for attempt in attempts])
    for job in jobs:
        job.result()
    return _last_end(run) - began


def _evaluate(attempt: str) -> None:
    from elmanctl.jobs.evaluation import EvaluateAttempt

    EvaluateAttempt(attempt)()


def _all_but_specs(folder: str, names: list[str]) -> list[str]:
    """Return what a worker or a controller left in the folder of a run."""
    if Path(folder).name.startswith("attempt-"):
        return [name for name in names if name != "spec.json"]
    return [name for name in names if name in ("submissions", "lease.json")]


def through_search(folder: Path, own: argparse.Namespace, how: str) -> tuple[float, Search]:
    """Return the seconds from the first submission of a search to the end of its last training."""
    shape = Shape(
        population=own.evaluations, generations=1, seed=1, seconds=(own.seconds, own.seconds)
    )
    search = Search(folder, shape, "slurm")
    chosen = ["search.confirm_top=0", f"slurm.mem_gb={_MEM_MB / 1024}", "slurm.cpus=1"]
    if how == PER_JOB:
        chosen.append("slurm.per_job=2")
    arguments = [*search.next_arguments(), *(f"--set={one}" for one in chosen)]
    if how == INSIDE:
        search.environment["SLURM_JOB_ID"] = job = _allocate()
        arguments = [*arguments, "--inside"]
    try:
        search.expect(search.start(arguments), 0, 600)
    finally:
        if how == INSIDE:
            subprocess.run(["scancel", job], check=True)
    attempts = [each for e in search.state().evaluations.values() for each in e.attempts]
    began = min(clock.from_text(str(each.submitted_at)).timestamp() for each in attempts)
    return _last_end(search.run_folder) - began, search


def _last_end(run: Path) -> float:
    """Return when the last of a run's workers wrote its last heartbeat."""
    beats = run.glob("evaluations/*/*/heartbeat.json")
    times = [json.loads(beat.read_text(encoding="utf-8"))["at"] for beat in beats]
    return max(clock.from_text(at).timestamp() for at in times)


def _allocate() -> str:
    asked = [
        *("salloc", "--no-shell", "--partition=gpu", f"--nodes={_NODES}", "--ntasks-per-node=1"),
        *(f"--cpus-per-task={_GPUS_OF_A_NODE}", f"--gres=gpu:{_GPUS_OF_A_NODE}", "--time=30"),
        f"--mem={2 * _MEM_MB * _GPUS_OF_A_NODE}",
    ]
    done = subprocess.run(asked, capture_output=True, text=True, check=True)
    return done.stderr.split("Granted job allocation ")[1].split()[0]


def main() -> None:
    """Do what the usage says."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--evaluations", type=int, default=24)
    parser.add_argument("--seconds", type=float, default=2.0)
    parser.add_argument("--rounds", type=int, default=3)
    own = parser.parse_args()
    taken: dict[str, list[float]] = {name: [] for name in (PLAIN, JOBS, PER_JOB, INSIDE)}
    for _ in range(own.rounds):
        with tempfile.TemporaryDirectory(prefix="short-") as made:
            folder = Path(made)
            searches = {}
            for number, how in enumerate((JOBS, PER_JOB, INSIDE)):
                seconds, searches[how] = through_search(folder / str(number), own, how)
                taken[how].append(seconds)
            taken[PLAIN].append(through_submitit(folder, searches[JOBS]))
        print({name: round(each[-1], 1) for name, each in taken.items()}, file=sys.stderr)
    plain = statistics.median(taken[PLAIN])
    print("| through | seconds | of submitit's |\n| --- | ---: | ---: |")
    for name, each in taken.items():
        median = statistics.median(each)
        print(f"| {name} | {median:.1f} | {median / plain:.2f} |")


if __name__ == "__main__":
    main()
