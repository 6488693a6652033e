"""What a real Slurm cluster does behind a controller's back: restarts, duplicates, limits."""

import json
import re
import subprocess
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import pytest

from elmanctl.clock import now, to_text
from elmanctl.ledger.submissions import Resources, Submission, Task
from elmanctl.run.paths import AttemptPaths, RunPaths
from elmanctl.run.progress import read_table
from elmanctl.schedulers.executor import JobState, SubmissionTooLarge
from elmanctl.schedulers.slurm import Slurm
from elmanctl.schedulers.slurm_executor import SlurmExecutor
from tests.integration.cluster import Job
from tests.integration.runs import wait_for

pytestmark = [pytest.mark.slurm, pytest.mark.timeout(200)]

# By time, not by steps: long enough to be disturbed, however busy the machine.
NINE_SECONDS_MIN = 0.15


class CountingSlurm(Slurm):
    """Slurm's commands, written down."""

    def __init__(self) -> None:
        super().__init__()
        self.asked: list[str] = []

    def run(self, command: Sequence[str]) -> str:
        self.asked.append(command[0])
        return super().run(command)


def attempt_of(job: Job) -> AttemptPaths:
    return job.paths.attempt("g000-e00", 1)


def slurm(*command: str) -> str:
    return subprocess.run(command, check=True, capture_output=True, text=True).stdout


def has_trained(job: Job) -> bool:
    return bool((read_table(attempt_of(job).heartbeat) or {}).get("step"))


@pytest.mark.parametrize("by", ["scontrol requeue", "preemption"])
def test_job_that_slurm_restarts_takes_its_claim_over_and_completes_once(
    tmp_path: Path, corpus: Path, by: str
) -> None:
    job = Job(tmp_path / "run", corpus, spec={"minutes": NINE_SECONDS_MIN})
    job.paths.finished.mkdir()
    name = job.live.job_id
    slurm("scontrol", "update", f"jobid={name}", "requeue=1")
    wait_for(lambda: has_trained(job), "the first start to train")
    node = job.report().node
    assert node is not None
    if by == "scontrol requeue":
        slurm("scontrol", "requeue", name)
    else:
        urgent = ("sbatch", "-p", "urgent", "-w", node, "--exclusive", "--mem=100")
        slurm(*urgent, "-o", "/dev/null", "--wrap", "sleep 1")
    # Put back, it is alive, whatever Slurm calls it.
    wait_for(lambda: job.report().state is JobState.PENDING, "the job to be put back")

    def has_restarted() -> bool:
        # Slurm waits two minutes before it starts a job again, unless it is told not to.
        now_please = ["scontrol", "update", f"jobid={name}", "StartTime=now"]
        subprocess.run(now_please, check=False, capture_output=True)
        return job.report().state is not JobState.PENDING

    wait_for(has_restarted, "the job to start again")
    wait_for(attempt_of(job).result.exists, "the result")
    result = json.loads(attempt_of(job).result.read_text(encoding="utf-8"))
    assert (result["verdict"]["kind"], result["restart"]) == ("completed", 1)
    assert result["job_id"] == name
    assert (read_table(attempt_of(job).claim) or {})["restart"] == 1
    # The curve of the second start is whole, and that of the first is kept.
    steps = len(attempt_of(job).metrics.read_text(encoding="utf-8").splitlines())
    assert steps == result["steps"]
    assert attempt_of(job).earlier_metrics(0).exists()
    # Written after the result, so that whoever sees it finds the result too.
    wait_for(lambda: any(job.paths.finished.iterdir()), "the finished marker")
    assert [marker.name for marker in job.paths.finished.iterdir()] == ["g000-e00-1"]


def test_array_that_was_submitted_twice_trains_once(tmp_path: Path, corpus: Path) -> None:
    job = Job(tmp_path / "run", corpus, spec={"steps": 100})
    script = job.paths.submission("s0001") / "submission.sh"
    twin = slurm("sbatch", "--parsable", str(script)).strip()
    jobs = [job.live, replace(job.live, job_id=f"{twin}_0")]

    def all_ended() -> bool:
        reports = job.executor.poll(jobs, []).reports
        return all(reports[one.job_id].state is JobState.ENDED for one in jobs)

    wait_for(all_ended, "both jobs to end")
    logs = [job.executor.log(one).read_text(encoding="utf-8") for one in jobs]
    assert sum("nothing to do" in text for text in logs) == 1
    result = json.loads(attempt_of(job).result.read_text(encoding="utf-8"))
    claim = read_table(attempt_of(job).claim) or {}
    assert result["verdict"]["kind"] == "completed"
    assert result["job_id"] == claim["job_id"]
    assert len(attempt_of(job).metrics.read_text(encoding="utf-8").splitlines()) == 100


def orphan(number: int, token: str) -> Submission:
    return Submission(
        id=f"s{number:04}",
        job_name=f"elman-orphans-{token}-s{number:04}",
        tasks=(Task(index=0, evaluation=f"g000-e{number:02}", attempt=1),),
        resources=Resources(timeout_min=5),
        intended_at=to_text(now()),
    )


def test_a_hundred_orphans_are_found_with_two_commands(tmp_path: Path) -> None:
    orphans = [orphan(number, tmp_path.name) for number in range(100)]
    ids = {}
    try:
        # The last ten were never accepted.
        for one in orphans[:90]:
            wrap = ("-H", "--mem=10", "-o", "/dev/null", "--array=0", "--wrap", "true")
            ids[one.id] = slurm("sbatch", "--parsable", "-J", one.job_name, *wrap).strip()
        counting = CountingSlurm()
        executor = SlurmExecutor(RunPaths(tmp_path), max_jobs=4, slurm=counting)
        polled = executor.poll([], orphans)
    finally:
        subprocess.run(["scancel", *ids.values()], check=False)
    assert {name: found for name, found in polled.found.items() if found} == ids
    assert len(polled.found) == 100
    assert counting.asked == ["squeue", "sacct"]


def test_array_above_the_clusters_limit_is_refused_and_the_limit_learned(tmp_path: Path) -> None:
    config = slurm("scontrol", "show", "config")
    limit = int(re.findall(r"MaxArraySize\s*=\s*(\d+)", config)[0])
    counting = CountingSlurm()
    executor = SlurmExecutor(RunPaths(tmp_path), max_jobs=4, slurm=counting)
    tasks = tuple(Task(index=i, evaluation=f"g000-e{i:02}", attempt=1) for i in range(limit + 1))
    big = replace(orphan(0, tmp_path.name), tasks=tasks)
    with pytest.raises(SubmissionTooLarge):
        executor.submit(big, tmp_path / "submission")
    executor.poll([], [])
    assert executor.tasks_per_submission == limit
    assert counting.asked == ["scontrol"]
