"""Jobs ended behind the controller's back on a real cluster, and what no node left means there."""

import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from elmanctl.errors import SubmissionError
from elmanctl.ledger.submissions import Resources
from elmanctl.schedulers.executor import JobReport, JobState
from elmanctl.search.nodes import says_no_node
from elmanctl.search.starved_jobs import NO_NODE
from tests.integration.cluster import Job
from tests.integration.runs import wait_for

pytestmark = [pytest.mark.slurm, pytest.mark.timeout(200)]

ROOT = Path(__file__).parents[2]

# A sample: `python benchmarks/verdicts_on_cluster.py` has all.
CASES = "killed,cpu time,cancelled by hand,disk full,requeue refused,preempted,node killed"


def test_job_that_is_ended_from_outside_gets_the_verdict_of_what_ended_it(
    environment: dict[str, str],
) -> None:
    done = subprocess.run(
        [sys.executable, str(ROOT / "benchmarks" / "verdicts_on_cluster.py"), "--only", CASES],
        env=environment,
        capture_output=True,
        text=True,
        check=False,
        stdin=subprocess.DEVNULL,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert "7 of 7 as expected" in done.stdout


@pytest.fixture
def nodes() -> Iterator[list[str]]:
    """The nodes, of which the first two are drained."""
    names = slurm("sinfo", "-hN", "-p", "gpu", "-o", "%N").split()
    drained = f"NodeName={names[0]},{names[1]}"
    slurm("scontrol", "update", drained, "State=DRAIN", "Reason=test")
    yield names
    slurm("scontrol", "update", drained, "State=RESUME")


def slurm(*command: str) -> str:
    return subprocess.run(command, check=True, capture_output=True, text=True).stdout


def test_job_that_excludes_every_node_that_is_up_waits_until_it_is_eased(
    tmp_path: Path, corpus: Path, nodes: list[str]
) -> None:
    with pytest.raises(SubmissionError) as told:
        Job(tmp_path / "refused", corpus, extra={"exclude": ",".join(nodes)})
    assert says_no_node(told.value.message)
    job = Job(tmp_path / "run", corpus, extra={"exclude": ",".join(nodes[2:])})

    def waits() -> JobReport | None:
        report = job.report()
        return report if NO_NODE.search(report.reason or "") else None

    report = wait_for(waits, "Slurm to say why the job waits")
    assert report.state is JobState.PENDING
    eased = Resources(timeout_min=5, extra={"exclude": nodes[0]}, exclude=(nodes[2],))
    job.executor.avoid([job.live], eased)
    assert job.verdict().kind == "completed"
    assert job.report().node in nodes[3:]
