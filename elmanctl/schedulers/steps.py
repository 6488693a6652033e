"""Steps: attempts that srun runs in an allocation of the user, each under a supervisor.

The end of a step is the exit code of its srun, and where the allocation has ended it took along
what was still at work.  A controller elsewhere sees no processes: the files and the allocation's
own state decide then.
"""

import re
import time
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path

from elmanctl.ledger.submissions import Submission
from elmanctl.schedulers import supervisor
from elmanctl.schedulers.executor import ALLOCATION_ENDED, JobReport, JobState, LiveJob
from elmanctl.schedulers.lanes import CANCEL_FILE, STEP_FILE

# Left by the controller in the folder of a step that it ends because the allocation ends.
END_FILE = "end"

# Exit codes of srun when the allocation ends under it: its step did not answer, or got SIGKILL,
# SIGTERM, or before it was ready for it the announcement, SIGUSR2.
_TAKEN_ALONG = (0, 137, 140, 143)

# Also where it found the allocation gone before there was a step; its exit code is then 1.
_TOO_LATE = re.compile(
    rb"srun: error: (Unable to (create step|confirm allocation) for job \S+: "
    rb"(Job/step already completing|Invalid job id|Job step not running|Expired))"
)
_TAIL_BYTES = 4096

# SIGKILL comes after Slurm has declared the end, SIGTERM perhaps a while before.
_SIGKILLED = 137
_KILLED_S = 5.0

# An allocation that ends takes its steps along within this time (KillWait is 30 s by default).
_ENDING_S = 60.0


def job_id_of(submission: Submission) -> str:
    """Return the id of a step's attempt: the allocation's, and that of the submission."""
    assert submission.allocation is not None
    return f"{submission.allocation.job_id}.{submission.id}"


def found(submission: Submission, folder: Path) -> str | None:
    """Return the id of a submission's attempt if it was ever started, None if it was not."""
    return job_id_of(submission) if supervisor.was_started(folder) else None


def own_report(
    folder: Path, log: Path, *, is_alive: bool = False, is_over: bool = False
) -> JobReport | None:
    """Return the report on a step by its files and processes, None if its allocation decides.

    That it does where the step may have ended with it, and where its supervisor is gone.
    Slurm has just said that it `is_alive`, or that it `is_over`; neither where it was not asked.
    """
    code = supervisor.exit_code(folder)
    if code is not None:
        age_s = supervisor.age_of_exit_s(folder, time.time())
        is_cancelled = (folder / CANCEL_FILE).exists()
        if (node := _node(folder)) is not None and _names_death_of(node, log):
            return JobReport(state=JobState.ENDED, raw="NODE_FAIL", node=node)
        if not is_cancelled and _may_be_taken_along(code, log):
            if (folder / END_FILE).exists():
                return JobReport(state=JobState.ENDED, raw=ALLOCATION_ENDED, node=_node(folder))
            if is_over or age_s < (_KILLED_S if is_alive and code == _SIGKILLED else _ENDING_S):
                return None
        return _ended(code, folder)
    if supervisor.group(folder) is None and not supervisor.is_starting(folder):
        return None
    return _alive(folder)


def step_report(report: JobReport, folder: Path, log: Path) -> JobReport:
    """Return the report on a step, given that on its allocation."""
    is_over = report.state in (JobState.ENDED, JobState.VANISHED)
    own = own_report(folder, log, is_alive=not is_over, is_over=is_over)
    if own is not None and own.state is JobState.ENDED:
        return own
    if report.state is JobState.ENDED:
        node = _node(folder)
        return JobReport(state=JobState.ENDED, raw=ALLOCATION_ENDED, reason=report.raw, node=node)
    if report.state is JobState.VANISHED:
        return report
    if own is None and supervisor.exit_code(folder) is None and not supervisor.is_elsewhere(folder):
        # Neither an exit code nor a supervisor: it was killed, and srun perhaps with it.
        return JobReport(state=JobState.VANISHED)
    return own or _alive(folder)


def to_cancel(jobs: Sequence[LiveJob], folders: Sequence[Path]) -> list[str]:
    """Return the steps that scancel ends, and mark all, so that one yet to come does not begin."""
    for folder in folders:
        folder.mkdir(exist_ok=True)
        (folder / CANCEL_FILE).touch()
    return numbers(jobs, folders)


def numbers(jobs: Sequence[LiveJob], folders: Sequence[Path]) -> list[str]:
    """Return the steps that have begun, as Slurm's commands name them: `4711.3`."""
    named = []
    for job, folder in zip(jobs, folders, strict=True):
        assert job.allocation is not None
        if (words := _step(folder)) and supervisor.exit_code(folder) is None:
            named.append(f"{job.allocation.job_id}.{words[0]}")
    return named


def _alive(folder: Path) -> JobReport:
    if not (folder / STEP_FILE).exists():
        return JobReport(state=JobState.PENDING, raw="starting")
    return JobReport(state=JobState.RUNNING, raw="running", node=_node(folder))


def _ended(code: int, folder: Path) -> JobReport:
    return JobReport(
        state=JobState.ENDED,
        raw="COMPLETED" if code == 0 else "FAILED",
        exit_code=code,
        signal=code - 128 if code > 128 else None,
        node=_node(folder),
    )


def _may_be_taken_along(code: int, log: Path) -> bool:
    if code in _TAKEN_ALONG:
        return True
    return code == 1 and _TOO_LATE.search(_tail(log)) is not None


def _names_death_of(node: str, log: Path) -> bool:
    """Whether srun says that the node of its step died; its exit code may be 0 then."""
    return f"srun: error: Node failure on {node}\n".encode() in _tail(log)


def _tail(log: Path) -> bytes:
    try:
        with log.open("rb") as file:
            file.seek(max(0, log.stat().st_size - _TAIL_BYTES))
            return file.read()
    except FileNotFoundError:
        return b""


def _step(folder: Path) -> list[str]:
    with suppress(FileNotFoundError):
        return (folder / STEP_FILE).read_text(encoding="utf-8").split()
    return []


def _node(folder: Path) -> str | None:
    words = _step(folder)
    return words[1] if len(words) > 1 else None
