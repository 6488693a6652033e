"""Judge: the verdict on an attempt that no longer runs, from what was observed of it; pure.

The worker's own result decides when there is one; then the scheduler's named states, signals, exit
codes and the log.  What is not understood is `undetermined`, never `diverged`: only the worker,
which sees the loss and the gradient of every step, can say that a run diverged.
"""

import signal
from collections.abc import Mapping
from dataclasses import replace

from elmanctl.constants import UNREACHABLE
from elmanctl.ledger.records import (
    Cause,
    Confidence,
    Evidence,
    EvidenceSource,
    Verdict,
    VerdictKind,
)
from elmanctl.schedulers.executor import JobReport, JobState
from elmanctl.verdicts import job_end
from elmanctl.verdicts.causes import ADVICE
from elmanctl.verdicts.evidence import context, exit_quote, heartbeat_quote
from elmanctl.verdicts.log_diagnosis import LogDiagnosis, diagnose_log
from elmanctl.verdicts.node_disk import names_node_disk
from elmanctl.verdicts.observation import Observation
from elmanctl.verdicts.worker_result import result_verdict

_K = VerdictKind

# Less than any log that reports an error needs.
_NO_ROOM_BYTES = 64 * 1024

# Errors in a log that explain why a signal ended a process; any other one was survived.
_BEHIND_SIGNAL = (_K.OOM, _K.CUDA_ERROR, _K.DISK_FULL)

# Signals that a process sends itself: C++ aborts, OpenBLAS interrupts where it gets no threads,
# and full shared memory is a bus error.  Then what the log says of the node is the reason.
_OWN_SIGNALS = (signal.SIGABRT, signal.SIGINT, signal.SIGBUS)

# Slurm itself, which runs as root, or an administrator.
_BY_ROOT = "CANCELLED by 0"


def judge(seen: Observation) -> Verdict:
    """Return what happened to an attempt, with the evidence quoted."""
    if seen.result is not None:
        return result_verdict(seen, seen.result)
    log = _with_run_disk(seen, diagnose_log(seen.log))
    if seen.cancel_requested:
        opinion = _of_request(seen, _K.CANCELLED, "cancelled on request")
    elif seen.stop_requested:
        opinion = _of_request(seen, _K.STOPPED, "stopped early, without a result of its own")
    elif seen.report is not None and seen.report.state is JobState.ENDED:
        opinion = _of_end(seen, seen.report, log)
    else:
        opinion = _without_end(seen, log)
    return _with_all_evidence(seen, opinion, log)


def _with_run_disk(seen: Observation, log: LogDiagnosis | None) -> LogDiagnosis | None:
    """Return a log's diagnosis; the node's disk that it blames may hold the run itself."""
    if log is None or log.kind is not _K.ENVIRONMENT or seen.run_folder is None:
        return log
    text = log.quotes[0].text
    if names_node_disk(text) is None or names_node_disk(text, seen.run_folder) is not None:
        return log
    return replace(log, kind=_K.DISK_FULL, cause=None)


def _opinion(kind: VerdictKind, confidence: Confidence, *lead: Evidence | None) -> Verdict:
    """Return a verdict by the evidence that decided it."""
    quotes = tuple(quote for quote in lead if quote is not None)
    return Verdict(kind=kind, evidence=quotes, confidence=confidence)


def _with_all_evidence(seen: Observation, opinion: Verdict, log: LogDiagnosis | None) -> Verdict:
    """Return a verdict with its cause, and with the evidence that did not decide it."""
    quotes = [*opinion.evidence]
    quotes += [quote for quote in context(seen) if quote not in quotes]
    if log is not None:
        quotes += [quote for quote in log.quotes if quote not in quotes]
    cause = log.cause if log is not None and log.kind is opinion.kind else None
    if opinion.kind is _K.OOM and (cause is None or job_end.names_memory(seen.report)):
        # Slurm accounts for the host's memory only.
        cause = Cause.HOST
    if opinion.kind is _K.TIMEOUT and seen.reached_cpu_limit:
        cause = Cause.CPU_TIME
    if cause in ADVICE:
        quotes.append(Evidence(source=EvidenceSource.CONTROLLER, text=ADVICE[cause]))
    return replace(opinion, evidence=tuple(quotes), cause=cause)


