"""Rebuild of the optimizer's state, also after a change of the settings that refuse points."""

import pytest

from elmanctl.ledger.records import RunStatus
from elmanctl.ledger.state import load_run
from elmanctl.search.repair import repair_run
from elmanctl.search.session import Session
from tests.integration.runs import points
from tests.search.scripted import Runs

pytestmark = pytest.mark.usefixtures("no_power_failures")


def test_points_are_judged_by_the_settings_of_their_time(runs: Runs) -> None:
    """A GPU on which half of the models do not fit is replaced by a larger one."""
    run = runs.new(slurm={"gpu_memory_gb": 0.00044}, generations=2)
    undisturbed = runs.new(slurm={"gpu_memory_gb": 0.00044}, generations=2)
    for each in (run, undisturbed):
        assert each.drive().refused[0] > 0
        with Session.open(each.folder) as session:
            session.change_settings({"slurm.gpu_memory_gb": 80.0})
    assert undisturbed.drive(generations=4).status is RunStatus.FINISHED
    run.drive(generations=3)
    for path in run.paths.optimizer.iterdir():
        path.unlink()
    said: list[str] = []
    repair_run(run.paths, said.append)
    assert any("was rebuilt" in line for line in said)
    state = run.drive(generations=4)
    assert points(state) == points(load_run(undisturbed.folder).state)
