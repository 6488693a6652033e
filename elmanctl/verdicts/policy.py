"""What follows a verdict: one declared table, and the pure decision made from it.

`RULES` says, for every verdict, what the optimizer is told, whether the same point is run again,
how often and with what change, and what the verdict means for the search as a whole.  The changes
are worked out from the attempts on record each time, so that a controller that starts after a
kill decides the same.
"""

import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from enum import StrEnum
from typing import Any

from elmanctl.ledger.records import Cause, EvidenceSource, State, Verdict, VerdictKind
from elmanctl.settings import RetrySettings
from elmanctl.verdicts.signature import signature


class Feedback(StrEnum):
    """What the optimizer learns from an evaluation that ended so."""

    LOSS = "its loss"
    LAST = "ranked last"
    NOTHING = "nothing"


class Change(StrEnum):
    """What a further attempt does differently."""

    NONE = "nothing"
    MEMORY = "more host memory"
    MICRO_BATCH = "half the micro-batch"
    NODE = "another node"


class Group(StrEnum):
    """Whom a failure speaks of; failures of one group in a row stop the search."""

    CODE = "code"
    INFRASTRUCTURE = "infrastructure"
    DISK = "disk"
    NONE = "none"


# Cases of `cancelled`, which has no cause on record.
ASKED = "on request"
OUTSIDE = "from outside"


@dataclass(frozen=True, slots=True, kw_only=True)
class Rule:
    """One line of the table.

    `case` parts verdicts of one kind.  `setting` is the key of `[retry]` that holds how many
    attempts are allowed beyond the first, None where there is never another.  A rule that
    `needs_change` allows none that would be the same as the one that failed.  Where an attempt
    that was ended from outside left a checkpoint, the next one `goes_on` from it.
    """

    kind: VerdictKind
    case: str | None = None
    feedback: Feedback = Feedback.NOTHING
    setting: str | None = None
    change: Change = Change.NONE
    needs_change: bool = False
    goes_on: bool = False
    group: Group = Group.NONE
    closes_as: State = State.FAILED


RULES: tuple[Rule, ...] = (
    Rule(kind=VerdictKind.COMPLETED, feedback=Feedback.LOSS, closes_as=State.COMPLETED),
    Rule(kind=VerdictKind.DIVERGED, feedback=Feedback.LAST, setting="diverged"),
    Rule(kind=VerdictKind.INVALID, setting="invalid", group=Group.CODE),
    Rule(
        kind=VerdictKind.OOM,
        case=Cause.HOST,
        setting="oom",
        change=Change.MEMORY,
        needs_change=True,
    ),
    Rule(
        kind=VerdictKind.OOM,
        case=Cause.GPU,
        setting="oom_gpu",
        change=Change.MICRO_BATCH,
        needs_change=True,
        goes_on=True,
    ),
    Rule(
        kind=VerdictKind.OOM,
        case=Cause.NEIGHBOUR,
        setting="oom_neighbour",
        change=Change.NODE,
        group=Group.INFRASTRUCTURE,
    ),
    Rule(kind=VerdictKind.CUDA_ERROR, setting="cuda_error", group=Group.CODE),
    Rule(
        kind=VerdictKind.CUDA_ERROR,
        case=Cause.DEVICE,
        setting="cuda_device",
        change=Change.NODE,
        group=Group.INFRASTRUCTURE,
    ),
    Rule(kind=VerdictKind.PYTHON_ERROR, setting="python_error", group=Group.CODE),
    Rule(
        kind=VerdictKind.ENVIRONMENT,
        setting="environment",
        change=Change.NODE,
        needs_change=True,
        group=Group.INFRASTRUCTURE,
    ),
    # No group: an outage meets all jobs that begin in it, on every node, and speaks of none.
    Rule(kind=VerdictKind.ENVIRONMENT, case=Cause.SCHEDULER, setting="scheduler"),
    # The same on every node and in every attempt, until somebody mends the options.
    Rule(kind=VerdictKind.ENVIRONMENT, case=Cause.ARGUMENTS, group=Group.CODE),
    Rule(kind=VerdictKind.DISK_FULL, setting="disk_full", group=Group.DISK),
    Rule(kind=VerdictKind.TIMEOUT, setting="timeout", goes_on=True),
    # A limit of the shell meets every job alike: once more ends as before.
    Rule(
        kind=VerdictKind.TIMEOUT,
        case=Cause.CPU_TIME,
        setting="timeout",
        goes_on=True,
        group=Group.CODE,
    ),
    Rule(kind=VerdictKind.KILLED, setting="killed", goes_on=True),
    Rule(
        kind=VerdictKind.NODE_FAILURE,
        setting="node_failure",
        change=Change.NODE,
        goes_on=True,
        group=Group.INFRASTRUCTURE,
    ),
    Rule(kind=VerdictKind.PREEMPTED, setting="preempted", goes_on=True),
    Rule(kind=VerdictKind.CANCELLED, case=ASKED, closes_as=State.CANCELLED),
    Rule(
        kind=VerdictKind.CANCELLED,
        case=OUTSIDE,
        group=Group.INFRASTRUCTURE,
        closes_as=State.CANCELLED,
    ),
    Rule(kind=VerdictKind.LOST, setting="lost", goes_on=True, group=Group.INFRASTRUCTURE),
    Rule(kind=VerdictKind.UNDETERMINED, setting="undetermined", group=Group.CODE),
)

