"""A Slurm executor whose commands are small programs, and its submission."""

from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path

from elmanctl.ledger.submissions import Resources, Submission, Task
from elmanctl.run.paths import RunPaths
from elmanctl.schedulers.executor import JobReport, LiveJob
from elmanctl.schedulers.slurm_executor import SlurmExecutor
from tests.schedulers.slurm_tools import SlurmTools

NAME = "elman-run-1a2b3c4d-s0001"
SUBMISSION = Submission(
    id="s0001",
    job_name=NAME,
    tasks=tuple(Task(index=i, evaluation=f"g000-e0{i}", attempt=1) for i in range(2)),
    resources=Resources(timeout_min=5, partition="gpu"),
    intended_at="2026-08-01T10:00:00.000Z",
)
ONE = replace(SUBMISSION, tasks=SUBMISSION.tasks[:1])
JOBS = [LiveJob(job_id=f"7_{i}", submission="s0001", task_index=i, job_name=NAME) for i in range(3)]
# A job in squeue.
ROW = "{id}_0|RUNNING|None|n1|{id}|0|0|{name}\n"
NO_ACCOUNTING = "Slurm accounting storage is disabled\n"


class Setup:
    """An executor of a run, its submission's folder, and the programs that it calls."""

    def __init__(self, root: Path, tools: SlurmTools) -> None:
        self.paths = RunPaths(root / "run")
        self.folder = self.paths.submission("s0001")
        self.executor = SlurmExecutor(self.paths, max_jobs=3)
        self.tools = tools

    def submit(self) -> str:
        return self.executor.submit(SUBMISSION, self.folder)

    def find(self) -> str | None:
        self.folder.mkdir(parents=True, exist_ok=True)
        return self.executor.poll([], [SUBMISSION]).found["s0001"]

    def reports(self, jobs: Sequence[LiveJob] = JOBS) -> Mapping[str, JobReport]:
        return self.executor.poll(jobs, []).reports
