"""Rebuild of the optimizer from the ledger alone, each time a controller starts."""

import json
from dataclasses import replace

import pytest

from elmanctl.errors import LedgerError
from elmanctl.ledger.events import decode_line, encode_event
from elmanctl.ledger.records import RunStatus
from elmanctl.ledger.state import load_run
from elmanctl.search.session import Session
from tests.integration.runs import points
from tests.search.scripted import Run, Runs

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
    state = run.drive(generations=4)
    assert points(state) == points(load_run(undisturbed.folder).state)


def move_first_point(run: Run, by: float) -> None:
    """Change the first coordinate of the first point on record."""
    lines = []
    for line in run.paths.ledger.read_bytes().splitlines():
        event = decode_line(line)
        data = json.loads(json.dumps(event.data))
        if event.kind == "points_asked" and data["generation"] == 0:
            data["evaluations"][0]["point"][0] += by
        lines.append(encode_event(replace(event, data=data)))
    run.paths.ledger.write_bytes(b"".join(lines))


def test_other_points_than_those_on_record_are_an_error_that_names_both_versions(
    runs: Runs, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = runs.new()
    run.drive()
    move_first_point(run, 1.0)
    monkeypatch.setattr("elmanctl.search.rebuild.metadata.version", lambda name: f"9 of {name}")
    before = run.paths.ledger.read_bytes()
    with pytest.raises(LedgerError, match="cannot be rebuilt: at generation 0") as caught:
        run.drive(generations=3)
    recorded = load_run(run.folder).state.run["versions"]
    assert f"began with cma {recorded['cma']}, numpy {recorded['numpy']}" in caught.value.message
    assert "here are cma 9 of cma, numpy 9 of numpy" in caught.value.message
    assert run.paths.ledger.read_bytes().startswith(before)
    assert len(load_run(run.folder).state.evaluations) == 8


def test_nothing_of_the_optimizer_is_saved(runs: Runs) -> None:
    run = runs.new()
    run.drive()
    assert not run.paths.optimizer.exists()
