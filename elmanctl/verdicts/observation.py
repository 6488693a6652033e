"""What is known of an attempt that no longer runs, and what single observations mean; pure."""

import re
import signal
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from elmanctl.clock import from_text
from elmanctl.ledger.records import Cause, Evidence, EvidenceSource, VerdictKind
from elmanctl.schedulers.executor import JobReport, JobState
from elmanctl.verdicts.causes import find_cause
from elmanctl.verdicts.logs.classify import find_error, of_cause, quote, texts_of
from elmanctl.verdicts.logs.reading import read_parts
from elmanctl.verdicts.rules import Weight


@dataclass(frozen=True, slots=True, kw_only=True)
class Log:
    """The end of a job's output: `lines` are numbered from `first_line`."""

    file: str
    lines: Sequence[str] = ()
    first_line: int = 1


@dataclass(frozen=True, slots=True, kw_only=True)
class Observation:
    """Everything known of an attempt.

    `elapsed_s` is how long the worker lived by its own clock; `heartbeat_age_s` how long ago it
    wrote last, and `stale_after_s` from which age on it counts as silent.  `free_bytes` is the room
    that is left where the run lies.  `is_in_sight`: what the controller wrote for the attempt is
    there to be read; `left_trace`: so is any file of the job's, its output at `log_path` for one.
    `has_started`: the scheduler has said that it runs.  `run_folder` is where the run lies.
    """

    result: Mapping[str, object] | None = None
    result_file: str | None = None
    report: JobReport | None = None
    log: Log | None = None
    log_path: str | None = None
    is_in_sight: bool = False
    left_trace: bool = False
    has_started: bool = False
    heartbeat: Mapping[str, object] | None = None
    heartbeat_file: str | None = None
    heartbeat_age_s: float | None = None
    stale_after_s: float | None = None
    cancel_requested: bool = False
    elapsed_s: float | None = None
    limit_s: float | None = None
    free_bytes: int | None = None
    run_folder: str | None = None

    @property
    def is_alive(self) -> bool:
        """Whether the worker wrote a sign of life just now, and none that it is done."""
        if self.heartbeat_age_s is None or self.stale_after_s is None:
            return False
        done = self.heartbeat is not None and self.heartbeat.get("phase") == "done"
        return self.heartbeat_age_s <= self.stale_after_s and not done

    @property
    def signals(self) -> list[tuple[str, float | None]]:
        """The signals that the worker noted, each with the seconds it had lived until then."""
        noted = (self.heartbeat or {}).get("signals")
        listed = noted if isinstance(noted, list | tuple) else ()
        return [
            (str(one["name"]), _seconds_between((self.heartbeat or {}).get("started_at"), one))
            for one in listed
            if isinstance(one, Mapping) and "name" in one
        ]


@dataclass(frozen=True, slots=True, kw_only=True)
class LogWord:
    """What a log says of an end: the line that decides, and then the line that names its cause."""

    kind: VerdictKind
    weight: Weight
    cause: Cause | None
    quotes: tuple[Evidence, ...]

    @property
    def of_scheduler(self) -> bool:
        """Whether the scheduler wrote the line."""
        return self.weight is Weight.SCHEDULER

    @property
    def is_cause(self) -> bool:
        """Whether the line tells why, and not only that something ended."""
        echoes = (VerdictKind.KILLED, VerdictKind.CANCELLED)
        return not self.of_scheduler and self.kind not in echoes

    @property
    def is_of_node(self) -> bool:
        """Whether the line tells of what the node lacks, as the cause and not as an echo."""
        return self.weight is Weight.CAUSE and self.kind is VerdictKind.ENVIRONMENT


def read_word(log: Log | None) -> LogWord | None:
    """Return the error that ended a run by its log, None where the log tells of none."""
    if log is None:
        return None
    found = read_parts([(log.first_line, "\n".join(log.lines))])
    error = find_error(found)
    if error is None:
        return None
    kind = error.rule.kind
    cause = find_cause(kind, texts_of(found, kind))
    named = of_cause(found, cause, (error.piece,), log.file)
    return LogWord(
        kind=kind,
        weight=error.rule.weight,
        cause=cause,
        quotes=(quote(error.piece, log.file), *named),
    )


