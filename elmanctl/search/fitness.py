"""Fitness values that the optimizer learns from evaluations, as the policy table decides.

`verdicts.policy` says what an evaluation is worth by the verdict that closed it: its loss, a place
behind all losses, or nothing.  A failure that says nothing about the point never reaches the
optimizer.
"""

import math
import sys
from collections.abc import Callable, Collection, Sequence

from elmanctl.constants import LOOKS
from elmanctl.ledger.records import Evaluation, Verdict
from elmanctl.ledger.run_state import RunState
from elmanctl.run.progress import read_curve
from elmanctl.verdicts.policy import Feedback, rule_of

# Added to the worst loss, so that whatever is ranked last ranks after every loss.
_RANK_STEP = 1.0


def fitness_values(
    evaluations: Sequence[Evaluation],
    failed_loss: float | None = None,
    *,
    worst_before: float = 0.0,
) -> list[tuple[str, float]]:
    """Return (evaluation, fitness) for the members of one generation that have a fitness.

    With `failed_loss` each has one: its loss or predicted loss, or that where it has none or a
    larger one.  The rest is about a search without it.

    Evaluations that were stopped early have a `predicted_loss`.  Those that are ranked last come
    behind the worst value of the others, or without any behind `worst_before`; among themselves a
    later end is better than an earlier one.  Of an evaluation and its replacements only the first
    with a fitness counts: the optimizer never learns more values than it asked for at first.
    """
    if failed_loss is not None:
        known = [(e.id, _known_loss(e, evaluations)) for e in evaluations]
        return [(name, _at_most(loss, failed_loss)) for name, loss in known]
    feedback = {e.id: feedback_on(e) for e in evaluations}
    losses = {e.id: e.loss for e in evaluations if feedback[e.id] is Feedback.LOSS}
    finite = {id_: loss for id_, loss in losses.items() if loss is not None and math.isfinite(loss)}
    finite |= {
        e.id: predicted_loss(e, evaluations)
        for e in evaluations
        if feedback[e.id] is Feedback.PREDICTION
    }
    valued = finite.keys() | {id_ for id_, kind in feedback.items() if kind is Feedback.LAST}
    members = [e for e in evaluations if e.id in valued and not is_spare(e, evaluations, valued)]
    worst = max((finite[e.id] for e in members if e.id in finite), default=worst_before)
    last = sorted((e for e in members if e.id not in finite), key=lambda e: (-last_step(e), e.id))
    behind = last_ranks(worst, len(last))
    values = finite | {e.id: value for e, value in zip(last, behind, strict=True)}
    return [(e.id, values[e.id]) for e in members]


def fitness_value(
    evaluation: Evaluation,
    members: Sequence[Evaluation],
    *,
    worst: Callable[[], float],
    failed_loss: float | None = None,
) -> float | None:
    """Return the fitness of one evaluation of an asynchronous search; None if it has none.

    `members` are those of its generation.  One that is ranked last comes behind `worst`, which is
    asked for such a one alone; with `failed_loss` each has a fitness as in `fitness_values`.
    """
    if failed_loss is not None:
        return _at_most(_known_loss(evaluation, members), failed_loss)
    feedback = feedback_on(evaluation)
    if feedback is Feedback.LOSS and evaluation.loss is not None and math.isfinite(evaluation.loss):
        return evaluation.loss
    if feedback is Feedback.PREDICTION:
        return predicted_loss(evaluation, members)
    return last_ranks(worst(), 1)[0] if feedback is Feedback.LAST else None


def worst_reported(state: RunState, branch: int, newest: int | None = None) -> float:
    """Return the largest value that the optimizer of a branch knows, 0 where it knows none.

    With `newest` it is that among so many of the newest.  What was ranked last does not count.
    """
    values: list[float] = []
    for name in reversed(state.reported):
        evaluation = state.evaluations[name]
        if state.turns.get(evaluation.generation, 0) != branch:
            continue
        if feedback_on(evaluation) is not Feedback.LAST:
            values.append(state.reported[name])
            if len(values) == newest:
                break
    return max(values, default=0.0)


def last_ranks(worst: float, count: int) -> list[float]:
    """Return the fitness of `count` evaluations that are ranked last, behind the worst loss."""
    # A loss so large that adding 1 changes nothing must still be the better one.
    step = max(_RANK_STEP, 2 * math.ulp(worst))
    return [min(worst + step * (rank + 1), sys.float_info.max) for rank in range(count)]


def _at_most(loss: float | None, limit: float) -> float:
    return limit if loss is None or not loss < limit else loss


def _known_loss(evaluation: Evaluation, members: Sequence[Evaluation]) -> float | None:
    is_stopped = feedback_on(evaluation) is Feedback.PREDICTION
    return predicted_loss(evaluation, members) if is_stopped else evaluation.loss


def predicted_loss(evaluation: Evaluation, members: Sequence[Evaluation]) -> float:
    """Return what the optimizer learns from an evaluation that was stopped early.

    It is the final loss that was predicted then, but never better than that of a member of its
    generation which was ahead of it where it was stopped, and went on to complete.
    """
    stop = evaluation.stop
    assert stop is not None, "what was stopped has the decision on record"
    look = round(stop.share * LOOKS)
    ahead = (e.loss for e in members if (at := loss_at(e, look)) is not None and at <= stop.loss)
    return max([stop.predicted, *(loss for loss in ahead if loss is not None)])


def loss_at(evaluation: Evaluation, look: int) -> float | None:
    """Return the training loss at a look of an evaluation with a result, None if unknown."""
    curve = curve_of(evaluation)
    return curve[look - 1] if 0 < look <= len(curve) else None


def curve_of(evaluation: Evaluation) -> tuple[float | None, ...]:
    """Return the training losses at the looks of the newest result, empty without them."""
    last = evaluation.last_attempt
    return read_curve(None if last is None or last.result is None else last.result.get("curve"))


def feedback_on(evaluation: Evaluation) -> Feedback:
    """Return what the optimizer learns from an evaluation, by the rule of its last verdict.

    Nothing until that verdict closed the evaluation: it may be retried, or was cancelled since.
    """
    answer, last = evaluation.answer, evaluation.last_attempt
    if answer is not None:
        verdict = None if answer.verdict is None else Verdict(kind=answer.verdict)
    else:
        verdict = None if last is None else last.verdict
    if verdict is None:
        return Feedback.NOTHING
    rule = rule_of(verdict)
    return rule.feedback if evaluation.state is rule.closes_as else Feedback.NOTHING


def is_spare(
    evaluation: Evaluation, members: Sequence[Evaluation], valued: Collection[str]
) -> bool:
    """Whether what an evaluation replaces, over however many steps, has a fitness after all."""
    replaces = {e.id: e.replaces for e in members}
    before = evaluation.replaces
    while before is not None and before not in valued:
        before = replaces.get(before)
    return before is not None


def last_step(evaluation: Evaluation) -> int:
    """Return the training step at which an evaluation ended, 0 where it is not on record."""
    if evaluation.answer is not None:
        return evaluation.answer.step or 0
    last = evaluation.last_attempt
    steps = last.result.get("steps") if last is not None and last.result is not None else None
    return steps if isinstance(steps, int) else 0
