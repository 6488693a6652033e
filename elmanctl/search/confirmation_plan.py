"""Plan of confirmation: the configurations and fresh seeds on which the best lack one; pure."""

from collections.abc import Iterator
from itertools import count, islice

from elmanctl.ledger.payloads import ConfirmationAsked
from elmanctl.ledger.records import (
    CONFIRMATION,
    Evaluation,
    EvaluationPlan,
    confirmation_id,
)
from elmanctl.ledger.run_state import RunState
from elmanctl.search.estimate import by_estimate
from elmanctl.search.repeats import phenotype
from elmanctl.settings import Settings

# The first seed of a confirmation is this much above `train.seed`, far from those of repeats.
SEED_OFFSET = 1_000_000


def due_confirmations(state: RunState, settings: Settings) -> ConfirmationAsked | None:
    """Return the event that asks for the confirmations that the best of a search lack, if any.

    It depends on the ledger and the settings alone: once it is recorded, none is due.
    """
    top, seeds = settings.search.confirm_top, settings.search.confirm_seeds
    fresh = list(islice(_fresh_seeds(state, settings.train.seed), seeds))
    lacking = [
        (evaluation, seed)
        for evaluation in _leading(state, top)
        for seed in fresh
        if seed not in {each.seed for each in state.confirmations_of(evaluation.id)}
    ]
    number = len({name.partition("-")[0] for name in state.members.get(CONFIRMATION, ())})
    plans = tuple(
        EvaluationPlan(
            id=confirmation_id(number, index),
            point=evaluation.point,
            config=evaluation.config,
            lr=evaluation.lr,
            parameters=evaluation.parameters,
            seed=seed,
            confirms=evaluation.id,
        )
        for index, (evaluation, seed) in enumerate(lacking)
    )
    return ConfirmationAsked(evaluations=plans) if plans else None


def _leading(state: RunState, top: int) -> list[Evaluation]:
    """Return the completed evaluations of the `top` best configurations, one of each.

    A configuration that was confirmed stands under the evaluation that was named then.
    """
    known = {_key(state, evaluation): evaluation for evaluation, _ in state.confirmed}
    chosen: dict[str, Evaluation] = {}
    for evaluation in by_estimate(state):
        if len(chosen) >= top:
            break
        key = _key(state, evaluation)
        chosen.setdefault(key, known.get(key, evaluation))
    return list(chosen.values())


def _key(state: RunState, evaluation: Evaluation) -> str:
    return phenotype(state.run, evaluation.config, evaluation.lr)


def _fresh_seeds(state: RunState, seed: int) -> Iterator[int]:
    """Yield the seeds of confirmations in order: none that the search used."""
    used = {each.seed for each in state.evaluations.values() if each.confirms is None}
    return (fresh for fresh in count(seed + SEED_OFFSET) if fresh not in used)