# Slurm's own signal number for a step that went over its memory.
SIGNAL_OOM = 125

# And for a job whose output its node could not open.
SIGNAL_NO_OUTPUT = 53

# Slurm warns this long before a time limit, and checks limits once a minute.
_WARNING_S = 90.0
_MINUTE_S = 60.0


def was_limit_reached(seen: Observation) -> bool:
    """Whether a job ended at its time limit, as far as its last sign of life tells."""
    if seen.elapsed_s is None or not seen.limit_s:
        return False
    # A worker starts later than its job, and its last beat is a while before its end.
    return seen.elapsed_s >= seen.limit_s - min(_MINUTE_S, 0.1 * seen.limit_s)


def was_cpu_limit_reached(seen: Observation) -> bool:
    """Whether the kernel ended a process at its limit on CPU time: only the kernel does so."""
    if seen.report is not None and ended_by(seen.report) is not None:
        return ended_by(seen.report) == signal.SIGXCPU
    return any(name == "SIGXCPU" for name, _ in seen.signals)


def was_warned_early(seen: Observation) -> bool:
    """Whether Slurm warned of an end long before the time limit, as it does before preemption."""
    if not seen.limit_s:
        return False
    earliest = seen.limit_s - _WARNING_S - 2 * _MINUTE_S
    return any(name == "SIGUSR2" and at is not None and at < earliest for name, at in seen.signals)


_RAISED = re.compile(r"^RaisedSignal:(\d+)")


def ended_by(report: JobReport) -> int | None:
    """Return the signal that ended a job, also where a shell or a reason tells of it."""
    if report.signal is not None:
        return report.signal
    raised = _RAISED.match(report.reason or "")
    if raised and int(raised[1]) > 0:
        return int(raised[1])
    code = report.exit_code
    known = {int(number) for number in signal.Signals}
    return code - 128 if code is not None and code - 128 in known else None


def context(seen: Observation) -> tuple[Evidence, ...]:
    """Return what scheduler, exit and heartbeat say, as evidence."""
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
    number = None if report is None else ended_by(report)
    if number == SIGNAL_NO_OUTPUT:
        quotes.append(Evidence(source=EvidenceSource.EXIT, text="exit 0:53"))
    elif number is not None:
        text = f"ended by signal {number} ({_signal_name(number)})"
        quotes.append(Evidence(source=EvidenceSource.EXIT, text=text))
    elif report is not None and report.exit_code is not None:
        text = f"exit code {report.exit_code}"
        quotes.append(Evidence(source=EvidenceSource.EXIT, text=text))
    return (*quotes, heartbeat_quote(seen))


def heartbeat_quote(seen: Observation) -> Evidence:
    """Return the last sign of life as evidence."""
    if seen.heartbeat is None:
        text = "the worker never wrote a heartbeat"
        return Evidence(source=EvidenceSource.HEARTBEAT, text=text)
    beat = seen.heartbeat
    text = f"last heartbeat {beat.get('at')}: {beat.get('phase')}, step {beat.get('step')}"
    for name, at in seen.signals:
        text += f"; {name}" + ("" if at is None else f" after {at:.0f} s")
    if seen.is_alive:
        text += f"; {seen.heartbeat_age_s:.0f} s old, so the worker is alive"
    return Evidence(source=EvidenceSource.HEARTBEAT, text=text, file=seen.heartbeat_file)


def _seconds_between(began: object, later: Mapping[str, object]) -> float | None:
    try:
        return (from_text(str(later["at"])) - from_text(str(began))).total_seconds()
    except (KeyError, ValueError, TypeError):
        return None


def _signal_name(number: int) -> str:
    if number == SIGNAL_OOM:
        return "out of memory"
    if number == signal.SIGXCPU:
        return "SIGXCPU, the limit on CPU time"
    try:
        return signal.Signals(number).name
    except ValueError:
        return "unknown"
