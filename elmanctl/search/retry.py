"""Retry decisions: the policy applied to the attempts of a run's evaluations so far.

Everything follows from the run's state, so the controller, a requeue and its dry run agree, and a
controller decides the same after a kill as the one before it.
"""

from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping
from typing import Any

from elmanctl.ledger.records import Evaluation, State
from elmanctl.ledger.run_state import RunState
from elmanctl.search.session import Session
from elmanctl.search.workload import attempt_resources, micro_batch_of
from elmanctl.settings import Settings
from elmanctl.verdicts import policy
from elmanctl.verdicts.breaker import FULL_DISK, Failure, Trip, tripped
from elmanctl.verdicts.signature import signature

# The inputs of a decision: the record, the settings, and whether a job can be moved.
_Basis = tuple[Evaluation, Settings, bool]


def decision_on(state: RunState, settings: Settings, evaluation: Evaluation) -> policy.Decision:
    """Return the decision after the newest attempt of an evaluation; the first is always allowed.

    Raises InvalidConfiguration if a retry after a lack of memory no longer fits on its GPU.
    """
    past = _past_attempts(state, evaluation)
    if not past:
        return policy.Decision(close=None)
    fitted = any(map(policy.needs_less, past))
    return policy.decide(
        past, settings.retry, baseline_of(state, settings, evaluation, fitted=fitted)
    )


class Decisions:
    """Decisions on all waiting evaluations, cached while their inputs are the same."""

    def __init__(self, session: Session) -> None:
        self._session = session
        self._made: dict[str, tuple[_Basis, policy.Decision]] = {}

    def waiting(self) -> list[tuple[Evaluation, policy.Decision]]:
        """Return every waiting evaluation, in order, with its decision.

        Raises what `decision_on` raises.
        """
        state, settings = self._session.state, self._session.settings
        moves = can_move(state, settings)
        before, self._made = self._made, {}
        for evaluation in state.waiting_evaluations():
            # All inputs but the resources of recorded submissions, which never change.
            basis = (evaluation, settings, moves)
            made = before.get(evaluation.id)
            if made is None or made[0] != basis:
                made = (basis, decision_on(state, settings, evaluation))
            self._made[evaluation.id] = made
        return [(evaluation, decision) for (evaluation, *_), decision in self._made.values()]


def due_changes(state: RunState, settings: Settings, evaluation: Evaluation) -> Mapping[str, Any]:
    """Return the changes of the policy for a further attempt, even if it does not allow one."""
    past = _past_attempts(state, evaluation)
    baseline = baseline_of(state, settings, evaluation)
    return policy.changes_after(past, settings.retry, baseline)[0]


def baseline_of(
    state: RunState, settings: Settings, evaluation: Evaluation, *, fitted: bool = True
) -> policy.Baseline:
    """Return the resources of an attempt by the settings and by earlier requeues.

    Unless `fitted`, the memory of the GPU does not limit the micro-batch.
    """
    executor = state.run["executor"]
    batch = settings.train.batch_for(evaluation.parameters)
    return policy.Baseline(
        mem_gb=attempt_resources(settings, executor, evaluation.changes).mem_gb,
        batch=batch,
        micro_batch=(fitted and micro_batch_of(state.run, settings, evaluation)) or batch,
        can_move=can_move(state, settings),
    )


def can_move(state: RunState, settings: Settings) -> bool:
    """Whether a job can avoid a bad node: no exclusion had to be ended for want of nodes."""
    if state.run["executor"] == "local" or settings.retry.exclude_min <= 0:
        return False
    return not any(node.readmitted for node in state.excluded_nodes.values())


def deterministic_failures(state: RunState) -> dict[str, list[str]]:
    """Return the failures of code that a retry would only repeat: signature -> evaluations.

    One evaluation met them twice, or several configurations did.  An evaluation that completed
    after all does not count.
    """
    met: dict[str, Counter[str]] = defaultdict(Counter)
    for evaluation in state.evaluations.values():
        if evaluation.state is State.COMPLETED:
            continue
        for attempt in evaluation.attempts:
            verdict = attempt.verdict
            if verdict is not None and policy.rule_of(verdict).group is policy.Group.CODE:
                met[signature(verdict)][evaluation.id] += 1
    return {
        words: list(counted)
        for words, counted in met.items()
        if max(counted.values()) > 1 or _configurations(state, counted) > 1
    }


def _configurations(state: RunState, names: Iterable[str]) -> int:
    return len({repr(sorted(state.evaluations[name].hyperparameters.items())) for name in names})


def last_signature(state: RunState, evaluation: Evaluation) -> str | None:
    """Return the signature of the newest verdict, None if the newest attempt has none."""
    last = _trained(state, evaluation).last_attempt
    return signature(last.verdict) if last is not None and last.verdict is not None else None


def was_cancelled_outside(state: RunState, evaluation: Evaluation) -> bool:
    """Whether an evaluation was cancelled because its job was cancelled from outside."""
    past = _trained(state, evaluation).counted_attempts
    if evaluation.state is not State.CANCELLED or not past:
        return False
    assert past[-1].verdict is not None
    return policy.rule_of(past[-1].verdict).case == policy.FROM_OUTSIDE


def trip(state: RunState, settings: Settings, closed: Iterable[Evaluation]) -> Trip | None:
    """Return why the newest failures stop the search, None if they do not.

    `closed` have just failed for good: if a full disk ended one of them, no replacement is asked,
    even if others completed since.
    """
    verdicts = (evaluation.counted_attempts[-1].verdict for evaluation in closed)
    if any(verdict and policy.rule_of(verdict).group is policy.Group.DISK for verdict in verdicts):
        return FULL_DISK
    row = [_failure(state, name, number) for name, number in state.failures_in_a_row]
    return tripped(row, settings.retry.breaker, can_move=can_move(state, settings))


def _trained(state: RunState, evaluation: Evaluation) -> Evaluation:
    """Return the evaluation that was trained: for an answered repeat, an earlier one."""
    while evaluation.answer is not None:
        evaluation = state.evaluations[evaluation.answer.by]
    return evaluation


def _failure(state: RunState, name: str, number: int) -> Failure:
    attempt = next(a for a in state.evaluations[name].attempts if a.number == number)
    assert attempt.verdict is not None
    return Failure(verdict=attempt.verdict, node=attempt.node)


def _past_attempts(state: RunState, evaluation: Evaluation) -> list[policy.PastAttempt]:
    past = []
    for attempt in evaluation.counted_attempts:
        assert attempt.verdict is not None
        asked = state.submissions[attempt.submission].resources
        rows = (attempt.result or {}).get("micro_batch")
        past.append(
            policy.PastAttempt(
                verdict=attempt.verdict,
                mem_gb=asked.mem_gb,
                micro_batch=rows if isinstance(rows, int) else None,
            )
        )
    return past
