"""End of a job as its scheduler reports it: the kind that it names, and the signal; pure."""

import re
import signal

from elmanctl.ledger.records import VerdictKind
from elmanctl.schedulers.executor import ALLOCATION_ENDED, JobReport

_K = VerdictKind

# Slurm's own signal number for a step that exceeded its memory limit.
SIGNAL_OOM = 125

# And for a job whose output file its node could not open.
SIGNAL_NO_OUTPUT = 53

# Numbers beyond these are Slurm's own codes for what went wrong when it started a job.
_STANDARD_SIGNALS = range(1, 32)

_BY_STATE = {
    # The allocation in which it was a step.
    ALLOCATION_ENDED: _K.PREEMPTED,
    "BOOT_FAIL": _K.NODE_FAILURE,
    "CANCELLED": _K.CANCELLED,
    "DEADLINE": _K.TIMEOUT,
    "LAUNCH_FAILED": _K.NODE_FAILURE,
    "NODE_FAIL": _K.NODE_FAILURE,
    "OUT_OF_MEMORY": _K.OOM,
    "PREEMPTED": _K.PREEMPTED,
    # Another cluster of the federation has it, if any.
    "REVOKED": _K.LOST,
    "TIMEOUT": _K.TIMEOUT,
}

# Reasons that Slurm gives for an end whose state says less.
_BY_REASON = {
    **dict.fromkeys(("BadConstraints", "InvalidAccount", "InvalidQOS"), _K.ENVIRONMENT),
    **dict.fromkeys(("BootFail", "JobLaunchFailure", "NodeDown", "SystemFailure"), _K.NODE_FAILURE),
    **dict.fromkeys(("DeadLine", "TimeLimit"), _K.TIMEOUT),
    "OutOfMemory": _K.OOM,
    "Preempted": _K.PREEMPTED,
}

_RAISED = re.compile(r"^RaisedSignal:(\d+)")


def named_kind(report: JobReport) -> VerdictKind | None:
    """Return the kind that the scheduler itself names, None where it names no cause."""
    # Slurm adds to some states, as in "CANCELLED by 1000".
    state = report.raw.strip().partition(" ")[0].rstrip("+")
    reason = (report.reason or "").partition(":")[0]
    by_reason = _BY_REASON.get(reason)
    if reason == "JobLaunchFailure" and signal_of(report) in _STANDARD_SIGNALS:
        # Slurm 22.05 says so of every script that a signal ended.
        by_reason = None
    by_state = _BY_STATE.get(state)
    if by_state is not None and by_state is not _K.CANCELLED:
        return by_state
    if state in ("FAILED", "CANCELLED") and by_reason is not None:
        return by_reason
    return by_state


def names_memory(report: JobReport | None) -> bool:
    """Whether the scheduler says that a job exceeded its memory limit."""
    return report is not None and (named_kind(report) is _K.OOM or signal_of(report) == SIGNAL_OOM)


def signal_of(report: JobReport) -> int | None:
    """Return the signal that ended a job, also where only an exit code or a reason shows it."""
    if report.signal is not None:
        return report.signal
    raised = _RAISED.match(report.reason or "")
    if raised and int(raised[1]) > 0:
        return int(raised[1])
    code = report.exit_code
    known = {int(number) for number in signal.Signals}
    return code - 128 if code is not None and code - 128 in known else None


def signal_name(number: int) -> str:
    """Return the name of a signal, with its meaning where the name alone says little."""
    if number == SIGNAL_OOM:
        return "out of memory"
    if number == signal.SIGXCPU:
        return "SIGXCPU, the limit on CPU time"
    try:
        return signal.Signals(number).name
    except ValueError:
        return "unknown"
