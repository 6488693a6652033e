"""One search that nothing disturbs, for others to be compared with."""

from pathlib import Path

import pytest

from elmanctl.ledger.run_state import RunState
from tests.command_line import CommandLine
from tests.integration.runs import load, search_arguments


@pytest.fixture(scope="session")
def undisturbed(
    tmp_path_factory: pytest.TempPathFactory, environment: dict[str, str], corpus: Path
) -> RunState:
    """The state of a search on this machine that nothing disturbed."""
    folder = tmp_path_factory.mktemp("undisturbed")
    done = CommandLine(folder=folder, environment=environment)(*search_arguments(corpus), "--local")
    assert done.returncode == 0, done.stderr
    return load(folder / "runs" / "run")
