"""Parts of observations of an attempt."""

from elmanctl.schedulers.executor import JobReport, JobState
from elmanctl.verdicts.log_tail import LogTail

BEAT = {"at": "2026-08-01T10:05:00.000Z", "phase": "training", "step": 120}


def ended(raw: str, code: int | None = None, number: int | None = None) -> JobReport:
    return JobReport(state=JobState.ENDED, raw=raw, exit_code=code, signal=number, node="n1")


def log(*lines: str) -> LogTail:
    return LogTail(file="submissions/s0001/7_0_0_log.out", lines=lines, first_line=101)


VANISHED = JobReport(state=JobState.VANISHED)
