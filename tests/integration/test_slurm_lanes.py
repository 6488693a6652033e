"""Several attempts in one job, on a real Slurm cluster (scripts/slurmbox up)."""

import signal
import subprocess
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest

from elmanctl.ledger.records import Evaluation, RunStatus, State
from elmanctl.ledger.run_state import RunState
from elmanctl.run.paths import RunPaths
from elmanctl.schedulers.lanes import lane_folder, slurm_job
from tests.command_line import CommandLine
from tests.integration.runs import (
    assert_same_search,
    kill_worker,
    load,
    search_arguments,
    slurmbox,
    trained_attempts,
    wait_for,
    with_standins,
)
from tests.patience import PATIENCE_S

pytestmark = [pytest.mark.slurm, pytest.mark.timeout(280)]

SETTINGS = """\
[slurm]
partition = "gpu"
poll_s = 1.0
per_job = 2
"""


@pytest.fixture
def cluster_user(elmanctl: CommandLine) -> CommandLine:
    """The command line in a folder with settings for the cluster."""
    (elmanctl.folder / "elman.toml").write_text(SETTINGS, encoding="utf-8")
    return elmanctl


def run_of(user: CommandLine) -> RunPaths:
    return RunPaths(user.folder / "runs" / "run")


def jobs_of(state: RunState) -> dict[str, list[Evaluation]]:
    """Return the evaluations whose newest attempts share a job, by the job."""
    found: dict[str, list[Evaluation]] = {}
    for evaluation in state.evaluations.values():
        last = evaluation.last_attempt
        if last is not None and last.job_id is not None:
            found.setdefault(slurm_job(last.job_id), []).append(evaluation)
    return found


def are_at_work(run: RunPaths, count: int) -> Callable[[], bool]:
    """Whether so many attempts have begun, by their heartbeats."""
    return lambda: len(list(run.evaluations.glob("*/attempt-1/heartbeat.json"))) >= count


def test_search_gives_the_points_and_losses_of_single_jobs(
    cluster_user: CommandLine, corpus: Path, undisturbed: RunState
) -> None:
    done = cluster_user(*search_arguments(corpus))
    assert done.returncode == 0, done.stderr
    state = assert_same_search(run_of(cluster_user).folder, undisturbed)
    # Two of a generation's four share a job, on one node.
    assert [len(members) for members in jobs_of(state).values()] == [2, 2, 2, 2]
    for members in jobs_of(state).values():
        attempts = [evaluation.attempts[-1] for evaluation in members]
        assert len({attempt.node for attempt in attempts}) == 1
        assert [str(attempt.job_id).partition(".")[2] for attempt in attempts] == ["lane0", "lane1"]
        for attempt in attempts:
            assert attempt.size_bytes is not None and attempt.size_bytes > 0
    # Everything on disk is known, and goes with the rest.
    name = next(iter(state.evaluations))
    assert "step" in cluster_user("logs", name).stdout
    assert cluster_user("disk", "--json").returncode == 0
    cleaned = cluster_user("clean", "--keep-best", "0", "--keep-last", "0", "--yes")
    assert cleaned.returncode == 0, cleaned.stderr
    left = [path.name for path in run_of(cluster_user).submissions.glob("s*/task-*/*.pkl")]
    assert left == []


def test_attempt_that_dies_leaves_its_neighbour_alone(
    cluster_user: CommandLine, corpus: Path
) -> None:
    user, run = with_standins(cluster_user, 6.0), run_of(cluster_user)
    search = user.start((*search_arguments(corpus), "--generations", "1"))
    wait_for(are_at_work(run, 4), "four attempts at work")
    state = load(run.folder)
    members = next(iter(jobs_of(state).values()))
    dying, other = members
    attempt = dying.attempts[-1]
    step = lane_folder(run.submission(attempt.submission), attempt.task_index) / "step"
    job = f"{slurm_job(str(attempt.job_id))}.{step.read_text(encoding='utf-8').strip()}"
    subprocess.run(["scancel", "--signal=KILL", job], check=True)
    told, _ = search.communicate(timeout=PATIENCE_S)
    assert search.returncode == 0, told
    state = load(run.folder)
    assert state.status is RunStatus.FINISHED
    first, again = state.evaluations[dying.id].attempts
    assert first.verdict is not None and first.verdict.kind.value == "killed", first.verdict
    assert again.state is State.COMPLETED
    assert len(state.evaluations[other.id].attempts) == 1
    assert len(trained_attempts(run.folder)) == 4


