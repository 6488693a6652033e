"""Searches that nothing disturbs, for others to be compared with."""

from pathlib import Path

import pytest

from elmanctl.ledger.run_state import RunState
from tests.command_line import CommandLine
from tests.integration.runs import load, search_arguments, with_standins


@pytest.fixture(scope="session")
def undisturbed(
    tmp_path_factory: pytest.TempPathFactory, environment: dict[str, str], corpus: Path
) -> RunState:
    """The state of a search on this machine that nothing disturbed."""
    folder = tmp_path_factory.mktemp("undisturbed")
    done = CommandLine(folder=folder, environment=environment)(*search_arguments(corpus), "--local")
    assert done.returncode == 0, done.stderr
    return load(folder / "runs" / "run")


@pytest.fixture(scope="session")
def undisturbed_standins(
    tmp_path_factory: pytest.TempPathFactory, environment: dict[str, str], corpus: Path
) -> RunState:
    """The state of such a search whose workers are stand-ins."""
    folder = tmp_path_factory.mktemp("undisturbed-standins")
    user = with_standins(CommandLine(folder=folder, environment=environment), 0.0)
    done = user(*search_arguments(corpus), "--local")
    assert done.returncode == 0, done.stderr
    return load(folder / "runs" / "run")
