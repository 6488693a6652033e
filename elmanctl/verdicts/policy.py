"""Retry policy: one declared table of what follows each verdict, and the decision by it; pure.

`RULES` says for every verdict what the optimizer learns, whether the point is retried, how often
and with what change, and what the verdict means for the search as a whole.  Changes are derived
from the attempts on record each time, so that a controller that starts after a kill decides the
same.
"""

import re
from collections.abc import Mapping, Sequence
from dataclasses import KW_ONLY, dataclass, field
from enum import StrEnum

from elmanctl.ledger.records import Cause, EvidenceSource, State, Verdict, VerdictKind
from elmanctl.settings import RetrySettings
from elmanctl.verdicts.signature import signature


class Feedback(StrEnum):
    """What the optimizer learns from an evaluation that ended so."""

    LOSS = "its loss"
    PREDICTION = "its predicted loss"
    LAST = "ranked last"
    NOTHING = "nothing"


class Change(StrEnum):
    """What a retry does differently."""

    NONE = "nothing"
    MEMORY = "more host memory"
    MICRO_BATCH = "half the micro-batch"
    NODE = "another node"


class Group(StrEnum):
    """What a failure discredits; failures of one group in a row stop the search."""

    CODE = "code"
    INFRASTRUCTURE = "infrastructure"
    DISK = "disk"
    NONE = "none"


# Cases of `cancelled`, which has no cause on record.
ON_REQUEST = "on request"
FROM_OUTSIDE = "from outside"


@dataclass(frozen=True, slots=True)
class Rule:
    """One row of the table.

    `case` distinguishes verdicts of one kind.  `setting` is the key of `[retry]` that holds the
    number of retries, None where there is never one.  A rule that `needs_change` allows no retry
    that would be the same as the attempt that failed.  A retry `resumes` from the checkpoint of an
    attempt that was ended from outside.
    """

    kind: VerdictKind
    setting: str | None = None
    change: Change = Change.NONE
    _: KW_ONLY
    case: str | None = None
    feedback: Feedback = Feedback.NOTHING
    needs_change: bool = False
    resumes: bool = False
    group: Group = Group.NONE
    closes_as: State = State.FAILED


_K = VerdictKind
_INFRA = Group.INFRASTRUCTURE
_MOVE, _SHRINK = Change.NODE, Change.MICRO_BATCH

RULES: tuple[Rule, ...] = (
    Rule(_K.COMPLETED, feedback=Feedback.LOSS, closes_as=State.COMPLETED),
    Rule(_K.DIVERGED, "diverged", feedback=Feedback.LAST),
    Rule(_K.STOPPED, feedback=Feedback.PREDICTION, closes_as=State.STOPPED),
    Rule(_K.INVALID, "invalid", group=Group.CODE),
    Rule(_K.OOM, "oom", Change.MEMORY, case=Cause.HOST, needs_change=True),
    Rule(_K.OOM, "oom_gpu", _SHRINK, case=Cause.GPU, needs_change=True, resumes=True),
    Rule(_K.OOM, "oom_neighbour", _MOVE, case=Cause.NEIGHBOUR, group=_INFRA),
    Rule(_K.CUDA_ERROR, "cuda_error", group=Group.CODE),
    Rule(_K.CUDA_ERROR, "cuda_device", _MOVE, case=Cause.DEVICE, group=_INFRA),
    Rule(_K.PYTHON_ERROR, "python_error", group=Group.CODE),
    Rule(_K.ENVIRONMENT, "environment", _MOVE, needs_change=True, group=_INFRA),
    # No group: an outage hits every job that starts during it, whatever its node.
    Rule(_K.ENVIRONMENT, "scheduler", case=Cause.SCHEDULER),
    # The same on every node and in every attempt, until somebody fixes the options.
    Rule(_K.ENVIRONMENT, case=Cause.ARGUMENTS, group=Group.CODE),
    Rule(_K.DISK_FULL, "disk_full", group=Group.DISK),
    Rule(_K.TIMEOUT, "timeout", resumes=True),
    # A limit of the shell hits every job alike: a retry from the start ends the same.
    Rule(_K.TIMEOUT, "timeout", case=Cause.CPU_TIME, resumes=True, group=Group.CODE),
    Rule(_K.KILLED, "killed", resumes=True),
    Rule(_K.NODE_FAILURE, "node_failure", _MOVE, resumes=True, group=_INFRA),
    Rule(_K.PREEMPTED, "preempted", resumes=True),
    Rule(_K.CANCELLED, case=ON_REQUEST, closes_as=State.CANCELLED),
    Rule(_K.CANCELLED, case=FROM_OUTSIDE, group=_INFRA, closes_as=State.CANCELLED),
    Rule(_K.LOST, "lost", resumes=True, group=_INFRA),
    Rule(_K.UNDETERMINED, "undetermined", group=Group.CODE),
)

_RULE_OF = {(rule.kind, rule.case): rule for rule in RULES}

_OOM_CAUSES = (Cause.HOST, Cause.GPU, Cause.NEIGHBOUR)

# Verdicts of version 0.1 have no cause; their text shows whose memory it was.
_DEVICE_MEMORY = re.compile(r"\b(CUDA|HIP|XPU)\b|_STATUS_ALLOC_FAILED|torch\.OutOfMemoryError")


