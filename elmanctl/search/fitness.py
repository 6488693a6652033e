"""What the optimizer is told: losses, and for diverged runs a finite value behind all of them.

A failure that is not divergence is never told: it says nothing about the point.
"""

import math
from collections.abc import Sequence

from elmanctl.ledger.records import Evaluation, State, VerdictKind

# Added to the worst loss, so that every diverged run ranks after every completed one.
_DIVERGED_STEP = 1.0


def told_values(evaluations: Sequence[Evaluation]) -> list[tuple[str, float]]:
    """Return (evaluation, value) for those of one generation that the optimizer learns from.

    Completed evaluations tell their loss.  Diverged ones rank behind the worst of them, and
    among themselves a later divergence is better than an earlier one.
    """
    losses = {e.id: e.loss for e in evaluations if e.state is State.COMPLETED}
    finite = {id_: loss for id_, loss in losses.items() if loss is not None and math.isfinite(loss)}
    worst = max(finite.values(), default=0.0)
    diverged = sorted(
        (e for e in evaluations if e.state is State.FAILED and has_diverged(e)),
        key=lambda e: (-divergence_step(e), e.id),
    )
    ranks = {e.id: worst + _DIVERGED_STEP * (rank + 1) for rank, e in enumerate(diverged)}
    values = finite | ranks
    return [(e.id, values[e.id]) for e in evaluations if e.id in values]


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