_RULE_OF = {(rule.kind, rule.case): rule for rule in RULES}

_OOM_CAUSES = (Cause.HOST, Cause.GPU, Cause.NEIGHBOUR)

# Verdicts of version 0.1 have no cause; their words tell whose memory it was.
_DEVICE_MEMORY = re.compile(r"\b(CUDA|HIP|XPU)\b|_STATUS_ALLOC_FAILED|torch\.OutOfMemoryError")


def rule_of(verdict: Verdict) -> Rule:
    """Return the line of the table for a verdict."""
    exact = _RULE_OF.get((verdict.kind, _case(verdict)))
    return exact or _RULE_OF[verdict.kind, None]


def continues(verdict: Verdict) -> bool:
    """Return whether the next attempt may go on from the checkpoint of one that ended so."""
    return rule_of(verdict).goes_on


def _case(verdict: Verdict) -> str | None:
    if verdict.kind is VerdictKind.CANCELLED:
        asked = any(quote.source is EvidenceSource.CONTROLLER for quote in verdict.evidence)
        return ASKED if asked else OUTSIDE
    if verdict.kind is VerdictKind.OOM and verdict.cause not in _OOM_CAUSES:
        texts = (quote.text for quote in verdict.evidence)
        return Cause.GPU if any(map(_DEVICE_MEMORY.search, texts)) else Cause.HOST
    return verdict.cause


@dataclass(frozen=True, slots=True, kw_only=True)
class Tried:
    """An attempt that has its verdict, and the host memory in GB that it asked for."""

    verdict: Verdict
    mem_gb: float | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Ground:
    """What an attempt gets when nothing failed before it.

    `mem_gb` is the host memory asked for, None where there is no limit to raise.  `micro_batch`
    sequences of the `batch` of a step are held in memory at once.  `can_move`: there are other
    nodes, and bad ones can be avoided.
    """

    mem_gb: float | None = None
    batch: int = 1
    micro_batch: int = 1
    can_move: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class Decision:
    """What follows an attempt: `close` is the evaluation's final state, None to run again.

    `changes` holds what the next attempt gets other than the ground: `mem_gb`, `micro_batch`.
    """

    close: State | None
    changes: Mapping[str, Any] = field(default_factory=dict)


