"""The head of `status RUN`: what needs attention first, then costs; nothing that is normal."""

from collections.abc import Mapping
from typing import Any

from elmanctl.cli.confirmation import facts_of
from elmanctl.cli.costs import describe_budget, describe_cost, describe_waste
from elmanctl.cli.output import format_loss
from elmanctl.cli.rows import corpus_line, excluded_line, fate_of_infeasible, start_line
from elmanctl.cli.scheduler_status import note_line
from elmanctl.ledger.records import RunStatus
from elmanctl.ledger.summary import RunSummary
from elmanctl.schedulers.scheduler_note import SchedulerNote
from elmanctl.search.confirmation import Standing

STOPPED = "stopped"


def headline(row: Mapping[str, Any]) -> str:
    """Return one line on a run: its progress and its best loss."""
    parts = [
        f"{row['run']}: {row['status']}",
        f"generation {row['generation']} of {row['generations']}",
        f"{row['done']} of {row['planned']} done",
    ]
    parts += [
        f"{row[key]} {words}"
        for key, words in (
            *(("running", "running"), ("pending", "pending"), ("stopped_early", "stopped early")),
            *(("failed", "failed"), ("cancelled", "cancelled")),
        )
        if row.get(key)
    ]
    if row["best"]:
        parts.append(f"best {format_loss(row['best_loss'])} ({row['best']})")
    return ", ".join(parts)


def facts(
    found: RunSummary,
    row: Mapping[str, Any],
    cost: Mapping[str, Any],
    note: SchedulerNote | None,
    shown: Standing,
    estimate: Mapping[str, Any] | None,
) -> list[str]:
    """Return the labelled lines about a run, those that need attention first."""
    lines: list[tuple[str, str | None]] = [
        ("reason", _reason(row)),
        ("next", _next(found, row)),
        ("cost", describe_cost(found, cost)),
        ("waste", describe_waste(found, cost)),
        ("budget", describe_budget(cost)),
        ("slurm", note_line(note) if note is not None else None),
        *facts_of(found, shown, estimate),
        ("nodes", excluded_line(row["excluded_nodes"])),
        ("search", _search(found, row)),
        ("corpus", corpus_line(found.run)),
    ]
    return [f"  {label:<7} {text}" for label, text in lines if text]


def _reason(row: Mapping[str, Any]) -> str | None:
    if row["status"] == STOPPED:
        return "its controller is no longer running; its jobs continue"
    # `finished` already says that all generations are done.
    key = "ended_by" if row["status"] == RunStatus.FINISHED.value else "reason"
    return row.get(key)


def _next(found: RunSummary, row: Mapping[str, Any]) -> str | None:
    """Return the command that continues the run, None if it needs none."""
    if row["status"] not in (STOPPED, RunStatus.PAUSED.value, RunStatus.INTERRUPTED.value):
        return None
    if found.advice is None and (found.controller or {}).get("allocation") is not None:
        return (
            f"continue with `elmanctl resume {row['run']} --inside` in an allocation, or by jobs "
            "without `--inside`"
        )
    return found.advice or f"continue with `elmanctl resume {row['run']}`"


def _search(found: RunSummary, row: Mapping[str, Any]) -> str:
    text = start_line(found.run)
    if row["refused_share"]:
        fate = fate_of_infeasible(found.run["optimizer"]["name"]).removesuffix(" at no cost")
        text += f"; {row['refused_share']:.0%} of the points were infeasible and {fate}"
    return text
