"""Searches by every optimizer that are killed go on with the points of one that is not."""

import os
import random
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from elmanctl.constants import GP_OPTUNA, LHS_CMA, OPTIMIZERS, TPE_GP
from elmanctl.ledger.records import RunStatus
from elmanctl.ledger.run_state import RunState
from elmanctl.ledger.state import load_run
from elmanctl.search.session import Session
from tests.integration.runs import losses, points
from tests.search.optimizers.packages import need_packages_of
from tests.search.scripted import Run, Runs

ROOT = Path(__file__).parents[3]

# A failure whose point is replaced, one that is tried again, and one that is ranked last.
TROUBLES = {
    "g000-e01": ["python_error"],
    "g001-e00": ["node_failure"],
    "g002-e02": ["diverged"],
}


def new_run(runs: Runs, name: str) -> Run:
    """Return a search whose fourth generation models propose."""
    changes: dict[str, Any] = {"optimizer": name, "generations": 4}
    if name == LHS_CMA:
        changes |= {"lhs_points": 6, "lhs_starts": 2}
    return runs.new(**changes)


def kills(name: str, last: int, count: int) -> list[int]:
    """Return numbers of events, in order."""
    return sorted(random.Random(name).sample(range(3, last), count))


def assert_same(state: RunState, whole: RunState, where: object) -> None:
    assert state.status is RunStatus.FINISHED, where
    assert points(state) == points(whole), where
    assert losses(state) == losses(whole), where


@pytest.mark.usefixtures("no_power_failures")
@pytest.mark.parametrize("name", OPTIMIZERS)
def test_search_killed_again_and_again_asks_the_same_points(
    name: str, runs: Runs, tmp_path: Path
) -> None:
    need_packages_of(name)
    first = new_run(runs, name)
    first.world.script = dict(TROUBLES)
    whole = first.drive()
    assert whole.status is RunStatus.FINISHED and len(whole.evaluations) >= 16
    run = new_run(runs, name)
    run.world.script = dict(TROUBLES)
    for kill_at in kills(name, whole.seq, 1 if name == GP_OPTUNA else 4):

        def die(session: Session, at: int = kill_at) -> None:
            if session.state.seq >= at:
                raise KeyboardInterrupt

        run.view.every_turn = die
        with pytest.raises(KeyboardInterrupt):
            run.drive()
        run = run.copy(tmp_path / f"killed-{kill_at}")
    assert_same(run.drive(), whole, name)


def test_killed_processes_ask_the_same_points_under_other_hash_seeds(runs: Runs) -> None:
    """`benchmarks/resume_optimizers.py` does this for every optimizer, with workers that train."""
    name = TPE_GP
    need_packages_of(name)
    whole = new_run(runs, name).drive()
    run = new_run(runs, name)
    for hash_seed, kill_at in enumerate([*kills(name, whole.seq, 2), 0]):
        done = subprocess.run(
            [
                *(sys.executable, "-m", "tests.search.optimizers.killed_controller"),
                *(str(run.folder), str(kill_at)),
            ],
            cwd=ROOT,
            env={**os.environ, "PYTHONHASHSEED": str(hash_seed), "PYTHONPATH": str(ROOT)},
            capture_output=True,
            text=True,
            check=False,
        )
        assert done.returncode == (-9 if kill_at else 0), done.stderr
    assert_same(load_run(run.folder).state, whole, name)
