"""Searches inside one allocation, on a real Slurm cluster (scripts/slurmbox up)."""

import os
import shlex
import signal
import subprocess
import sys
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path

import pytest

from elmanctl.ledger.records import RunStatus, State
from elmanctl.ledger.run_state import RunState
from elmanctl.run.paths import RunPaths
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
cpus = 1
poll_s = 1.0
"""
NAME = "held-nodes"


@pytest.fixture
def cluster_user(elmanctl: CommandLine) -> CommandLine:
    """The command line in a folder with settings for the cluster."""
    (elmanctl.folder / "elman.toml").write_text(SETTINGS, encoding="utf-8")
    return elmanctl


@pytest.fixture(autouse=True)
def _allocations_given_back() -> Iterator[None]:
    yield
    subprocess.run(["scancel", "--quiet", f"--name={NAME}", "--me"], check=True)


def allocate(user: CommandLine, *options: str) -> tuple[CommandLine, str]:
    """Return a command line inside a new allocation of two nodes, as `salloc` gives it, and its id.

    It outlives the commands that are run in it.
    """
    asked = [
        *("salloc", "--no-shell", f"--job-name={NAME}", "--partition=gpu", "--nodes=2"),
        *("--ntasks-per-node=1", "--cpus-per-task=2", "--mem=3000", "--gres=gpu:2", "--time=20"),
    ]
    done = subprocess.run([*asked, *options], check=True, capture_output=True, text=True)
    job = done.stderr.split("Granted job allocation ")[1].split()[0]
    return replace(user, environment={**user.environment, "SLURM_JOB_ID": job}), job


def run_of(user: CommandLine) -> RunPaths:
    return RunPaths(user.folder / "runs" / "run")


def inside(corpus: Path, *more: str) -> Sequence[str]:
    return (*search_arguments(corpus), *more, "--inside")


def wait_until_at_work(run: RunPaths, count: int) -> None:
    """Return once so many attempts have begun, by their heartbeats."""
    beats = "*/attempt-1/heartbeat.json"
    wait_for(lambda: len(list(run.evaluations.glob(beats))) >= count, f"{count} attempts at work")


def test_script_gives_the_points_and_losses_of_jobs(
    cluster_user: CommandLine, corpus: Path, undisturbed: RunState
) -> None:
    words = [sys.executable, "-m", "elmanctl", *inside(corpus)]
    asked = [
        *("sbatch", "--partition=gpu", "--nodes=2", "--ntasks-per-node=1", "--mem=3000"),
        *("--cpus-per-task=2", "--gres=gpu:2", "--time=20", "--output=search.out"),
    ]
    subprocess.run(
        [*asked, f"--wrap={shlex.join(words)}; echo exit code $?"],
        cwd=cluster_user.folder,
        env=cluster_user.environment,
        check=True,
    )
    output = cluster_user.folder / "search.out"
    wait_for(lambda: output.exists() and "exit code" in output.read_text(encoding="utf-8"), "it")
    said = output.read_text(encoding="utf-8")
    assert said.endswith("exit code 0\n"), said
    assert "4 evaluations at a time on " in said
    state = assert_same_search(run_of(cluster_user).folder, undisturbed)
    attempts = [evaluation.attempts[-1] for evaluation in state.evaluations.values()]
    (job,) = {str(attempt.job_id).partition(".")[0] for attempt in attempts}
    assert len({attempt.node for attempt in attempts}) == 2
    assert state.controller is not None
    assert (state.controller["allocation"], state.controller["slots"]) == (job, 4)


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGSEGV])
def test_step_that_dies_leaves_its_neighbours_alone(
    cluster_user: CommandLine, corpus: Path, number: signal.Signals
) -> None:
    user, _ = allocate(with_standins(cluster_user, 8.0))
    run = run_of(user)
    search = user.start(inside(corpus, "--generations", "1"))
    wait_until_at_work(run, 4)
    dying = "g000-e01"
    kill_worker(run, dying, number)
    told, _ = search.communicate(timeout=PATIENCE_S)
    assert search.returncode == 0, told
    state = load(run.folder)
    first, again = state.evaluations[dying].attempts
    assert first.verdict is not None and first.verdict.kind.value == "killed", first.verdict
    assert number.name in first.verdict.evidence[0].text
    assert again.state is State.COMPLETED
    others = [e for e in state.evaluations.values() if e.id != dying]
    assert {len(evaluation.attempts) for evaluation in others} == {1}
    assert len(trained_attempts(run.folder)) == 4


def test_step_that_runs_out_of_memory_gets_more_and_leaves_its_neighbours_alone(
    cluster_user: CommandLine, corpus: Path
) -> None:
    user, _ = allocate(with_standins(cluster_user, 2.0))
    user = replace(user, environment={**user.environment, "STANDIN_HOG": "g000-e01/1"})
    done = user(*inside(corpus, "--generations", "1"))
    assert done.returncode == 0, done.stderr
    state = load(run_of(user).folder)
    first, again = state.evaluations["g000-e01"].attempts
    assert first.verdict is not None and first.verdict.kind.value == "oom", first.verdict
    assert again.state is State.COMPLETED
    asked = [state.submissions[attempt.submission].resources.mem_gb for attempt in (first, again)]
    assert asked == [1.0, 1.5]
    others = [e for e in state.evaluations.values() if e.id != "g000-e01"]
    assert {len(evaluation.attempts) for evaluation in others} == {1}


def test_evaluation_is_cancelled_without_its_neighbours(
    cluster_user: CommandLine, corpus: Path
) -> None:
    user, job = allocate(with_standins(cluster_user, 10.0))
    run = run_of(user)
    search = user.start(inside(corpus, "--generations", "1"))
    wait_until_at_work(run, 4)
    # From a shell outside.
    done = cluster_user("cancel", "g000-e01")
    assert done.returncode == 0, done.stderr
    told, _ = search.communicate(timeout=PATIENCE_S)
    assert search.returncode == 0, told
    states = {e.id: e.state for e in load(run.folder).evaluations.values()}
    assert states.pop("g000-e01") is State.CANCELLED
    assert set(states.values()) == {State.COMPLETED}
    # Its allocation is the user's.
    listed = subprocess.run(["squeue", "-h", "-j", job], capture_output=True, text=True, check=True)
    assert listed.stdout


def test_controller_killed_goes_on_in_the_same_allocation(
    cluster_user: CommandLine, corpus: Path, undisturbed_standins: RunState
) -> None:
    user, _ = allocate(with_standins(cluster_user, 3.0))
    run = run_of(user)
    search = user.start(inside(corpus))
    wait_until_at_work(run, 2)
    search.send_signal(signal.SIGKILL)
    search.communicate()
    done = user("resume", "--inside")
    assert done.returncode == 0, done.stderr
    state = assert_same_search(run.folder, undisturbed_standins)
    assert {len(e.attempts) for e in state.evaluations.values()} == {1}


def test_run_goes_on_in_the_next_allocation_and_then_by_jobs(
    cluster_user: CommandLine, corpus: Path, undisturbed_standins: RunState
) -> None:
    first, job = allocate(with_standins(cluster_user, 100.0))
    standins = with_standins(cluster_user, 3.0)
    run = run_of(first)
    search = first.start(inside(corpus))
    wait_until_at_work(run, 4)
    # Nobody is there when it ends.
    search.send_signal(signal.SIGKILL)
    search.communicate()
    subprocess.run(["scancel", job], check=True)
    second, _ = allocate(standins)
    resumed = second.start(("resume", "--inside"))
    wait_for(lambda: load(run.folder).generation == 1, "the second generation")
    resumed.send_signal(signal.SIGINT)
    told, _ = resumed.communicate(timeout=PATIENCE_S)
    assert resumed.returncode == 130, told
    done = standins("resume")
    assert done.returncode == 0, done.stderr
    state = assert_same_search(run.folder, undisturbed_standins)
    for name in ("g000-e00", "g000-e01", "g000-e02", "g000-e03"):
        cut, again = state.evaluations[name].attempts
        assert cut.verdict is not None and cut.verdict.kind.value == "preempted", cut.verdict
        assert again.state is State.COMPLETED


def test_search_ends_before_its_allocation_does(cluster_user: CommandLine, corpus: Path) -> None:
    user, job = allocate(with_standins(cluster_user, 100.0))
    run = run_of(user)
    search = user.start(inside(corpus))
    wait_until_at_work(run, 4)
    subprocess.run(["scontrol", "update", f"JobId={job}", "EndTime=now+40"], check=True)
    told, _ = search.communicate(timeout=PATIENCE_S)
    assert search.returncode == 6, told
    assert "the allocation ends in" in told and "resume run --inside" in told
    state = load(run.folder)
    assert state.status is RunStatus.PAUSED
    assert not state.live_attempts()
    verdicts = [e.attempts[0].verdict for e in state.evaluations.values()]
    assert {verdict.kind.value for verdict in verdicts if verdict} == {"preempted"}
    signals = [
        path.read_text(encoding="utf-8")
        for path in run.evaluations.glob("*/attempt-1/heartbeat.json")
    ]
    assert all(text.count("SIGUSR2") == 1 for text in signals)
    # The nodes are still held: it was not their end that ended the attempts.
    listed = subprocess.run(["squeue", "-h", "-j", job], capture_output=True, text=True, check=True)
    assert listed.stdout


@pytest.mark.parametrize(
    ("options", "more", "words"),
    [
        (("--time=4",), (), "the allocation ends in"),
        ((), ("--set", "slurm.gres=gpu:3"), "has room for an evaluation"),
        ((), ("--local",), "`--inside` trains on the nodes of an allocation"),
    ],
)
def test_allocation_that_does_not_do_is_refused(
    cluster_user: CommandLine,
    corpus: Path,
    options: Sequence[str],
    more: Sequence[str],
    words: str,
) -> None:
    user, _ = allocate(cluster_user, *options)
    done = user(*inside(corpus, *more))
    assert done.returncode != 0
    assert words in done.stderr and "hint: " in done.stderr
    assert not run_of(user).folder.exists()


def test_shell_outside_of_an_allocation_is_refused(cluster_user: CommandLine, corpus: Path) -> None:
    assert "SLURM_JOB_ID" not in os.environ
    done = cluster_user(*inside(corpus))
    assert done.returncode != 0
    assert "this shell is in none" in done.stderr and "salloc" in done.stderr
    assert not run_of(cluster_user).folder.exists()


def test_death_of_a_node_ends_its_allocation_and_the_run_goes_on_in_another(
    cluster_user: CommandLine, corpus: Path
) -> None:
    user, job = allocate(with_standins(cluster_user, 15.0))
    run = run_of(user)
    search = user.start(inside(corpus, "--generations", "1"))
    wait_until_at_work(run, 4)
    nodes = ["squeue", "--noheader", f"--jobs={job}", "--format=%N"]
    held = subprocess.run(nodes, capture_output=True, text=True, check=True).stdout.strip()
    names = ["scontrol", "show", "hostnames", held]
    dead, alive = subprocess.run(names, capture_output=True, text=True, check=True).stdout.split()
    slurmbox("kill-node", dead)
    try:
        told, _ = search.communicate(timeout=PATIENCE_S)
        assert search.returncode == 6 and "the allocation has ended" in told, told
    finally:
        slurmbox("start-node", dead)
    verdicts = {
        str(attempt.node): attempt.verdict.kind.value
        for evaluation in load(run.folder).evaluations.values()
        for attempt in evaluation.attempts
        if attempt.verdict is not None
    }
    assert verdicts == {dead: "node_failure", alive: "preempted"}
    again, _ = allocate(with_standins(cluster_user, 1.0))
    done = again("resume", "--inside")
    assert done.returncode == 0, done.stderr
    assert len(trained_attempts(run.folder)) == 4
