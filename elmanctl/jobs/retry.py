"""Whether an attempt's verdict is the end of its evaluation: a pure, declared policy.

The table itself is `[retry]` in the settings: attempts allowed beyond the first, by verdict.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from elmanctl.ledger.records import State, Verdict, VerdictKind
from elmanctl.settings import RetrySettings

# Failures that say nothing about the point and would hit any other point the same way.
SYSTEMATIC = frozenset(
    {
        VerdictKind.INVALID,
        VerdictKind.CUDA_ERROR,
        VerdictKind.PYTHON_ERROR,
        VerdictKind.ENVIRONMENT,
        VerdictKind.DISK_FULL,
        VerdictKind.UNDETERMINED,
    }
)


@dataclass(frozen=True, slots=True, kw_only=True)
class Decision:
    """What follows an attempt: `close` is the evaluation's final state, None to run again."""

    close: State | None
    changes: Mapping[str, Any] = field(default_factory=dict)


def decide(verdicts: Sequence[Verdict], table: RetrySettings, *, mem_gb: float | None) -> Decision:
    """Return what follows the last of an evaluation's verdicts (oldest first, since reopened).

    `mem_gb` is the host memory that the last attempt asked for.
    """
    last = verdicts[-1].kind
    if last is VerdictKind.COMPLETED:
        return Decision(close=State.COMPLETED)
    if last is VerdictKind.CANCELLED:
        return Decision(close=State.CANCELLED)
    seen = sum(verdict.kind is last for verdict in verdicts)
    if seen > int(getattr(table, last.value)):
        return Decision(close=State.FAILED)
    if last is VerdictKind.OOM and mem_gb is not None:
        return Decision(close=None, changes={"mem_gb": round(mem_gb * table.mem_factor, 3)})
    return Decision(close=None)


def systematic_failure(recent: Sequence[VerdictKind], limit: int) -> VerdictKind | None:
    """Return the kind of failure that the last `limit` verdicts share, if it is systematic.

    A full disk counts at once: the next attempt would meet it too.
    """
    if recent and recent[-1] is VerdictKind.DISK_FULL:
        return VerdictKind.DISK_FULL
    tail = recent[-limit:]
    if limit > 0 and len(tail) == limit and len(set(tail)) == 1 and tail[0] in SYSTEMATIC:
        return tail[0]
    return None
