"""Several searches by one controller on a real Slurm cluster (scripts/slurmbox up)."""

from pathlib import Path

import pytest

from elmanctl.ledger.records import State
from elmanctl.ledger.run_state import RunState
from tests.command_line import CommandLine
from tests.integration.runs import (
    KILLED_AT,
    assert_same_search,
    load,
    search_arguments,
    with_standins,
)
from tests.patience import PATIENCE_S

pytestmark = [pytest.mark.slurm, pytest.mark.timeout(280)]

SETTINGS = """\
[search]
max_jobs = 3

[slurm]
partition = "gpu"
poll_s = 1.0
"""

KILLS = [
    # The first search has asked its points, the second has not.
    ("after", "points_asked", 1),
    # A job of one search is accepted, and that is on no record.
    ("before", "submission_accepted", 1),
    ("before", "submission_accepted", 2),
    ("after", "attempt_finished", 2),
]


def test_controller_of_two_searches_that_is_killed_loses_and_repeats_nothing(
    elmanctl: CommandLine, corpus: Path, undisturbed_standins: RunState
) -> None:
    (elmanctl.folder / "elman.toml").write_text(SETTINGS, encoding="utf-8")
    user = with_standins(elmanctl)
    search, model, *options = search_arguments(corpus)
    arguments = [search, model, "mingru", *options]
    runs = ["run-e88", "run-mingru"]
    for moment, kind, count in KILLS:
        killed = user.start([moment, kind, str(count), *arguments], program=(KILLED_AT,))
        output, _ = killed.communicate(timeout=PATIENCE_S)
        assert killed.returncode == -9, (moment, kind, output)
        arguments = ["resume", *runs]
    resumed = user("resume", *runs)
    assert resumed.returncode == 0, resumed.stderr
    # What one of them finds is what a search of its model alone finds, without Slurm.
    states = [
        assert_same_search(elmanctl.folder / "runs" / "run-e88", undisturbed_standins),
        load(elmanctl.folder / "runs" / "run-mingru"),
    ]
    for state in states:
        assert state.counts()[State.COMPLETED] == len(state.evaluations)
        assert {len(e.attempts) for e in state.evaluations.values()} == {1}
        # A share of three jobs is never a generation of four.
        assert all(len(one.tasks) <= 3 for one in state.submissions.values())
