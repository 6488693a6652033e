"""Making, disturbing and reading small searches."""

import json
import os
import signal
import subprocess
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import TypeVar

from elmanctl.ledger.records import RunStatus
from elmanctl.ledger.run_state import RunState
from elmanctl.ledger.state import load_run
from elmanctl.run.paths import RunPaths
from tests.command_line import CommandLine
from tests.patience import PATIENCE_S

ROOT = Path(__file__).parents[2]
SLURMBOX = ROOT / "scripts" / "slurmbox"
KILLED_AT = str(Path(__file__).with_name("killed_at.py"))

_T = TypeVar("_T")


def search_arguments(corpus: Path) -> list[str]:
    """Return a search of two generations of tiny models, with a step budget, and nothing more."""
    return [
        *("search", "e88", "--preset", "tiny", "--yes", "--name", "run"),
        *("--generations", "2", "--train-steps", "15", "--data", str(corpus)),
        *("--set", "search.confirm_top=0"),
    ]


def with_standins(user: CommandLine, seconds: float = 3.0) -> CommandLine:
    """Return a command line whose workers wait so long where others train.

    They do all else, and their losses are a function of the configuration and the seed.  For tests
    of controllers and clusters: a job without torch takes a tenth of the processor time.
    """
    worker = ROOT / "benchmarks" / "campaign" / "worker"
    variables = {
        "PYTHONPATH": f"{user.environment['PYTHONPATH']}{os.pathsep}{worker}",
        "STANDIN_LOG": str(user.folder / "trainings.log"),
        "STANDIN_FAULTS": "0",
        "STANDIN_SECONDS": f"{seconds},{seconds}",
    }
    return replace(user, environment={**user.environment, **variables})


def wait_for(
    look: Callable[[], _T | None], what: str, timeout_s: float = PATIENCE_S, pause_s: float = 0.1
) -> _T:
    """Return what `look` finds, as soon as it finds something."""
    end = time.monotonic() + timeout_s
    while time.monotonic() < end:
        found = look()
        if found:
            return found
        time.sleep(pause_s)
    raise AssertionError(f"waited {timeout_s} s for {what}")


def load(folder: Path) -> RunState:
    """Return a run's state; its ledger must be whole."""
    loaded = load_run(folder)
    assert loaded.warning is None
    return loaded.state


def points(state: RunState) -> dict[str, tuple[float, ...]]:
    """Return the point of every evaluation."""
    return {name: evaluation.point for name, evaluation in state.evaluations.items()}


def losses(state: RunState) -> dict[str, float | None]:
    """Return the loss of every evaluation."""
    return {name: evaluation.loss for name, evaluation in state.evaluations.items()}


def trained_attempts(folder: Path) -> list[str]:
    """Return the folder of every attempt that a worker finished, as `evaluation/attempt`."""
    found = sorted((folder / "evaluations").glob("*/*/result.json"))
    return [
        f"{path.parts[-3]}/{path.parts[-2]}"
        for path in found
        if json.loads(path.read_text(encoding="utf-8"))["verdict"]["kind"] == "completed"
    ]


def kill_worker(run: RunPaths, evaluation: str, number: signal.Signals) -> None:
    """Send a signal to the worker of an evaluation's first attempt, on a node of this machine."""
    claim = run.attempt(evaluation, 1).claim.read_text(encoding="utf-8")
    os.kill(json.loads(claim)["pid"], number)


def assert_same_search(folder: Path, undisturbed: RunState) -> RunState:
    """Assert that a run ended as the undisturbed one did, each evaluation trained once."""
    state = load(folder)
    assert state.status is RunStatus.FINISHED
    assert points(state) == points(undisturbed)
    assert losses(state) == losses(undisturbed)
    assert len(trained_attempts(folder)) == len(state.evaluations)
    return state


def slurmbox(*arguments: str) -> None:
    """Change the cluster of this machine; see scripts/slurmbox."""
    folder = Path(os.environ["SLURM_CONF"]).parents[1]
    subprocess.run(
        [SLURMBOX, *arguments],
        check=True,
        capture_output=True,
        env={**os.environ, "SLURMBOX": str(folder)},
    )