def decide(tried: Sequence[Tried], table: RetrySettings, ground: Ground) -> Decision:
    """Return what follows the last of an evaluation's attempts (oldest first, since reopened).

    Nothing is asked of other evaluations: which of them failed before depends on when their jobs
    ran, and the points of a search must not.
    """
    last = tried[-1].verdict
    rule = rule_of(last)
    if rule.setting is None:
        return Decision(close=rule.closes_as)
    seen = sum(rule_of(attempt.verdict).setting == rule.setting for attempt in tried)
    if seen > int(getattr(table, rule.setting)):
        return Decision(close=rule.closes_as)
    if rule.group is Group.CODE and _failed_alike(tried) > 1:
        return Decision(close=rule.closes_as)
    changes = changes_after(tried, table, ground)
    if rule.needs_change and not _differs(rule, tried, table, ground):
        return Decision(close=rule.closes_as)
    return Decision(close=None, changes=changes)


def _failed_alike(tried: Sequence[Tried]) -> int:
    """Return how many attempts failed as the last one did, itself included."""
    last = signature(tried[-1].verdict)
    return sum(signature(attempt.verdict) == last for attempt in tried)


def changes_after(
    tried: Sequence[Tried], table: RetrySettings, ground: Ground
) -> Mapping[str, Any]:
    """Return what a further attempt gets other than the ground, after all that failed before.

    What one failure changed stays changed when the next is of another kind.
    """
    mem_gb, micro_batch = ground.mem_gb, ground.micro_batch
    for step in _steps(tried, table, ground):
        micro_batch = step.micro_batch
        if step.mem_gb is not None:
            mem_gb = max(mem_gb or 0.0, step.mem_gb)
    changes: dict[str, Any] = {}
    if mem_gb != ground.mem_gb:
        changes["mem_gb"] = mem_gb
    if micro_batch != ground.micro_batch:
        changes["micro_batch"] = micro_batch
    return changes


@dataclass(frozen=True, slots=True)
class _Step:
    """What one attempt's end makes of the memory: `changed` against that attempt."""

    mem_gb: float | None
    micro_batch: int
    changed: bool


def _steps(tried: Sequence[Tried], table: RetrySettings, ground: Ground) -> Iterator[_Step]:
    micro_batch = ground.micro_batch
    for attempt in tried:
        change = rule_of(attempt.verdict).change
        raised = None
        changed = change is Change.NODE and ground.can_move
        if needs_less(attempt):
            half = halved(ground.batch, micro_batch)
            changed, micro_batch = half < micro_batch, half
        elif change is Change.MEMORY and attempt.mem_gb is not None:
            raised = _raised(attempt.mem_gb, table)
            changed = raised > attempt.mem_gb
        yield _Step(raised, micro_batch, changed)


def needs_less(attempt: Tried) -> bool:
    """Whether the attempt after this one must need less memory, with a smaller micro-batch."""
    change = rule_of(attempt.verdict).change
    # Where no limit on host memory is ours to raise, too.
    return change is Change.MICRO_BATCH or (change is Change.MEMORY and attempt.mem_gb is None)


def _differs(rule: Rule, tried: Sequence[Tried], table: RetrySettings, ground: Ground) -> bool:
    *_, last = _steps(tried, table, ground)
    return last.changed


def _raised(mem_gb: float, table: RetrySettings) -> float:
    more = round(mem_gb * table.mem_factor, 3)
    return more if table.max_mem_gb is None else max(mem_gb, min(more, table.max_mem_gb))


def halved(batch: int, micro_batch: int) -> int:
    """Return the largest divisor of the batch that is at most half the micro-batch, at least 1."""
    return max((n for n in range(1, micro_batch // 2 + 1) if batch % n == 0), default=1)


def shown_rules(table: RetrySettings) -> list[dict[str, Any]]:
    """Return the table as plain rows, with the numbers of these settings."""
    return [
        {
            "verdict": rule.kind.value,
            "case": str(rule.case) if rule.case else None,
            "told": rule.feedback.value,
            "setting": f"retry.{rule.setting}" if rule.setting else None,
            "again": int(getattr(table, rule.setting)) if rule.setting else 0,
            "change": rule.change.value if rule.setting else None,
            "from_checkpoint": rule.goes_on,
            "group": rule.group.value,
        }
        for rule in RULES
    ]
