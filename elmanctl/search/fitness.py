"""What the optimizer is told: losses, and for diverged runs a finite value behind all of them.

A failure that is not divergence is never told: it says nothing about the point.
"""

import math
import sys
from collections.abc import Collection, Sequence

from elmanctl.ledger.records import Evaluation, State, VerdictKind

# Added to the worst loss, so that every diverged run ranks after every completed one.
_DIVERGED_STEP = 1.0


def told_values(evaluations: Sequence[Evaluation]) -> list[tuple[str, float]]:
    """Return (evaluation, value) for those of one generation that the optimizer learns from.

    Completed evaluations tell their loss.  Diverged ones rank behind the worst of them, and
    among themselves a later divergence is better than an earlier one.  Of an evaluation and what
    was asked in its place only the first with a value is told: never more than were asked first.
    """
    losses = {e.id: e.loss for e in evaluations if e.state is State.COMPLETED}
    finite = {id_: loss for id_, loss in losses.items() if loss is not None and math.isfinite(loss)}
    gone = [e for e in evaluations if e.state is State.FAILED and has_diverged(e)]
    valued = finite.keys() | {e.id for e in gone}
    members = [e for e in evaluations if e.id in valued and not is_spare(e, evaluations, valued)]
    worst = max((finite[e.id] for e in members if e.id in finite), default=0.0)
    # A loss so large that adding 1 changes nothing is still to be the better one.
    step = max(_DIVERGED_STEP, 2 * math.ulp(worst))
    diverged = sorted(
        (e for e in members if e.id not in finite), key=lambda e: (-divergence_step(e), e.id)
    )
    ranks = {
        e.id: min(worst + step * (rank + 1), sys.float_info.max) for rank, e in enumerate(diverged)
    }
    values = finite | ranks
    return [(e.id, values[e.id]) for e in members]


def is_spare(
    evaluation: Evaluation, members: Sequence[Evaluation], valued: Collection[str]
) -> bool:
    """Whether what an evaluation replaces, over however many steps, has a value after all."""
    replaces = {e.id: e.replaces for e in members}
    before = evaluation.replaces
    while before is not None and before not in valued:
        before = replaces.get(before)
    return before is not None


def has_diverged(evaluation: Evaluation) -> bool:
    """Whether the worker itself said that it diverged: of the last attempt, or of the answer's."""
    return evaluation.verdict_kind is VerdictKind.DIVERGED


def divergence_step(evaluation: Evaluation) -> int:
    """Return the step at which an evaluation diverged, 0 where it is not on record."""
    if evaluation.answer is not None:
        return evaluation.answer.step or 0
    last = evaluation.last_attempt
    steps = last.result.get("steps") if last is not None and last.result is not None else None
    return steps if isinstance(steps, int) else 0
