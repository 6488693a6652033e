"""Circuit breaker: failures in a row that stop a search, decided from what is on record; pure."""

from collections.abc import Sequence
from dataclasses import dataclass

from elmanctl.ledger.records import Cause, Verdict, VerdictKind
from elmanctl.verdicts.policy import ON_REQUEST, Group, rule_of
from elmanctl.verdicts.signature import signature


@dataclass(frozen=True, slots=True, kw_only=True)
class Failure:
    """An attempt that did not complete, and the node it ran on."""

    verdict: Verdict
    node: str | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Trip:
    """Why the search stops; `group` says what has to be fixed."""

    group: Group
    reason: str


FULL_DISK = Trip(group=Group.DISK, reason="an attempt met a full disk")


def tripped(row: Sequence[Failure], limit: int, *, can_move: bool) -> Trip | None:
    """Return why the failures since the last success stop a search, None where they do not.

    `row` is in the order in which the attempts ended.  A full disk stops it at once; so do `limit`
    failures of the code with the same signature, and failures of the infrastructure on `limit`
    different nodes, or with the same signature where no other node could be tried.
    """
    counted = [failure for failure in row if not _is_neutral(failure.verdict)]
    groups = [rule_of(failure.verdict).group for failure in counted]
    if groups and groups[-1] is Group.DISK:
        return FULL_DISK
    tail = counted[-limit:] if limit > 0 else []
    if len(tail) < limit or not tail:
        return None
    same = len({signature(failure.verdict) for failure in tail}) == 1
    last = groups[-1]
    stuck = last is Group.CODE or (last is Group.INFRASTRUCTURE and not can_move)
    if same and stuck:
        verdict = tail[-1].verdict
        words = f": {verdict.summary}" if verdict.summary else ""
        return Trip(group=last, reason=f"the last {limit} attempts ended as {verdict.kind}{words}")
    return _everywhere(counted, groups, limit)


def _everywhere(counted: Sequence[Failure], groups: Sequence[Group], limit: int) -> Trip | None:
    """Return the trip for infrastructure that fails on every node, None where it does not."""
    kinds: dict[str, VerdictKind] = {}
    for failure, group in zip(reversed(counted), reversed(groups), strict=True):
        if group is not Group.INFRASTRUCTURE:
            break
        if failure.node is not None:
            kinds.setdefault(failure.node, failure.verdict.kind)
    if len(kinds) < limit:
        return None
    places = ", ".join(f"{kind} on {node}" for node, kind in sorted(kinds.items()))
    return Trip(
        group=Group.INFRASTRUCTURE,
        reason=f"attempts failed in a row on {len(kinds)} different nodes: {places}",
    )


def _is_neutral(verdict: Verdict) -> bool:
    """Whether a verdict says nothing about the health of the code or the cluster."""
    case = rule_of(verdict).case
    return verdict.kind is VerdictKind.PREEMPTED or case in (ON_REQUEST, Cause.SCHEDULER)