@pytest.mark.parametrize("cause", ["killed", "oom"])
def test_attempt_that_fails_by_itself_leaves_its_neighbour_alone(
    cluster_user: CommandLine, corpus: Path, cause: str
) -> None:
    user, run = with_standins(cluster_user, 6.0), run_of(cluster_user)
    if cause == "oom":
        user = replace(user, environment={**user.environment, "STANDIN_HOG": "g000-e01/1"})
    search = user.start((*search_arguments(corpus), "--generations", "1"))
    wait_for(are_at_work(run, 4), "four attempts at work")
    if cause == "killed":
        kill_worker(run, "g000-e01", signal.SIGSEGV)
    told, _ = search.communicate(timeout=PATIENCE_S)
    assert search.returncode == 0, told
    state = load(run.folder)
    first, again = state.evaluations["g000-e01"].attempts
    assert first.verdict is not None and first.verdict.kind.value == cause, first.verdict
    assert again.state is State.COMPLETED
    neighbours = [e for e in state.evaluations.values() if e.id != "g000-e01"]
    assert {len(evaluation.attempts) for evaluation in neighbours} == {1}
    if cause == "oom":
        asked = [state.submissions[a.submission].resources.mem_gb for a in (first, again)]
        assert asked == [1.0, 1.5]


def test_evaluation_is_cancelled_without_its_neighbour(
    cluster_user: CommandLine, corpus: Path
) -> None:
    user, run = with_standins(cluster_user, 8.0), run_of(cluster_user)
    search = user.start((*search_arguments(corpus), "--generations", "1"))
    wait_for(are_at_work(run, 4), "four attempts at work")
    first, other = next(iter(jobs_of(load(run.folder)).values()))
    done = user("cancel", first.id)
    assert done.returncode == 0, done.stderr
    search.communicate(timeout=PATIENCE_S)
    state = load(run.folder)
    assert state.evaluations[first.id].state is State.CANCELLED
    assert state.evaluations[other.id].state is State.COMPLETED
    assert len(state.evaluations[other.id].attempts) == 1


def test_death_of_a_node_is_the_verdict_of_each_attempt_on_it(
    cluster_user: CommandLine, corpus: Path
) -> None:
    user, run = with_standins(cluster_user, 10.0), run_of(cluster_user)
    search = user.start((*search_arguments(corpus), "--generations", "1"))
    wait_for(are_at_work(run, 4), "four attempts at work")
    members = next(iter(jobs_of(load(run.folder)).values()))
    wait_for(lambda: load(run.folder).evaluations[members[0].id].attempts[0].node is not None, "it")
    node = str(load(run.folder).evaluations[members[0].id].attempts[0].node)
    slurmbox("kill-node", node)
    try:
        search.communicate(timeout=PATIENCE_S)
    finally:
        slurmbox("start-node", node)
    state = load(run.folder)
    for evaluation in members:
        attempts = state.evaluations[evaluation.id].attempts
        verdict = attempts[0].verdict
        assert verdict is not None and verdict.kind.value == "node_failure", verdict
        assert attempts[-1].state is State.COMPLETED and attempts[-1].node != node


def test_controller_killed_while_jobs_run_loses_and_repeats_nothing(
    cluster_user: CommandLine, corpus: Path, undisturbed: RunState
) -> None:
    run = run_of(cluster_user)
    search = cluster_user.start(search_arguments(corpus))
    wait_for(lambda: run.ledger.exists() and bool(load(run.folder).submissions), "a submission")
    search.send_signal(signal.SIGKILL)
    search.communicate()
    done = cluster_user("resume")
    assert done.returncode == 0, done.stderr
    state = assert_same_search(run.folder, undisturbed)
    assert {len(e.attempts) for e in state.evaluations.values()} == {1}


@pytest.mark.parametrize("kind", ["preempted", "timeout"])
def test_end_of_a_job_is_the_verdict_of_each_attempt_in_it(
    cluster_user: CommandLine, corpus: Path, kind: str
) -> None:
    user, run = with_standins(cluster_user, 4.0), run_of(cluster_user)
    arguments = (*search_arguments(corpus), "--generations", "1", "--set", "retry.timeout=1")
    search = user.start(arguments)
    wait_for(are_at_work(run, 4), "four attempts at work")
    job, members = next(iter(jobs_of(load(run.folder)).items()))
    for evaluation in members:
        # None ends before its job does, however long Slurm takes.
        kill_worker(run, evaluation.id, signal.SIGSTOP)
    if kind == "timeout":
        update = ["scontrol", "update", f"JobId={job}", "EndTime=now"]
        subprocess.run(update, check=True)
    else:
        wait_for(lambda: load(run.folder).evaluations[members[0].id].attempts[0].node, "its node")
        node = str(load(run.folder).evaluations[members[0].id].attempts[0].node)
        urgent = ["sbatch", "--partition=urgent", f"--nodelist={node}", "--exclusive", "--wait"]
        subprocess.run([*urgent, "--output=/dev/null", "--wrap=true"], check=True)
    told, _ = search.communicate(timeout=PATIENCE_S)
    assert search.returncode == 0, told
    state = load(run.folder)
    for evaluation in members:
        first, again = state.evaluations[evaluation.id].attempts
        assert first.verdict is not None and first.verdict.kind.value == kind, first.verdict
        assert again.state is State.COMPLETED
    assert len(trained_attempts(run.folder)) == 4
