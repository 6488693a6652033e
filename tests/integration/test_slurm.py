"""Searches on a real Slurm cluster (scripts/slurmbox up)."""

import shutil
import subprocess
from pathlib import Path

import pytest

from elmanctl.ledger.records import RunStatus, State, VerdictKind
from elmanctl.ledger.run_state import RunState
from elmanctl.run.paths import RunPaths
from tests.command_line import CommandLine
from tests.integration.runs import (
    KILLED_AT,
    assert_same_search,
    load,
    losses,
    points,
    search_arguments,
    slurmbox,
    wait_for,
    with_standins,
)
from tests.patience import PATIENCE_S

pytestmark = [pytest.mark.slurm, pytest.mark.timeout(280)]

SETTINGS = """\
[slurm]
partition = "gpu"
poll_s = 1.0
"""


@pytest.fixture
def cluster_user(elmanctl: CommandLine) -> CommandLine:
    """The command line in a folder with settings for the cluster."""
    (elmanctl.folder / "elman.toml").write_text(SETTINGS, encoding="utf-8")
    return elmanctl


def test_search_of_two_generations_completes_every_evaluation(
    cluster_user: CommandLine, corpus: Path, undisturbed: RunState
) -> None:
    nodes = subprocess.check_output(["sinfo", "-h", "-N", "-o", "%N"], text=True).split()
    done = cluster_user(*search_arguments(corpus))
    assert done.returncode == 0, done.stderr
    # The same points and, to the last bit, the same losses as without Slurm.
    state = assert_same_search(cluster_user.folder / "runs" / "run", undisturbed)
    assert len(state.evaluations) == 8
    assert {e.state for e in state.evaluations.values()} == {State.COMPLETED}
    assert {len(e.attempts) for e in state.evaluations.values()} == {1}
    # One array a generation.
    assert [len(s.tasks) for s in state.submissions.values()] == [4, 4]
    for evaluation in state.evaluations.values():
        (attempt,) = evaluation.attempts
        assert attempt.result is not None
        assert attempt.result["parameters"] == evaluation.parameters
        assert attempt.node in nodes
        assert attempt.size_bytes is not None and attempt.size_bytes > 0


KILLS = [
    # Between ask and submit, at the first generation.
    ("after", "points_asked", 1),
    # The intention is on record, sbatch was never called.
    ("after", "submission_intended", 1),
    # sbatch has accepted, its answer is not on record.
    ("before", "submission_accepted", 1),
    # While jobs run.
    ("after", "attempt_started", 1),
    # Between ask and submit, at the second generation.
    ("after", "points_asked", 1),
    ("before", "submission_accepted", 1),
    ("after", "attempt_finished", 2),
]


def test_controller_killed_again_and_again_loses_and_repeats_nothing(
    cluster_user: CommandLine, corpus: Path, undisturbed_standins: RunState
) -> None:
    user = with_standins(cluster_user)
    arguments = search_arguments(corpus)
    for moment, kind, count in KILLS:
        killed = user.start([moment, kind, str(count), *arguments], program=(KILLED_AT,))
        output, _ = killed.communicate(timeout=PATIENCE_S)
        assert killed.returncode == -9, (moment, kind, output)
        arguments = ["resume"]
    resumed = user("resume")
    assert resumed.returncode == 0, resumed.stderr
    state = assert_same_search(user.folder / "runs" / "run", undisturbed_standins)
    assert {len(e.attempts) for e in state.evaluations.values()} == {1}


def test_controller_killed_inside_sbatch_submits_nothing_twice(
    cluster_user: CommandLine, corpus: Path, undisturbed_standins: RunState
) -> None:
    """The controller dies while sbatch is still on its way: Slurm accepts the job after it."""
    real = shutil.which("sbatch")
    tools = cluster_user.folder / "bin"
    tools.mkdir()
    slow = tools / "sbatch"
    slow.write_text(
        f'#!/bin/sh\nif [ ! -e "{tools}/killed" ]; then\n  touch "{tools}/killed"\n'
        f'  kill -9 $PPID\n  sleep 3\nfi\nexec {real} "$@"\n',
        encoding="utf-8",
    )
    slow.chmod(0o755)
    environment = {
        **cluster_user.environment,
        "PATH": f"{tools}:{cluster_user.environment['PATH']}",
    }
    user = with_standins(CommandLine(folder=cluster_user.folder, environment=environment))
    assert user(*search_arguments(corpus)).returncode == -9
    resumed = user("resume")
    assert resumed.returncode == 0, resumed.stderr
    state = assert_same_search(user.folder / "runs" / "run", undisturbed_standins)
    assert [len(s.tasks) for s in state.submissions.values()] == [4, 4]
    assert {len(e.attempts) for e in state.evaluations.values()} == {1}


def test_evaluation_whose_node_dies_is_run_again(
    cluster_user: CommandLine, corpus: Path, undisturbed: RunState
) -> None:
    folder = cluster_user.folder / "runs" / "run"
    controller = cluster_user.start(search_arguments(corpus))
    node = wait_for(lambda: _running_node(folder), "an attempt to run")
    try:
        slurmbox("kill-node", node)
        output, _ = controller.communicate(timeout=PATIENCE_S)
    finally:
        slurmbox("start-node", node)
    assert controller.returncode == 0, output
    state = load(folder)
    assert state.status is RunStatus.FINISHED
    assert points(state) == points(undisturbed)
    assert losses(state) == losses(undisturbed)
    again = [e for e in state.evaluations.values() if len(e.attempts) > 1]
    assert again
    for evaluation in again:
        first = evaluation.attempts[0]
        assert first.verdict is not None
        assert first.verdict.kind is VerdictKind.NODE_FAILURE
        assert first.node == node


def _running_node(folder: Path) -> str | None:
    """Return the node of an attempt that has begun to train."""
    if not (folder / "ledger.jsonl").exists():
        return None
    for evaluation, attempt in load(folder).live_attempts():
        claim = RunPaths(folder).attempt(evaluation.id, attempt.number).claim
        if attempt.state is State.RUNNING and attempt.node and claim.exists():
            return attempt.node
    return None


def test_partition_that_does_not_exist_submits_nothing(
    cluster_user: CommandLine, corpus: Path
) -> None:
    before = _job_ids()
    done = cluster_user(*search_arguments(corpus), "--partition", "nope")
    assert done.returncode == 4
    assert done.stderr.startswith("error: no partition named `nope`\n\nhint: partitions here:")
    assert not (cluster_user.folder / "runs").exists()
    assert _job_ids() <= before


def _job_ids() -> set[str]:
    return set(
        subprocess.check_output(["squeue", "-h", "-t", "all", "-o", "%A"], text=True).split()
    )