def _of_request(seen: Observation, kind: VerdictKind, text: str) -> Verdict:
    request = Evidence(source=EvidenceSource.CONTROLLER, text=text)
    named = None if seen.report is None else job_end.named_kind(seen.report)
    agrees = named in (None, _K.CANCELLED)
    return _opinion(kind, Confidence.CERTAIN if agrees else Confidence.LIKELY, request)


def _of_end(seen: Observation, report: JobReport, log: LogDiagnosis | None) -> Verdict:
    """Return the verdict on an end that a scheduler reports."""
    named, ended_by = job_end.named_kind(report), job_end.signal_of(report)
    if named is _K.CANCELLED:
        return _of_cancellation(seen, report, log)
    if ended_by == job_end.SIGNAL_NO_OUTPUT and named in (None, _K.NODE_FAILURE):
        return _of_launch(seen, report)
    if named is not None:
        disagrees = log is not None and log.is_root_cause and log.kind is not named
        unsure = disagrees or named is _K.LOST
        return _opinion(named, Confidence.LIKELY if unsure else Confidence.CERTAIN)
    if seen.reached_cpu_limit:
        lead = heartbeat_quote(seen) if ended_by is None else exit_quote(seen)
        return _opinion(_K.TIMEOUT, Confidence.CERTAIN, lead)
    if ended_by is not None:
        return _of_signal(seen, report, log)
    if seen.lost_rank is not None and _is_unreachable(seen.lost_rank):
        return _of_lost_rank(seen, seen.lost_rank)
    failed = report.exit_code if report.exit_code is not None else report.raw == "FAILED"
    if failed and log is not None and log.is_conclusive:
        return _opinion(log.kind, Confidence.LIKELY, *log.quotes)
    if failed and (full := _full_disk(seen)) is not None:
        return full
    if seen.lost_rank is not None:
        return _of_lost_rank(seen, seen.lost_rank)
    if _never_began_on(report.node, seen):
        # Slurm opens the log before it runs anything: it lies where only that node can see it.
        return _of_launch(seen, report)
    missing = Evidence(source=EvidenceSource.CONTROLLER, text="ended without a result")
    return _opinion(_K.UNDETERMINED, Confidence.UNCLEAR, missing)


def _is_unreachable(lost: Mapping[str, object]) -> bool:
    return UNREACHABLE in str(lost.get("how"))


def _of_lost_rank(seen: Observation, lost: Mapping[str, object]) -> Verdict:
    """Return why rank 0 was left alone, where the scheduler names no cause."""
    kind = _K.NODE_FAILURE if _is_unreachable(lost) else _K.KILLED
    return _opinion(kind, Confidence.LIKELY, heartbeat_quote(seen))


def _never_began_on(node: str | None, seen: Observation) -> bool:
    """Whether a job was given a node and left no file that can be seen from here."""
    return node is not None and seen.is_in_sight and not seen.left_trace


def _full_disk(seen: Observation) -> Verdict | None:
    """Return that the run's disk is full: neither worker nor Slurm can then write down why."""
    if seen.free_bytes is None or seen.free_bytes >= _NO_ROOM_BYTES:
        return None
    text = f"{seen.free_bytes} bytes are free on the run's file system"
    full = Evidence(source=EvidenceSource.CONTROLLER, text=text)
    return _opinion(_K.DISK_FULL, Confidence.LIKELY, full)


