"""The part of make.py that imports the old code: searches with a scheduler in memory.

Controller, ledger and optimizer are those of the old version; only the jobs are those of its
`tests/search/scripted.py`.  It is written for commit fa2d121 and cannot run on other versions.

    python old_code.py every-kind|long RUNS CORPUS
    python old_code.py describe
"""

import json
import shutil
import sys
from collections.abc import Sequence
from itertools import product
from pathlib import Path
from typing import Any

from elmanctl.errors import ElmanError, SubmissionError
from elmanctl.jobs.executor import SubmissionUnknown
from elmanctl.ledger.handlers import HANDLERS
from elmanctl.ledger.records import Submission
from elmanctl.ledger.requests import leave_request
from elmanctl.ledger.snapshot import SNAPSHOT_FILE
from elmanctl.ledger.state import load_run
from elmanctl.models.params import count_parameters
from elmanctl.models.registry import FAMILIES, decode_config
from elmanctl.search.actions import perform
from elmanctl.search.rebuild import restore_optimizer
from elmanctl.search.repair import repair_run
from elmanctl.search.session import Session
from elmanctl.search.space import shipped_space, space_names
from elmanctl.search.watch import Watcher
from tests.search.scripted import Run, Runs, ScriptedExecutor, World

# Twelve models in all, so that points are asked again.
SEARCH: dict[str, Any] = {
    "axes": {
        "n_heads": {"kind": "int", "low": 1, "high": 4},
        "depth": {"kind": "int", "low": 1, "high": 3},
    },
    "model": {"dim": 32, "n_state": 8, "lr": 1e-2},
    "slurm": {"partition": "gpu", "mem_gb": 16.0, "setup": ("module load cuda",)},
    "retry": {"breaker": 0, "replacements": 2},
    "train": {"checkpoint_min": 5.0},
    "disk": {"floor_gb": 0.0, "floor_inodes": 0, "keep_best": 1, "keep_last": 0},
}
NO_NODE = "Batch job submission failed: Requested node configuration is not available"


class Cluster(ScriptedExecutor):
    """Refuses and loses submissions as its script says, one word for each."""

    def __init__(self, world: World, answers: Sequence[str] = ()) -> None:
        super().__init__(world)
        self.answers = list(answers)

    def submit(self, submission: Submission, folder: Path) -> str:
        answer = self.answers.pop(0) if self.answers else "taken"
        if answer == "no node":
            raise SubmissionError(NO_NODE)
        if answer == "refused":
            raise SubmissionError("sbatch: error: Invalid account or partition specified")
        if answer == "not heard":
            folder.mkdir(parents=True, exist_ok=True)
            raise SubmissionUnknown("sbatch did not answer")
        if answer == "not told":
            super().submit(submission, folder)
            raise SubmissionUnknown("sbatch did not answer")
        return super().submit(submission, folder)


def drive(run: Run, answers: Sequence[str] = (), **more: Any) -> None:
    """Let a controller work until it stops, whatever stops it."""
    run.stop.clear()
    try:
        run.drive(executor=Cluster(run.world, answers), **more)
    except ElmanError as exc:
        print(f"  paused: {exc.message}")


def stop_when(run: Run, is_time: Any) -> None:
    """Interrupt the controller as Ctrl-C does, as soon as its state is so."""

    def turn(session: Session) -> None:
        if is_time(session.state):
            run.stop.set()

    run.view.every_turn = turn


def act(run: Run, command: str, **arguments: Any) -> None:
    """Carry out a command of a user while no controller runs."""
    with Session.open(run.folder) as session:
        watcher = Watcher(session, ScriptedExecutor(run.world))
        perform(session, watcher, command, arguments, f"by-hand-{session.state.seq}")


def ask(run: Run, kept: Path, command: str, **arguments: Any) -> None:
    """Leave a request for the running controller, and keep a copy of it."""
    name = leave_request(run.folder, command, arguments)
    kept.mkdir(parents=True, exist_ok=True)
    shutil.copy(run.paths.requests / f"{name}.json", kept)


def damage(run: Run) -> None:
    """Spoil the last line but one of the ledger."""
    lines = run.paths.ledger.read_bytes().splitlines(keepends=True)
    lines[-2] = lines[-2].replace(b'"seq"', b'"sEq"')
    run.paths.ledger.write_bytes(b"".join(lines))


