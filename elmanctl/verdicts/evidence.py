"""Evidence from an observation: what scheduler, exit status and heartbeat say, in words; pure."""

from elmanctl.ledger.records import Evidence, EvidenceSource
from elmanctl.schedulers.executor import JobState
from elmanctl.verdicts.job_end import SIGNAL_NO_OUTPUT, signal_name, signal_of
from elmanctl.verdicts.observation import Observation


def context(seen: Observation) -> tuple[Evidence, ...]:
    """Return what scheduler, exit status and heartbeat say, in this order."""
    quotes = (scheduler_quote(seen), exit_quote(seen), heartbeat_quote(seen))
    return tuple(quote for quote in quotes if quote is not None)


def scheduler_quote(seen: Observation) -> Evidence | None:
    """Return the state of the job as its scheduler reports it, None without a report."""
    report = seen.report
    if report is not None and report.state is JobState.VANISHED:
        text = "the scheduler no longer knows the job"
    elif report is not None and report.raw:
        text = f"state {report.raw}" + (f", reason {report.reason}" if report.reason else "")
        if report.node:
            text += f", on {report.node}"
    else:
        return None
    return Evidence(source=EvidenceSource.SCHEDULER, text=text)


def exit_quote(seen: Observation) -> Evidence | None:
    """Return the signal or the exit code that the job ended with, None if neither is known."""
    number = None if seen.report is None else signal_of(seen.report)
    if number == SIGNAL_NO_OUTPUT:
        text = "exit 0:53"
    elif number is not None:
        text = f"ended by signal {number} ({signal_name(number)})"
    elif seen.report is not None and seen.report.exit_code is not None:
        text = f"exit code {seen.report.exit_code}"
    else:
        return None
    return Evidence(source=EvidenceSource.EXIT, text=text)


def heartbeat_quote(seen: Observation) -> Evidence:
    """Return the last heartbeat, or that there is none."""
    beat = seen.heartbeat
    if beat is None:
        text = "the worker never wrote a heartbeat"
        return Evidence(source=EvidenceSource.HEARTBEAT, text=text)
    text = f"last heartbeat {beat.get('at')}: {beat.get('phase')}, step {beat.get('step')}"
    for name, at in seen.signals:
        text += f"; {name}" + ("" if at is None else f" after {at:.0f} s")
    if (lost := seen.lost_rank) is not None:
        text += f"; rank {lost.get('rank')} of {lost.get('count')} on {lost.get('node')} "
        text += str(lost.get("how"))
    if seen.is_alive:
        text += f"; {seen.heartbeat_age_s:.0f} s old, so the worker is alive"
    return Evidence(source=EvidenceSource.HEARTBEAT, text=text, file=seen.heartbeat_file)
