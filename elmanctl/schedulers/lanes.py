"""Lanes: several attempts in one Slurm job, each a step with its own folder, log and exit code.

Slurm reports on the job as a whole.  The end of a lane is the exit code of its srun, which the
script of the job writes; the job's own end decides where it took the lanes along.
"""

import re
import time
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import replace
from pathlib import Path

from elmanctl.schedulers.executor import JobReport, JobState, LiveJob

EXIT_FILE = "exit"
STEP_FILE = "step"
CANCEL_FILE = "cancel"

# Of a lane, and of a step in an allocation (`steps`).
_PART = re.compile(r"(?P<job>.+)\.(?:lane|s)\d+")

# Slurm's default KillWait is 30 s: a job that ends takes its steps along within it.
_ENDING_S = 60.0

# Ends of a job that are none of its lanes' doing; others, of a lane, are in its exit code.
_OWN_ENDS = ("COMPLETED", "FAILED", "OUT_OF_MEMORY")


def slurm_job(job_id: str) -> str:
    """Return the id of the job in Slurm, given that of an attempt."""
    found = _PART.fullmatch(job_id)
    return found["job"] if found else job_id


def lane_folder(folder: Path, task: int) -> Path:
    """Return the folder of a lane, in that of its submission."""
    return folder / f"task-{task}"


def lane_report(report: JobReport, folder: Path) -> JobReport:
    """Return the report on a lane, given that on its job."""
    try:
        path = folder / EXIT_FILE
        code, age_s = int(path.read_text(encoding="utf-8")), time.time() - path.stat().st_mtime
    except (FileNotFoundError, ValueError):
        return report
    is_signal = code >= 128
    is_job_alive = report.state in (JobState.PENDING, JobState.RUNNING)
    if is_signal and not (folder / CANCEL_FILE).exists():
        # Perhaps the job is just ending, and why is known with that.
        if is_job_alive and age_s < _ENDING_S:
            return report
        if report.state is JobState.ENDED and report.raw not in _OWN_ENDS:
            return report
    raw = "COMPLETED" if code == 0 else "FAILED"
    if is_signal and report.raw == "OUT_OF_MEMORY":
        raw = report.raw
    return replace(
        report,
        state=JobState.ENDED,
        raw=raw,
        exit_code=code,
        signal=code - 128 if is_signal else None,
        is_unlisted=False,
    )


def to_cancel(jobs: Sequence[LiveJob], folders: Sequence[Path]) -> list[str]:
    """Return what scancel ends: jobs whose lanes all go, and else the steps of those that do.

    A lane without a step yet is marked, so that its job starts none.  `folders` are those of the
    submissions, one for each job.
    """
    going: dict[str, list[tuple[LiveJob, Path]]] = {}
    for job, folder in zip(jobs, folders, strict=True):
        going.setdefault(slurm_job(job.job_id), []).append((job, folder))
    ids = []
    for name, members in going.items():
        job, folder = members[0]
        chosen = {lane_folder(folder, each.task_index) for each, _ in members}
        lanes = {lane_folder(folder, task) for task in job.lanes}
        alive = {lane for lane in lanes if not (lane / EXIT_FILE).exists()}
        if chosen >= alive:
            ids.append(name)
            continue
        for lane in sorted(chosen):
            lane.mkdir(exist_ok=True)
            (lane / CANCEL_FILE).touch()
            with suppress(FileNotFoundError):
                ids.append(f"{name}.{(lane / STEP_FILE).read_text(encoding='utf-8').strip()}")
    return ids