def every_kind(runs: Runs) -> Run:
    """Make a small run with an event of every kind."""
    run = runs.new("every-kind", generations=2, seed=3, **SEARCH)
    kept = run.folder / "requests-kept"
    run.world.script = {
        "g000-e00": ["node_failure", "completed"],
        "g000-e01": ["oom", "completed"],
        "g000-e02": ["diverged"],
        "g000-e03": ["python_error"],
    }
    run.world.nodes = {"g000-e00": ["n7", "n2"]}
    # The first submission is refused, and the search pauses.
    drive(run, ["refused"])
    # The second is never heard of, the third is taken and its answer lost.
    stop_when(run, lambda state: state.excluded_nodes)
    drive(run, ["not heard", "not told"])
    # An intact event is lost with a damaged one before it, and the run is repaired.
    damage(run)
    repair_run(run.paths, lambda words: print(f"  repaired: {words}"))
    # A node that was excluded is the only one left.
    run.world.held = {"g000-e01"}
    asked: list[str] = []

    def requests(session: Session) -> None:
        if session.state.evaluations["g000-e01"].has_live_attempt and not asked:
            ask(run, kept, "cancel", evaluations=["g000-e01"], all=False)
            ask(run, kept, "requeue", evaluations=["g000-e02"], mem_gb=24.0, force=True)
            asked.append("both")

    run.view.every_turn = requests
    drive(run, ["no node"])
    run.view.every_turn = lambda session: None
    run.world.held = set()
    run.leave_files(load_run(run.folder).state)
    act(run, "clean", keep_best=1, keep_last=0)
    with Session.open(run.folder) as session:
        session.change_settings({"retry.killed": 2, "slurm.mem_gb": 32.0})
        # Equal states are pickled to equal bytes here; other versions of pycma do otherwise.
        state = (session.paths.optimizer / str(session.state.optimizer_file["file"])).read_bytes()
        restore_optimizer(session, state + b" ")
    drive(run, generations=3)
    act(run, "requeue", evaluations=["g000-e01"], force=True, timeout_min=90, exclude=["n9"])
    run.world.held = {"g000-e01"}
    stop_when(run, lambda state: state.evaluations["g000-e01"].has_live_attempt)
    drive(run)
    act(run, "cancel", all=True, evaluations=[])
    run.leave_files(load_run(run.folder).state)
    lines = [json.loads(line) for line in run.paths.ledger.read_bytes().splitlines()]
    missing = sorted({*HANDLERS} - {line["kind"] for line in lines})
    if missing:
        sys.exit(f"no event of {', '.join(missing)}")
    return run


def long(runs: Runs) -> Run:
    """Make a run so long that it has a snapshot, with events after it."""
    run = runs.new("long", generations=14, population=16, seed=5)
    run.world.script = {f"g{n:03}-e0{n % 8}": ["diverged"] for n in range(0, 14, 3)}
    stop_when(run, lambda state: state.generation == 13)
    drive(run)
    snapshot = (run.folder / SNAPSHOT_FILE).read_bytes()
    run.view.every_turn = lambda session: None
    drive(run)
    # As a kill leaves it: the events of the last controller are not in it.
    (run.folder / SNAPSHOT_FILE).write_bytes(snapshot)
    return run


def describe() -> dict[str, Any]:
    """Return every kind of event, configurations of all models, and a small one of each."""
    configs = []
    for model in FAMILIES:
        for name, variant in product(space_names(model), ("documented", "study-2026-01")):
            space = shipped_space(model, name)
            fields = {"dim": 1024, "depth": 2, **space.fixed, **space.best}
            fields.pop("lr", None)
            config = decode_config(model, fields, variant).encode()
            parameters = count_parameters(model, config)
            configs.append({"model": model, "config": config, "parameters": parameters})
    tiny = {model: {"dim": 32, **shipped_space(model, "tiny").best} for model in FAMILIES}
    return {"kinds": list(HANDLERS), "configs": configs, "tiny": tiny}


def main() -> None:
    """Make one of the runs, or print the description."""
    if sys.argv[1:] == ["describe"]:
        print(json.dumps(describe()))
        return
    runs = Path(sys.argv[2])
    make = {"every-kind": every_kind, "long": long}[sys.argv[1]]
    run = make(Runs(runs, Path(sys.argv[3]), runs.parent / "templates"))
    print(f"  {run.folder}: {run.paths.ledger.stat().st_size} bytes of ledger")


if __name__ == "__main__":
    main()
