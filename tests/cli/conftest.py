"""Runs with a history, as a search leaves them, for the commands to look at."""

import os
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from elmanctl.ledger.records import RunStatus, State
from tests.command_line import CommandLine, QuickCommandLine
from tests.search.scripted import Runs

# Of each of the runs.
EVALUATIONS = [f"g00{generation}-e0{index}" for generation in range(2) for index in range(4)]


@pytest.fixture(scope="session")
def histories(tmp_path_factory: pytest.TempPathFactory, corpus: Path) -> Iterator[Path]:
    """A folder of runs: one that is finished, one that was interrupted with a job at work."""
    root = tmp_path_factory.mktemp("histories")
    (root / "templates").mkdir()
    runs = Runs(root / "runs", corpus, root / "templates")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(os, "fsync", lambda descriptor: None)
        patch.setenv("XDG_CACHE_HOME", str(root / "cache"))
        finished = runs.new(name="finished")
        finished.world.script = {"g000-e01": ["node_failure"]}
        state = finished.drive()
        assert state.status is RunStatus.FINISHED
        finished.leave_files(state)
        broken = runs.new(name="interrupted-search", retry={"replacements": 0})
        broken.world.script = {"g000-e02": ["python_error"]}
        broken.world.held = {"g001-e00"}

        def is_waiting_for_one(states: list[State]) -> bool:
            return len(states) == 8 and states.count(State.RUNNING) == 1

        broken.view.every_turn = lambda session: (
            broken.stop.set()
            if is_waiting_for_one([e.state for e in session.state.evaluations.values()])
            else None
        )
        assert broken.drive().status is RunStatus.INTERRUPTED
    # Moved away from where they were driven: what a test gets is no copy of a run.
    yield (root / "runs").rename(root / "kept")


@pytest.fixture
def with_runs(elmanctl: CommandLine, histories: Path) -> CommandLine:
    """The command line in a folder with the runs."""
    shutil.copytree(histories, elmanctl.folder / "runs", symlinks=True)
    return elmanctl


@pytest.fixture
def quick_with_runs(with_runs: CommandLine, quick: QuickCommandLine) -> QuickCommandLine:
    """The command line in a folder with the runs, in this process."""
    return quick


Snapshot = Callable[[], dict[str, bytes]]


@pytest.fixture
def snapshot(elmanctl: CommandLine) -> Snapshot:
    """Takes down what every file of the folder holds."""

    def take() -> dict[str, bytes]:
        root = elmanctl.folder
        return {
            str(path.relative_to(root)): path.read_bytes() if path.is_file() else b""
            for path in root.rglob("*")
        }

    return take
