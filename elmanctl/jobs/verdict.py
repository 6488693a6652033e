"""From observations to a verdict: a pure function, and the rules it reads logs by.

The worker's own result decides when there is one; then the scheduler's named states, the exit
code, and the log.  What is not understood is `undetermined`, never `diverged`: only the worker,
which sees every step's loss and gradient, can say that a run diverged.
"""

import signal
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from elmanctl.jobs.classify import classify_log, find_error, quote, read_lines
from elmanctl.jobs.executor import JobReport, JobState
from elmanctl.ledger.records import Evidence, EvidenceSource, Verdict, VerdictKind

__all__ = ["Log", "Observation", "classify_log", "judge"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Log:
    """The end of a job's output: `lines` are numbered from `first_line`."""

    file: str
    lines: Sequence[str] = ()
    first_line: int = 1


@dataclass(frozen=True, slots=True, kw_only=True)
class Observation:
    """Everything known of an attempt that is no longer running."""

    result: Mapping[str, object] | None = None
    result_file: str | None = None
    report: JobReport | None = None
    log: Log | None = None
    heartbeat: Mapping[str, object] | None = None
    cancel_requested: bool = False
    elapsed_s: float | None = None
    limit_s: float | None = None


# Slurm's own signal number for a step that went over its memory.
_SIGNAL_OOM = 125

_STATES = {
    "BOOT_FAIL": VerdictKind.NODE_FAILURE,
    "CANCELLED": VerdictKind.CANCELLED,
    "DEADLINE": VerdictKind.TIMEOUT,
    "NODE_FAIL": VerdictKind.NODE_FAILURE,
    "OUT_OF_MEMORY": VerdictKind.OOM,
    "PREEMPTED": VerdictKind.PREEMPTED,
    "REVOKED": VerdictKind.CANCELLED,
    "TIMEOUT": VerdictKind.TIMEOUT,
}

# A signal that a log tells of is the scheduler's to name.
_NOT_BY_LOG = (VerdictKind.KILLED, VerdictKind.CANCELLED)


def judge(seen: Observation) -> Verdict:
    """Return what happened to an attempt, with the evidence quoted."""
    if seen.result is not None:
        return _from_result(seen.result, seen.result_file)
    context = _context(seen)
    if seen.cancel_requested:
        asked = Evidence(source=EvidenceSource.CONTROLLER, text="cancelled on request")
        return Verdict(kind=VerdictKind.CANCELLED, evidence=(asked, *context))
    report = seen.report
    if report is None or report.state is not JobState.ENDED:
        found = _from_log(seen.log)
        kind = VerdictKind.LOST if found is None else found[0]
        quotes = () if found is None else (found[1],)
        return Verdict(kind=kind, evidence=(*quotes, *context))
    # Slurm adds to some states, as in "CANCELLED by 1000".
    state = report.raw.strip().partition(" ")[0].rstrip("+")
    if state in _STATES:
        return Verdict(kind=_STATES[state], evidence=context)
    return _from_exit(seen, report, context)


def _from_result(result: Mapping[str, object], file: str | None) -> Verdict:
    verdict = result.get("verdict")
    if not isinstance(verdict, Mapping) or str(verdict.get("kind")) not in set(VerdictKind):
        unread = _quote({"text": "the worker's result holds no verdict"}, file)
        return Verdict(kind=VerdictKind.UNDETERMINED, evidence=(unread,))
    kind = VerdictKind(str(verdict["kind"]))
    if kind is VerdictKind.COMPLETED and not _is_loss(result.get("loss")):
        unread = _quote({"text": "the worker says completed and gives no finite loss"}, file)
        return Verdict(kind=VerdictKind.UNDETERMINED, evidence=(unread,))
    told = verdict.get("evidence")
    listed = told if isinstance(told, list) else []
    quotes = [quote for quote in listed if isinstance(quote, Mapping) and "text" in quote]
    said = quotes or [{"text": f"the worker says {kind}"}]
    return Verdict(kind=kind, evidence=tuple(_quote(quote, file) for quote in said))


def _is_loss(value: object) -> bool:
    if isinstance(value, bool) or not isinstance(value, int | float):
        return False
    # False for NaN too.
    return abs(value) <= sys.float_info.max


def _quote(quote: Mapping[str, object], file: str | None) -> Evidence:
    """Return what the worker observed; the place it names is nearer than its result file."""
    named, line = quote.get("file"), quote.get("line")
    return Evidence(
        source=EvidenceSource.RESULT,
        text=str(quote.get("text")),
        file=named if isinstance(named, str) else file,
        line=line if isinstance(line, int) else None,
    )


def _from_exit(seen: Observation, report: JobReport, context: tuple[Evidence, ...]) -> Verdict:
    found = _from_log(seen.log)
    quotes = () if found is None else (found[1],)
    if report.signal is not None:
        over = seen.elapsed_s and seen.limit_s and seen.elapsed_s >= seen.limit_s
        if over:
            kind = VerdictKind.TIMEOUT
        elif report.signal == _SIGNAL_OOM:
            kind = VerdictKind.OOM
        elif found is not None and found[0] in (VerdictKind.OOM, VerdictKind.CUDA_ERROR):
            kind = found[0]
        else:
            kind = VerdictKind.KILLED
        by_weight = sorted(context, key=lambda quote: quote.source is not EvidenceSource.EXIT)
        return Verdict(kind=kind, evidence=(*by_weight, *quotes))
    if report.exit_code and found is not None:
        return Verdict(kind=found[0], evidence=(*quotes, *context))
    missing = Evidence(source=EvidenceSource.CONTROLLER, text="ended without a result")
    return Verdict(kind=VerdictKind.UNDETERMINED, evidence=(missing, *quotes, *context))


def _context(seen: Observation) -> tuple[Evidence, ...]:
    quotes = []
    report = seen.report
    if report is not None and report.state is JobState.VANISHED:
        text = "the scheduler no longer knows the job"
        quotes.append(Evidence(source=EvidenceSource.SCHEDULER, text=text))
    elif report is not None and report.raw:
        text = f"state {report.raw}" + (f", reason {report.reason}" if report.reason else "")
        if report.node:
            text += f", on {report.node}"
        quotes.append(Evidence(source=EvidenceSource.SCHEDULER, text=text))
    if report is not None and report.signal is not None:
        text = f"ended by signal {report.signal} ({_signal_name(report.signal)})"
        quotes.append(Evidence(source=EvidenceSource.EXIT, text=text))
    elif report is not None and report.exit_code is not None:
        text = f"exit code {report.exit_code}"
        quotes.append(Evidence(source=EvidenceSource.EXIT, text=text))
    if seen.heartbeat is not None:
        beat = seen.heartbeat
        text = f"last heartbeat {beat.get('at')}: {beat.get('phase')}, step {beat.get('step')}"
        quotes.append(Evidence(source=EvidenceSource.HEARTBEAT, text=text))
    else:
        text = "the worker never wrote a heartbeat"
        quotes.append(Evidence(source=EvidenceSource.HEARTBEAT, text=text))
    return tuple(quotes)


def _from_log(log: Log | None) -> tuple[VerdictKind, Evidence] | None:
    if log is None:
        return None
    error = find_error(read_lines(enumerate(log.lines, start=log.first_line)))
    if error is None or error.rule.kind in _NOT_BY_LOG:
        return None
    return error.rule.kind, quote(error.piece, log.file)


def _signal_name(number: int) -> str:
    if number == _SIGNAL_OOM:
        return "out of memory"
    try:
        return signal.Signals(number).name
    except ValueError:
        return "unknown"