def rule_of(verdict: Verdict) -> Rule:
    """Return the row of the table for a verdict."""
    exact = _RULE_OF.get((verdict.kind, _case(verdict)))
    return exact or _RULE_OF[verdict.kind, None]


def _case(verdict: Verdict) -> str | None:
    if verdict.kind is VerdictKind.CANCELLED:
        requested = any(quote.source is EvidenceSource.CONTROLLER for quote in verdict.evidence)
        return ON_REQUEST if requested else FROM_OUTSIDE
    if verdict.kind is VerdictKind.OOM and verdict.cause not in _OOM_CAUSES:
        texts = (quote.text for quote in verdict.evidence)
        return Cause.GPU if any(map(_DEVICE_MEMORY.search, texts)) else Cause.HOST
    return verdict.cause


@dataclass(frozen=True, slots=True, kw_only=True)
class PastAttempt:
    """An attempt with its verdict, and the host memory in GB that it requested.

    `micro_batch` is what its worker had come down to, None if it did not say.
    """

    verdict: Verdict
    mem_gb: float | None = None
    micro_batch: int | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Baseline:
    """What an attempt gets when nothing failed before it.

    `mem_gb` is the requested host memory, None where there is no limit to raise.  `micro_batch`
    sequences of the `batch` of a step are held in memory at once.  `can_move`: there are other
    nodes, and bad ones can be excluded.
    """

    mem_gb: float | None = None
    batch: int = 1
    micro_batch: int = 1
    can_move: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class Decision:
    """What follows an attempt: `close` is the evaluation's final state, None for a retry.

    `changes` are the retry's differences from the baseline: `mem_gb`, `micro_batch`.
    """

    close: State | None
    changes: Mapping[str, float] = field(default_factory=dict)


def decide(past: Sequence[PastAttempt], retry: RetrySettings, baseline: Baseline) -> Decision:
    """Return what follows the last of an evaluation's attempts (oldest first, since reopened).

    Other evaluations do not count: which of them failed before depends on when their jobs ran, and
    the points of a search must not.
    """
    last = past[-1].verdict
    rule = rule_of(last)
    if rule.setting is None:
        return Decision(close=rule.closes_as)
    seen = sum(rule_of(attempt.verdict).setting == rule.setting for attempt in past)
    alike = sum(signature(attempt.verdict) == signature(last) for attempt in past)
    changes, changed = changes_after(past, retry, baseline)
    if (
        seen > int(getattr(retry, rule.setting))
        or (rule.group is Group.CODE and alike > 1)
        or (rule.needs_change and not changed)
    ):
        return Decision(close=rule.closes_as)
    return Decision(close=None, changes=changes)


def changes_after(
    past: Sequence[PastAttempt], retry: RetrySettings, baseline: Baseline
) -> tuple[dict[str, float], bool]:
    """Return how a retry differs from the baseline, and whether it does from the last attempt.

    A change stays in force when the next failure is of another kind.
    """
    mem_gb, micro_batch, changed = baseline.mem_gb, baseline.micro_batch, False
    for attempt in past:
        change = rule_of(attempt.verdict).change
        changed = change is Change.NODE and baseline.can_move
        if needs_less(attempt):
            held = min(micro_batch, attempt.micro_batch or micro_batch)
            micro_batch = halved(baseline.batch, held)
            changed = micro_batch < held
        elif change is Change.MEMORY and attempt.mem_gb is not None:
            raised = _raised(attempt.mem_gb, retry)
            changed, mem_gb = raised > attempt.mem_gb, max(mem_gb or 0.0, raised)
    changes: dict[str, float] = {}
    if mem_gb is not None and mem_gb != baseline.mem_gb:
        changes["mem_gb"] = mem_gb
    if micro_batch != baseline.micro_batch:
        changes["micro_batch"] = micro_batch
    return changes, changed


def needs_less(attempt: PastAttempt) -> bool:
    """Whether a retry of this attempt must use less memory, with a smaller micro-batch."""
    change = rule_of(attempt.verdict).change
    # Also where there is no limit on host memory to raise.
    return change is Change.MICRO_BATCH or (change is Change.MEMORY and attempt.mem_gb is None)


def _raised(mem_gb: float, retry: RetrySettings) -> float:
    more = round(mem_gb * retry.mem_factor, 3)
    return more if retry.max_mem_gb is None else max(mem_gb, min(more, retry.max_mem_gb))


def halved(batch: int, micro_batch: int) -> int:
    """Return the largest divisor of the batch that is at most half the micro-batch, at least 1."""
    return max((n for n in range(1, micro_batch // 2 + 1) if batch % n == 0), default=1)


def shown_rules(retry: RetrySettings) -> list[dict[str, object]]:
    """Return the table as plain rows, with the number of retries by these settings."""
    return [
        {
            "verdict": rule.kind.value,
            "case": str(rule.case) if rule.case else None,
            "told": rule.feedback.value,
            "setting": f"retry.{rule.setting}" if rule.setting else None,
            "again": int(getattr(retry, rule.setting)) if rule.setting else 0,
            "change": rule.change.value if rule.setting else None,
            "from_checkpoint": rule.resumes,
            "group": rule.group.value,
        }
        for rule in RULES
    ]
