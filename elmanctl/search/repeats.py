"""Points that were evaluated before: the same configuration is not paid for twice.

The optimizer asks whole numbers, so it often asks the same model again.  Such a point becomes an
evaluation like any other, with a note of the first one of its configuration.  With the same
training seed it would give the same loss: it ends as the earlier one ended, without a job.  A
search that asks for noise estimates gives it the next seed, and it is trained.
"""

import json
from collections.abc import Mapping
from typing import Any

from elmanctl.ledger.payloads import Cost, EvaluationAnswered
from elmanctl.ledger.records import Evaluation, State
from elmanctl.ledger.run_state import RunState
from elmanctl.ledger.spending import Spent, cost_of
from elmanctl.search.fitness import feedback_on, last_step
from elmanctl.verdicts.policy import Feedback


def phenotype(run: Mapping[str, Any], config: Mapping[str, object], lr: float) -> str:
    """Return what a worker would train, apart from the seed, as a text of one spelling.

    `run` is the ledger's record of the run.  Micro-batches are no part of it: they decide how
    much memory a step takes, not what it computes.
    """
    parts = {
        "model": run["model"],
        "config": dict(config),
        "lr": lr,
        "protocol": run["protocol"],
        "data": run["data"].get("sha256"),
    }
    return json.dumps(parts, sort_keys=True, separators=(",", ":"), allow_nan=False)


class Known:
    """The first evaluation of every configuration of a run, kept in step with its ledger."""

    def __init__(self, state: RunState) -> None:
        self._run = state.run
        self._first: dict[str, str] = {}
        self._seen = 0
        self.update(state)

    def update(self, state: RunState) -> None:
        """Take in the evaluations that were asked since the last time."""
        for evaluation in list(state.evaluations.values())[self._seen :]:
            self.first(evaluation.config, evaluation.lr, evaluation.id)
        self._seen = len(state.evaluations)

    def first(self, config: Mapping[str, object], lr: float, new: str) -> str | None:
        """Return the first evaluation of a configuration; None where that is `new` itself."""
        known = self._first.setdefault(phenotype(self._run, config, lr), new)
        return None if known == new else known


def answering(state: RunState, evaluation: Evaluation) -> Evaluation | None:
    """Return the earlier evaluation that this one ends as; it may not have ended yet itself.

    None for one that is trained: no earlier one is of its configuration and seed, or all of them
    failed and it was put back in the queue by hand.
    """
    if evaluation.repeats is None:
        return None
    same = [
        each
        for each in state.same_configuration(evaluation.repeats, before=evaluation.id)
        if each.seed == evaluation.seed and each.answer is None
    ]
    if not same:
        return None
    chosen = min(same, key=_preference)
    is_asked_for = "since_attempt" in evaluation.changes
    return None if is_asked_for and _has_failed(chosen) else chosen


def answer_from(state: RunState, evaluation: Evaluation, source: Evaluation) -> EvaluationAnswered:
    """Return the event that ends a repeat as `source` ended, all that is needed of it copied."""
    last = source.last_attempt
    cost = Spent() if last is None else cost_of(last, state.submissions[last.submission].resources)
    return EvaluationAnswered(
        evaluation=evaluation.id,
        by=source.id,
        state=source.state,
        saved=Cost(elapsed_s=cost.elapsed_s, device_s=cost.device_s),
        verdict=source.verdict_kind,
        loss=source.loss if source.state is State.COMPLETED else None,
        step=last_step(source) if feedback_on(source) is Feedback.LAST else None,
    )


def _preference(evaluation: Evaluation) -> int:
    """Order those that could answer: a loss, then what may still bring one, then a rank."""
    if evaluation.state is State.COMPLETED:
        return 0
    if not evaluation.state.is_finished:
        return 1
    return 2 if feedback_on(evaluation) is Feedback.LAST else 3


def _has_failed(evaluation: Evaluation) -> bool:
    return evaluation.state.is_finished and evaluation.state is not State.COMPLETED