def _of_launch(seen: Observation, report: JobReport) -> Verdict:
    """Return the verdict on a node that could not open a job's log, or opened it elsewhere."""
    full = _full_disk(seen)
    if full is not None:
        return full
    where = f" `{seen.log_path}`" if seen.log_path else ""
    node = report.node or "its node"
    if job_end.signal_of(report) == job_end.SIGNAL_NO_OUTPUT:
        text = f"{node} could not open the job's log{where}: Slurm's exit 0:53, which is no signal"
    else:
        text = f"the job ran on {node} and its log{where} is not here: that node does not see it"
    unseen = Evidence(source=EvidenceSource.SCHEDULER, text=text)
    return _opinion(_K.NODE_FAILURE, Confidence.LIKELY, unseen)


def _of_cancellation(seen: Observation, report: JobReport, log: LogDiagnosis | None) -> Verdict:
    """Return why a job was cancelled without a request; Slurm cancels jobs itself, too."""
    if log is not None and log.is_scheduler_reason:
        return _opinion(log.kind, Confidence.LIKELY, *log.quotes)
    by_root = report.raw.strip() == _BY_ROOT
    if by_root and seen.reached_limit:
        return _opinion(_K.TIMEOUT, Confidence.LIKELY)
    if by_root and _never_began_on(report.node, seen):
        text = f"Slurm, or root, cancelled it on {report.node} before any of it ran there"
        prolog = Evidence(source=EvidenceSource.SCHEDULER, text=f"{text}, as where a prolog fails")
        return _opinion(_K.NODE_FAILURE, Confidence.LIKELY, prolog)
    return _opinion(_K.CANCELLED, Confidence.CERTAIN)


def _of_signal(seen: Observation, report: JobReport, log: LogDiagnosis | None) -> Verdict:
    """Return why a signal ended a job."""
    ended_by, confidence = job_end.signal_of(report), Confidence.LIKELY
    if ended_by == job_end.SIGNAL_OOM:
        kind, confidence = _K.OOM, Confidence.CERTAIN
    elif log is not None and log.is_scheduler_reason:
        kind = log.kind
    elif seen.reached_limit:
        kind = _K.TIMEOUT
    elif log is not None and (
        log.kind in _BEHIND_SIGNAL or (log.blames_node and ended_by in _OWN_SIGNALS)
    ):
        kind = log.kind
    elif seen.was_warned_early:
        kind = _K.PREEMPTED
    else:
        kind = _K.KILLED
    # Slurm ends what it gives up with signals of its own, which say less than its words.
    words = log.quotes if log is not None and log.is_from_scheduler and log.kind is kind else ()
    return _opinion(kind, confidence, *words, exit_quote(seen))


def _without_end(seen: Observation, log: LogDiagnosis | None) -> Verdict:
    """Return what became of a job whose end the scheduler does not report."""
    likely, unclear = Confidence.LIKELY, Confidence.UNCLEAR
    if seen.is_alive:
        return _opinion(_K.UNDETERMINED, unclear, heartbeat_quote(seen))
    if log is not None and log.is_conclusive:
        return _opinion(log.kind, likely, *log.quotes)
    if seen.report is None or seen.report.state is not JobState.VANISHED:
        return _opinion(_K.UNDETERMINED, unclear)
    if seen.report.has_siblings and not (seen.has_started or seen.left_trace):
        # Slurm keeps no record of a pending task that is cancelled alone.
        text = "Slurm knows the other tasks of its array: this one was taken back before it began"
        withdrawn = Evidence(source=EvidenceSource.SCHEDULER, text=text)
        return _opinion(_K.CANCELLED, likely, withdrawn)
    if seen.reached_cpu_limit or (seen.signals and seen.reached_limit):
        return _opinion(_K.TIMEOUT, likely, heartbeat_quote(seen))
    if seen.was_warned_early:
        return _opinion(_K.PREEMPTED, likely, heartbeat_quote(seen))
    if seen.lost_rank is not None:
        return _of_lost_rank(seen, seen.lost_rank)
    return _opinion(_K.LOST, likely)
