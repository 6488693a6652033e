"""Repeats: dedupe evaluations of the same configuration, so that none is trained twice.

On integer axes the optimizer often asks the same model again.  A repeat is an evaluation like any
other that names the first one of its configuration.  With the same seed it would give the same
loss, so it ends as the earlier one did, without a job.  With `search.repeats` at `reseed` it gets
the next seed and is trained, as an estimate of noise; at `again` it is trained on the same seed.
"""

import json
from collections.abc import Mapping
from itertools import islice
from typing import Any

from elmanctl.constants import AGAIN
from elmanctl.ledger.payloads import Cost, EvaluationAnswered
from elmanctl.ledger.records import Evaluation, State
from elmanctl.ledger.run_state import RunState
from elmanctl.ledger.spending import Spent, cost_of, devices
from elmanctl.search.costs import effective_setting
from elmanctl.search.fitness import feedback_on, last_step
from elmanctl.search.session import Session
from elmanctl.verdicts.policy import Feedback


def phenotype(run: Mapping[str, Any], config: Mapping[str, object], lr: float) -> str:
    """Return a canonical text of what a worker would train, apart from the seed.

    `run` is the ledger's record of the run.  Micro-batches are left out: they change the memory of
    a step, not its result.
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
        """Add the evaluations that are new since the last update."""
        new = islice(reversed(state.evaluations.values()), len(state.evaluations) - self._seen)
        for evaluation in reversed(list(new)):
            self.first(evaluation.config, evaluation.lr, evaluation.id)
        self._seen = len(state.evaluations)

    def first(self, config: Mapping[str, object], lr: float, new: str) -> str | None:
        """Return the first evaluation of a configuration; None where that is `new` itself."""
        known = self._first.setdefault(phenotype(self._run, config, lr), new)
        return None if known == new else known


def answering(state: RunState, evaluation: Evaluation) -> Evaluation | None:
    """Return the earlier evaluation that answers this one, finished or not.

    None if this one is trained itself: no other has its configuration and seed, or all those
    failed and this one was requeued by hand.
    """
    if evaluation.repeats is None or effective_setting(state, "search.repeats") == AGAIN:
        return None
    same = [
        each
        for each in state.same_configuration(evaluation.repeats, before=evaluation.id)
        if each.seed == evaluation.seed and each.answer is None
    ]
    if not same:
        return None
    chosen = min(same, key=_preference)
    is_requeued = "since_attempt" in evaluation.changes
    has_failed = chosen.state.is_finished and chosen.state is not State.COMPLETED
    return None if is_requeued and has_failed else chosen


def answer_repeats(session: Session) -> None:
    """Answer the repeats of finished evaluations, without a job."""
    state = session.state
    for evaluation in state.waiting_evaluations():
        source = answering(state, evaluation)
        if source is not None and source.state.is_finished:
            session.record(answer_from(state, evaluation, source))


def answer_from(state: RunState, evaluation: Evaluation, source: Evaluation) -> EvaluationAnswered:
    """Return the event that ends a repeat as `source` ended."""
    last = source.last_attempt
    cost = Spent()
    if last is not None:
        cost = cost_of(last, devices(state.submissions[last.submission].resources))
    return EvaluationAnswered(
        evaluation=evaluation.id,
        by=source.id,
        state=source.state,
        saved=Cost(elapsed_s=cost.elapsed_s, device_s=cost.device_s),
        verdict=source.verdict_kind,
        loss=source.loss if source.state is State.COMPLETED else None,
        step=last_step(source) if feedback_on(source) is Feedback.LAST else None,
        stop=source.stop if source.state is State.STOPPED else None,
    )


def _preference(evaluation: Evaluation) -> int:
    """Return the sort key of a possible answer: a loss, an open one, then other fitness values."""
    if evaluation.state is State.COMPLETED:
        return 0
    if not evaluation.state.is_finished:
        return 1
    return 3 if feedback_on(evaluation) is Feedback.NOTHING else 2
