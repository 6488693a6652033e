"""What a real cluster refuses, loses and hides: limits, answers, arrays, partitions."""

import json
import os
import subprocess
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

import pytest

from elmanctl.ledger.records import VerdictKind
from elmanctl.ledger.run_state import RunState
from elmanctl.ledger.submissions import SubmissionState
from elmanctl.schedulers.sbatch_answer import Outcome
from elmanctl.schedulers.slurm import Slurm
from tests.command_line import CommandLine
from tests.integration.runs import (
    assert_same_search,
    load,
    search_arguments,
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


def slurm(*command: str) -> str:
    return subprocess.run(command, check=True, capture_output=True, text=True).stdout


@contextmanager
def configured(settings: Mapping[str, str]) -> Iterator[None]:
    """Run the cluster under other lines of slurm.conf; its controller starts anew with them."""
    path = Path(os.environ["SLURM_CONF"])
    before = path.read_text(encoding="utf-8")
    kept = [line for line in before.splitlines() if line.partition("=")[0] not in settings]
    lines = [*(f"{key}={value}" for key, value in settings.items()), *kept]
    try:
        path.write_text("\n".join(lines) + "\n", encoding="utf-8")
        restart()
        yield
    finally:
        path.write_text(before, encoding="utf-8")
        restart()


def restart() -> None:
    script = Path(__file__).parents[2] / "scripts" / "slurmbox"
    environment = {**os.environ, "SLURMBOX": str(Path(os.environ["SLURM_CONF"]).parents[1])}
    for word in ("stop", "start"):
        subprocess.run([script, word, "slurmctld"], env=environment, check=True)


def set_submit_limit(jobs: int) -> None:
    slurm("sacctmgr", "-i", "modify", "user", "root", "set", f"MaxSubmitJobs={jobs}")


@pytest.fixture
def limit() -> Iterator[int]:
    """A limit on the jobs of this user, all of them together."""
    with configured({"AccountingStorageEnforce": "limits,qos"}):
        set_submit_limit(3)
        yield 3
        set_submit_limit(-1)


def sizes(state: RunState, outcome: SubmissionState) -> list[int]:
    return [len(one.tasks) for one in state.submissions.values() if one.state is outcome]


def test_limit_on_submitted_jobs_is_told_and_waited_out_by_one_controller_after_the_other(
    cluster_user: CommandLine, corpus: Path, undisturbed_standins: RunState, limit: int
) -> None:
    user = with_standins(cluster_user)
    held = slurm("sbatch", "--parsable", "--hold", f"--array=1-{limit}", "--wrap", "true").strip()

    def refusal() -> dict[str, object] | None:
        done = user("status", "run", "--json")
        note = json.loads(done.stdout)["run"]["scheduler"] if done.returncode == 0 else None
        return note["refusal"] if note else None

    controller = user.start(search_arguments(corpus))
    try:
        told = wait_for(refusal, "status to tell of the refusal")
        assert "AssocMaxSubmitJobLimit" in str(told["words"])
        assert "search.max_jobs" in str(told["hint"])
        line = "takes no more jobs for now: AssocMaxSubmitJobLimit"
        assert line in user("status", "run").stderr
        controller.kill()
        controller.communicate()
        controller = user.start(("resume", "run"))
        wait_for(refusal, "the next controller to be refused as well")
    finally:
        slurm("scancel", held)
        output, _ = controller.communicate(timeout=PATIENCE_S)
    assert controller.returncode == 0, output
    state = assert_same_search(user.folder / "runs" / "run", undisturbed_standins)
    assert {len(e.attempts) for e in state.evaluations.values()} == {1}
    assert max(sizes(state, SubmissionState.ACCEPTED)) <= limit
    assert len(sizes(state, SubmissionState.REFUSED)) <= 30
    # Said once, with what to do.
    assert output.count("AssocMaxSubmitJobLimit") == 1
    assert "search.max_jobs" in output and "slurm.partition" not in output


def wrapped(cluster_user: CommandLine, name: str, program: str) -> CommandLine:
    """Return the command line of a user who has a program of that name in front of Slurm's."""
    folder = cluster_user.folder / "bin"
    folder.mkdir(exist_ok=True)
    real = subprocess.check_output(["which", name], text=True).strip()
    path = folder / name
    path.write_text(f"#!/bin/sh\nreal={real} here={folder}\n{program}\n", encoding="utf-8")
    path.chmod(0o755)
    environment = dict(cluster_user.environment)
    environment["PATH"] = f"{folder}:{environment['PATH']}"
    return replace(cluster_user, environment=environment)


# The second submission is taken and its answer lost; all are under a banner with a number.
LOSES = """\
echo x >> $here/calls
if [ $(wc -l < $here/calls) = 2 ]; then
  $real "$@" > /dev/null
  echo "sbatch: error: Batch job submission failed: Zero Bytes were transmitted or received" >&2
  exit 1
fi
echo "Cluster 2026 greets you"
exec $real "$@"
"""


def test_job_whose_answer_was_lost_or_under_a_banner_is_found_by_its_name(
    cluster_user: CommandLine, corpus: Path, undisturbed_standins: RunState
) -> None:
    user = with_standins(wrapped(cluster_user, "sbatch", LOSES))
    done = user(*search_arguments(corpus))
    assert done.returncode == 0, done.stderr
    state = assert_same_search(user.folder / "runs" / "run", undisturbed_standins)
    assert sizes(state, SubmissionState.ACCEPTED) == [4, 4]
    assert len(state.submissions) == 2
    assert done.stderr.count("Cluster 2026 greets you") == 1


@pytest.mark.parametrize("options", [("--mail-type=nonsense",), ("--nonsense",)])
def test_options_that_sbatch_itself_refuses_are_refused_for_good(options: tuple[str, ...]) -> None:
    answer = Slurm().ask("#!/bin/sh\n", *options)
    assert (answer.outcome, answer.key) == (Outcome.NEVER, "slurm.extra")


@pytest.fixture
def bare_cluster() -> Iterator[str]:
    """A cluster that takes no arrays, with a partition that sinfo does not list."""
    with configured({"MaxArraySize": "0"}):
        nodes = slurm("sinfo", "-h", "-p", "gpu", "-o", "%N").strip()
        slurm("scontrol", "create", "PartitionName=backroom", f"Nodes={nodes}", "Hidden=YES")
        yield "backroom"
        slurm("scontrol", "delete", "PartitionName=backroom")


def test_cluster_without_arrays_gets_one_job_an_attempt_in_a_hidden_partition_too(
    cluster_user: CommandLine, corpus: Path, undisturbed_standins: RunState, bare_cluster: str
) -> None:
    # An ordinary user's sinfo does not show it; some sites' wrappers not even with `-a`.
    user = wrapped(cluster_user, "sinfo", f'$real "$@" | grep -v {bare_cluster}')
    done = with_standins(user)(*search_arguments(corpus), "--partition", f"{bare_cluster},gpu")
    assert done.returncode == 0, done.stderr
    state = assert_same_search(user.folder / "runs" / "run", undisturbed_standins)
    assert sizes(state, SubmissionState.ACCEPTED) == [1] * 8
    attempts = [e.attempts for e in state.evaluations.values()]
    # The ids are those that squeue and scancel know.
    assert all(len(made) == 1 and str(made[0].job_id).isdigit() for made in attempts)
    assert user("logs", "run", "best").stdout
    long = [*search_arguments(corpus), "--name", "long", "--train-steps", "1000000"]
    controller = user.start(long)
    try:
        folder = user.folder / "runs" / "long"

        def running() -> set[str] | None:
            if not (folder / "ledger.jsonl").exists():
                return None
            live = [attempt for _, attempt in load(folder).live_attempts()]
            return {str(one.job_id) for one in live} if any(one.node for one in live) else None

        jobs = wait_for(running, "a job to run")
        done = user("cancel", "--run", "long", "--all", "--yes")
        assert done.returncode == 0, done.stderr
        controller.communicate(timeout=PATIENCE_S)
    finally:
        controller.kill()
        controller.communicate()
    assert not jobs & set(slurm("squeue", "-h", "-o", "%i").split())
    ended = [e.verdict_kind for e in load(folder).evaluations.values() if e.attempts]
    assert ended and set(ended) == {VerdictKind.CANCELLED}
