"""Runs of earlier versions: missing fields in their ledgers do no harm."""

import copy
from dataclasses import replace
from pathlib import Path

import pytest

from elmanctl.errors import ConfigError
from elmanctl.ledger.events import decode_line, encode_event
from elmanctl.ledger.records import RunStatus
from elmanctl.search.session import Session
from tests.search.scripted import Run, Runs

pytestmark = pytest.mark.usefixtures("no_power_failures")

# What `[settings]` of version 0.1 did not have, and what its events did not tell.
NEW_SETTINGS = {
    "search": ("repeats",),
    "retry": ("max_mem_gb", "oom_gpu", "oom_neighbour", "cuda_device", "exclude_min"),
    "disk": ("floor_inodes", "keep_best", "keep_last", "keep_failed_logs", "auto_clean"),
}
NEW_DATA = {"attempt_finished": ("sizes",), "controller_started": ("folder", "clusters")}


def make_old(ledger: Path) -> None:
    """Take out of a ledger what version 0.1 did not write."""
    lines = []
    for line in ledger.read_bytes().splitlines():
        event = decode_line(line)
        data = copy.deepcopy(dict(event.data))
        if event.kind == "run_created":
            tables = data["run"]["settings"]
            del tables["budget"]
            for section, names in NEW_SETTINGS.items():
                tables[section] = {k: v for k, v in tables[section].items() if k not in names}
        if event.kind == "attempt_finished":
            data["verdict"] = {key: data["verdict"][key] for key in ("kind", "evidence")}
        left = {k: v for k, v in data.items() if k not in NEW_DATA.get(event.kind, ())}
        lines.append(encode_event(replace(event, data=left)))
    ledger.write_bytes(b"".join(lines))


@pytest.fixture
def old(runs: Runs) -> Run:
    """A run of version 0.1 that was stopped in the middle of its first generation."""
    run = runs.new()
    run.world.script = {"g000-e01": ["oom gpu"]}
    run.view.every_turn = lambda session: run.stop.set()
    for _ in range(3):
        run.stop.clear()
        run.drive()
    run.stop.clear()
    run.view.every_turn = lambda session: None
    make_old(run.paths.ledger)
    return run


def test_run_that_began_with_what_is_out_of_bounds_now_goes_on(old: Run) -> None:
    lines = []
    for line in old.paths.ledger.read_bytes().splitlines():
        event = decode_line(line)
        data = copy.deepcopy(dict(event.data))
        if event.kind == "run_created":
            data["run"]["settings"]["search"] |= {"tolerance": 5.0}
            data["run"]["settings"]["retry"]["lost"] = 10**6
        lines.append(encode_event(replace(event, data=data)))
    old.paths.ledger.write_bytes(b"".join(lines))
    with Session.open(old.folder) as session:
        assert session.settings.search.tolerance == 5.0
        session.change_settings({"retry.killed": 2})
        with pytest.raises(ConfigError, match=r"`retry\.lost` must be at most 1000"):
            session.change_settings({"retry.lost": 10**6})
        with pytest.raises(ConfigError, match=r"`search\.generations` must be at most"):
            session.extend(10**9)
    assert old.drive().status is RunStatus.FINISHED


def test_settings_that_a_run_never_had_can_be_set(old: Run) -> None:
    changes = {"budget.evaluations": 100, "disk.keep_last": 1, "retry.oom_gpu": 2}
    with Session.open(old.folder) as session:
        assert session.settings.budget.evaluations is None
        session.change_settings(changes)
        assert session.settings.budget.evaluations == 100
    state = old.drive()
    assert state.status is RunStatus.FINISHED
    assert state.changes == changes
