"""From observations to a verdict: a pure function.

The worker's own result decides when there is one; then the scheduler's named states, signals, exit
codes and the log.  What is not understood is `undetermined`, never `diverged`: only the worker,
which sees every step's loss and gradient, can say that a run diverged.
"""

import re
import signal
import sys
from collections.abc import Mapping
from dataclasses import dataclass, replace

from elmanctl.ledger.records import (
    Cause,
    Confidence,
    Evidence,
    EvidenceSource,
    Verdict,
    VerdictKind,
)
from elmanctl.schedulers.executor import JobReport, JobState
from elmanctl.verdicts.causes import ADVICE, find_cause, find_neighbour
from elmanctl.verdicts.logs.classify import QUOTE_LIMIT, classify_log
from elmanctl.verdicts.node_disk import names_node_disk
from elmanctl.verdicts.observation import (
    SIGNAL_NO_OUTPUT,
    SIGNAL_OOM,
    Log,
    LogWord,
    Observation,
    context,
    ended_by,
    heartbeat_quote,
    read_word,
    was_cpu_limit_reached,
    was_limit_reached,
    was_warned_early,
)

__all__ = ["Log", "Observation", "classify_log", "judge"]

_K = VerdictKind

_STATES = {
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

# What Slurm gives as the reason of an end whose state says less.
_REASONS = {
    "BadConstraints": _K.ENVIRONMENT,
    "BootFail": _K.NODE_FAILURE,
    "DeadLine": _K.TIMEOUT,
    "InvalidAccount": _K.ENVIRONMENT,
    "InvalidQOS": _K.ENVIRONMENT,
    "JobLaunchFailure": _K.NODE_FAILURE,
    "NodeDown": _K.NODE_FAILURE,
    "OutOfMemory": _K.OOM,
    "Preempted": _K.PREEMPTED,
    "SystemFailure": _K.NODE_FAILURE,
    "TimeLimit": _K.TIMEOUT,
}

# Less than any log needs that tells of an error.
_NO_ROOM_BYTES = 64 * 1024


# What a log may say of a process that a signal ended; any other error in it was survived.
_BEHIND_SIGNAL = (_K.OOM, _K.CUDA_ERROR, _K.DISK_FULL)

# What a process does to itself: C++ aborts, OpenBLAS interrupts where it gets no threads, and
# shared memory that is full is a bus error.  Then what the log says of the node is why.
_OWN_SIGNALS = (signal.SIGABRT, signal.SIGINT, signal.SIGBUS)

# Beyond them are numbers that Slurm makes of what went wrong in starting a job.
_STANDARD_SIGNALS = range(1, 32)

# Slurm itself, which runs as root, or an administrator.
_BY_ROOT = "CANCELLED by 0"

# Of what a worker tells: a traceback's words, and not a whole log.
_QUOTES_KEPT = 20
_TEXT_LIMIT = 4000

_MODULES = re.compile(r"^(?:\w+\.)+")


@dataclass(frozen=True, slots=True, kw_only=True)
class _Opinion:
    """A kind, how sure, and the observations that say so."""

    kind: VerdictKind
    confidence: Confidence
    lead: tuple[Evidence, ...] = ()


def judge(seen: Observation) -> Verdict:
    """Return what happened to an attempt, with the evidence quoted."""
    if seen.result is not None:
        return _from_result(seen, seen.result)
    word = _of_node(seen, read_word(seen.log))
    if seen.cancel_requested:
        opinion = _of_request(seen)
    elif seen.report is not None and seen.report.state is JobState.ENDED:
        opinion = _of_end(seen, seen.report, word)
    else:
        opinion = _of_silence(seen, word)
    return _verdict(seen, opinion, word)


def _of_node(seen: Observation, word: LogWord | None) -> LogWord | None:
    """Return a log's word; the run may lie itself among the temporary files that it blames."""
    if word is None or word.kind is not _K.ENVIRONMENT or seen.run_folder is None:
        return word
    text = word.quotes[0].text
    if names_node_disk(text) is None or names_node_disk(text, seen.run_folder) is not None:
        return word
    return replace(word, kind=_K.DISK_FULL, cause=None)


def _verdict(seen: Observation, opinion: _Opinion, word: LogWord | None) -> Verdict:
    quotes = [*opinion.lead, *(quote for quote in context(seen) if quote not in opinion.lead)]
    if word is not None:
        quotes += [quote for quote in word.quotes if quote not in quotes]
    cause = word.cause if word is not None and word.kind is opinion.kind else None
    if opinion.kind is _K.OOM and (cause is None or _names_memory(seen.report)):
        # Slurm counts the host's memory only.
        cause = Cause.HOST
    if opinion.kind is _K.TIMEOUT and was_cpu_limit_reached(seen):
        cause = Cause.CPU_TIME
    if cause in ADVICE:
        quotes.append(Evidence(source=EvidenceSource.CONTROLLER, text=ADVICE[cause]))
    return Verdict(
        kind=opinion.kind,
        evidence=tuple(quotes),
        confidence=opinion.confidence,
        cause=cause,
    )


def _names_memory(report: JobReport | None) -> bool:
    return report is not None and (_named(report) is _K.OOM or ended_by(report) == SIGNAL_OOM)


def _named(report: JobReport) -> VerdictKind | None:
    """Return the cause that the scheduler itself names."""
    # Slurm adds to some states, as in "CANCELLED by 1000".
    state = report.raw.strip().partition(" ")[0].rstrip("+")
    reason = (report.reason or "").partition(":")[0]
    by_reason = _REASONS.get(reason)
    if reason == "JobLaunchFailure" and ended_by(report) in _STANDARD_SIGNALS:
        # Slurm 22.05 says so of every script that a signal ended.
        by_reason = None
    if state in _STATES and _STATES[state] is not _K.CANCELLED:
        return _STATES[state]
    if state in ("FAILED", "CANCELLED") and by_reason is not None:
        return by_reason
    return _STATES.get(state)


def _of_request(seen: Observation) -> _Opinion:
    asked = Evidence(source=EvidenceSource.CONTROLLER, text="cancelled on request")
    named = None if seen.report is None else _named(seen.report)
    agrees = named in (None, _K.CANCELLED)
    confidence = Confidence.CERTAIN if agrees else Confidence.LIKELY
    return _Opinion(kind=_K.CANCELLED, confidence=confidence, lead=(asked,))


def _of_end(seen: Observation, report: JobReport, word: LogWord | None) -> _Opinion:
    """Return what the end means that a scheduler reports."""
    named = _named(report)
    if named is _K.CANCELLED:
        return _of_cancellation(seen, report, word)
    if named is _K.NODE_FAILURE and ended_by(report) == SIGNAL_NO_OUTPUT:
        return _of_launch(seen, report)
    if named is not None:
        disagrees = word is not None and word.is_cause and word.kind is not named
        unsure = disagrees or named is _K.LOST
        return _Opinion(kind=named, confidence=Confidence.LIKELY if unsure else Confidence.CERTAIN)
    if ended_by(report) == SIGNAL_NO_OUTPUT:
        return _of_launch(seen, report)
    if was_cpu_limit_reached(seen):
        told = heartbeat_quote(seen) if ended_by(report) is None else _exit_quote(seen)
        return _Opinion(kind=_K.TIMEOUT, confidence=Confidence.CERTAIN, lead=(told,))
    if ended_by(report) is not None:
        return _of_signal(seen, report, word)
    failed = report.exit_code if report.exit_code is not None else report.raw == "FAILED"
    if failed and word is not None and (word.kind is not _K.CANCELLED or word.of_scheduler):
        return _Opinion(kind=word.kind, confidence=Confidence.LIKELY, lead=word.quotes)
    if failed and (full := _full_disk(seen)) is not None:
        return full
    if _has_not_begun_on(report.node, seen):
        # Slurm opens the log before it runs anything: it lies where only that node can see it.
        return _of_launch(seen, report)
    missing = Evidence(source=EvidenceSource.CONTROLLER, text="ended without a result")
    return _Opinion(kind=_K.UNDETERMINED, confidence=Confidence.UNCLEAR, lead=(missing,))


def _has_not_begun_on(node: str | None, seen: Observation) -> bool:
    """Whether a job was given a node and left nothing that can be seen from here."""
    return node is not None and seen.is_in_sight and not seen.left_trace


def _full_disk(seen: Observation) -> _Opinion | None:
    """Return that the run's disk is full: neither worker nor Slurm can then write down why."""
    if seen.free_bytes is None or seen.free_bytes >= _NO_ROOM_BYTES:
        return None
    text = f"{seen.free_bytes} bytes are free where the run lies"
    full = Evidence(source=EvidenceSource.CONTROLLER, text=text)
    return _Opinion(kind=_K.DISK_FULL, confidence=Confidence.LIKELY, lead=(full,))


def _of_launch(seen: Observation, report: JobReport) -> _Opinion:
    """Return what it means that a node could not open a job's log, or opened it elsewhere."""
    full = _full_disk(seen)
    if full is not None:
        return full
    where = f" `{seen.log_path}`" if seen.log_path else ""
    node = report.node or "its node"
    if ended_by(report) == SIGNAL_NO_OUTPUT:
        text = f"{node} could not open the job's log{where}: Slurm's exit 0:53, which is no signal"
    else:
        text = f"the job ran on {node} and its log{where} is not here: that node does not see it"
    told = Evidence(source=EvidenceSource.SCHEDULER, text=text)
    return _Opinion(kind=_K.NODE_FAILURE, confidence=Confidence.LIKELY, lead=(told,))


def _of_cancellation(seen: Observation, report: JobReport, word: LogWord | None) -> _Opinion:
    """Return why a job was cancelled that nobody here cancelled; Slurm cancels jobs itself, too."""
    if word is not None and word.of_scheduler and word.kind is not _K.CANCELLED:
        return _Opinion(kind=word.kind, confidence=Confidence.LIKELY, lead=word.quotes)
    if report.raw.strip() == _BY_ROOT and was_limit_reached(seen):
        return _Opinion(kind=_K.TIMEOUT, confidence=Confidence.LIKELY)
    if report.raw.strip() == _BY_ROOT and _has_not_begun_on(report.node, seen):
        text = f"Slurm, or root, cancelled it on {report.node} before any of it ran there"
        told = Evidence(source=EvidenceSource.SCHEDULER, text=f"{text}, as where a prolog fails")
        return _Opinion(kind=_K.NODE_FAILURE, confidence=Confidence.LIKELY, lead=(told,))
    return _Opinion(kind=_K.CANCELLED, confidence=Confidence.CERTAIN)


def _of_signal(seen: Observation, report: JobReport, word: LogWord | None) -> _Opinion:
    """Return why a signal ended a job."""
    likely = Confidence.LIKELY
    if ended_by(report) == SIGNAL_OOM:
        kind, likely = _K.OOM, Confidence.CERTAIN
    elif word is not None and (word.of_scheduler and word.kind is not _K.CANCELLED):
        kind = word.kind
    elif was_limit_reached(seen):
        kind = _K.TIMEOUT
    elif word is not None and word.kind in _BEHIND_SIGNAL:
        kind = word.kind
    elif word is not None and word.is_of_node and ended_by(report) in _OWN_SIGNALS:
        kind = word.kind
    elif was_warned_early(seen):
        kind = _K.PREEMPTED
    else:
        kind = _K.KILLED
    # Slurm ends what it gives up with signals of its own, which say less than its words.
    words = word.quotes if word is not None and word.of_scheduler and word.kind is kind else ()
    return _Opinion(kind=kind, confidence=likely, lead=(*words, _exit_quote(seen)))


def _exit_quote(seen: Observation) -> Evidence:
    return next(quote for quote in context(seen) if quote.source is EvidenceSource.EXIT)


def _of_silence(seen: Observation, word: LogWord | None) -> _Opinion:
    """Return what became of a job of which the scheduler does not say that it ended."""
    likely, unclear = Confidence.LIKELY, Confidence.UNCLEAR
    vanished = seen.report is not None and seen.report.state is JobState.VANISHED
    if seen.is_alive:
        return _Opinion(kind=_K.UNDETERMINED, confidence=unclear, lead=(heartbeat_quote(seen),))
    if word is not None and (word.kind is not _K.CANCELLED or word.of_scheduler):
        return _Opinion(kind=word.kind, confidence=likely, lead=word.quotes)
    if not vanished:
        return _Opinion(kind=_K.UNDETERMINED, confidence=unclear)
    if seen.report is not None and seen.report.has_siblings and not _has_begun(seen):
        # Of a task that waits and is cancelled alone, Slurm keeps no record.
        text = "Slurm knows the other tasks of its array: this one was taken back before it began"
        told = Evidence(source=EvidenceSource.SCHEDULER, text=text)
        return _Opinion(kind=_K.CANCELLED, confidence=likely, lead=(told,))
    if was_cpu_limit_reached(seen) or (seen.signals and was_limit_reached(seen)):
        return _Opinion(kind=_K.TIMEOUT, confidence=likely, lead=(heartbeat_quote(seen),))
    if was_warned_early(seen):
        return _Opinion(kind=_K.PREEMPTED, confidence=likely, lead=(heartbeat_quote(seen),))
    return _Opinion(kind=_K.LOST, confidence=likely)


def _has_begun(seen: Observation) -> bool:
    return seen.has_started or seen.left_trace


def needs_no_log(result: Mapping[str, object] | None) -> bool:
    """Whether a worker's result says so much that its log would add nothing."""
    verdict = None if result is None else result.get("verdict")
    return isinstance(verdict, Mapping) and verdict.get("kind") in (_K.COMPLETED, _K.DIVERGED)


def _from_result(seen: Observation, result: Mapping[str, object]) -> Verdict:
    """Return what the worker itself says."""
    verdict = result.get("verdict")
    if not isinstance(verdict, Mapping) or str(verdict.get("kind")) not in set(VerdictKind):
        return _unread(seen, "the worker's result holds no verdict")
    kind = VerdictKind(str(verdict["kind"]))
    if kind is _K.COMPLETED and not _is_loss(result.get("loss")):
        return _unread(seen, "the worker says completed and gives no finite loss")
    told = verdict.get("evidence")
    listed = told[:_QUOTES_KEPT] if isinstance(told, list) else []
    quotes = [quote for quote in listed if isinstance(quote, Mapping) and "text" in quote]
    said = [_quote(q, seen.result_file) for q in quotes or [{"text": f"the worker says {kind}"}]]
    texts = tuple(quote.text for quote in said)
    cause = find_cause(kind, texts)
    holders = [holder for text in texts if (holder := find_neighbour(text))]
    if cause is Cause.NEIGHBOUR:
        said.append(replace(said[0], text=str(holders[0])))
    if not needs_no_log(result):
        said += _in_log(seen.log, said[0].text)
    confidence = Confidence.UNCLEAR if kind is _K.UNDETERMINED else Confidence.CERTAIN
    named = None if seen.report is None else _named(seen.report)
    if named not in (None, kind):
        # Both are kept, and neither is sure any more.
        confidence = Confidence.UNCLEAR if kind is _K.UNDETERMINED else Confidence.LIKELY
        said += [quote for quote in context(seen) if quote.source is EvidenceSource.SCHEDULER]
    return Verdict(kind=kind, evidence=tuple(said), confidence=confidence, cause=cause)


def _unread(seen: Observation, text: str) -> Verdict:
    unread = _quote({"text": text}, seen.result_file)
    return Verdict(
        kind=_K.UNDETERMINED,
        evidence=(unread, *context(seen)),
        confidence=Confidence.UNCLEAR,
    )


def _in_log(log: Log | None, text: str) -> list[Evidence]:
    """Return where a log prints the exception that the worker wrote down."""
    # The worker adds to the first line where the exception was raised.
    first = text.partition("\n")[0].partition(" (")[0].strip()
    if log is None or not first:
        return []
    for index in range(len(log.lines) - 1, -1, -1):
        line = log.lines[index].strip()
        # Python prints it after the name of its module.
        if _MODULES.sub("", line, count=1).startswith(first):
            place = log.first_line + index
            text = line[:QUOTE_LIMIT]
            return [Evidence(source=EvidenceSource.LOG, text=text, file=log.file, line=place)]
    return []


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
        text=str(quote.get("text"))[:_TEXT_LIMIT],
        file=named[:QUOTE_LIMIT] if isinstance(named, str) else file,
        line=line if type(line) is int else None,
    )
