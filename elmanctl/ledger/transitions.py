"""Pure transitions of evaluations and submissions, which refuse impossible events."""

from collections.abc import Iterable, Mapping
from dataclasses import replace

from elmanctl.errors import LedgerCorrupt
from elmanctl.ledger.payloads import AttemptFinished
from elmanctl.ledger.records import (
    Answer,
    Attempt,
    Evaluation,
    EvaluationPlan,
    State,
    Stop,
    VerdictKind,
)
from elmanctl.ledger.submissions import Submission, SubmissionState, Task


def submit(evaluation: Evaluation, task: Task, submission: str, at: str) -> Evaluation:
    """Add the attempt that a submission intends."""
    if evaluation.state.is_finished:
        raise LedgerCorrupt(f"{evaluation.id} is submitted though it is {evaluation.state}")
    if evaluation.has_live_attempt:
        raise LedgerCorrupt(f"{evaluation.id} is submitted while an attempt of it is live")
    expected = evaluation.attempts[-1].number + 1 if evaluation.attempts else 1
    if task.attempt != expected:
        raise LedgerCorrupt(
            f"{evaluation.id} is submitted as attempt {task.attempt}; the next one is {expected}"
        )
    attempt = Attempt(
        number=task.attempt, submission=submission, task_index=task.index, submitted_at=at
    )
    return replace(evaluation, state=State.SUBMITTED, attempts=(*evaluation.attempts, attempt))


def answer(
    submission: Submission,
    state: SubmissionState,
    *,
    job_id: str | None = None,
    error: str | None = None,
) -> Submission:
    """Record what became of an intended submission."""
    if submission.state is not SubmissionState.INTENDED:
        raise LedgerCorrupt(
            f"submission {submission.id} is {state} though it is {submission.state}"
        )
    return replace(submission, state=state, job_id=job_id, error=error)


def accept(evaluation: Evaluation, task: Task, job_id: str) -> Evaluation:
    """Give an attempt the id of its job."""
    return _with(evaluation, replace(_attempt(evaluation, task.attempt), job_id=job_id))


def take_back(evaluation: Evaluation, task: Task) -> Evaluation:
    """Remove an attempt that never became a job; one that has finished stays on record."""
    if _attempt(evaluation, task.attempt).state.is_finished:
        return evaluation
    rest = tuple(kept for kept in evaluation.attempts if kept.number != task.attempt)
    state = evaluation.state if evaluation.state.is_finished else State.CREATED
    return replace(evaluation, state=state, attempts=rest)


def start(evaluation: Evaluation, number: int, node: str | None, at: str) -> Evaluation:
    """Record that an attempt runs; a job that the scheduler put back may start again."""
    attempt = _unfinished(evaluation, number)
    changed = _with(
        evaluation,
        replace(attempt, state=State.RUNNING, node=node or attempt.node, started_at=at),
    )
    return changed if changed.state.is_finished else replace(changed, state=State.RUNNING)


def decide_stop(evaluation: Evaluation, number: int, stop: Stop, at: str) -> Evaluation:
    """Record the decision to end an attempt early, which is made once."""
    attempt = _unfinished(evaluation, number)
    if attempt.stop is not None:
        raise LedgerCorrupt(f"{evaluation.id} attempt {number} is stopped twice")
    if evaluation.confirms is not None:
        raise LedgerCorrupt(f"{evaluation.id} is a confirmation, and yet it is stopped")
    if evaluation.reevaluates is not None:
        raise LedgerCorrupt(f"{evaluation.id} is a re-evaluation, and yet it is stopped")
    return _with(evaluation, replace(attempt, stop=stop, stop_at=at))


def finish(evaluation: Evaluation, ending: AttemptFinished, at: str) -> Evaluation:
    """Record how an attempt ended; what follows for the evaluation is a later event."""
    number = ending.attempt
    attempt = _unfinished(evaluation, number)
    state = _STATE_OF.get(ending.verdict.kind, State.FAILED)
    if state is State.COMPLETED and ending.result is None:
        raise LedgerCorrupt(f"{evaluation.id} attempt {number} is completed without a result")
    if state is State.STOPPED and attempt.stop is None:
        raise LedgerCorrupt(f"{evaluation.id} attempt {number} is stopped without a decision")
    changed = _with(
        evaluation,
        replace(
            attempt,
            state=state,
            node=ending.node or attempt.node,
            finished_at=at,
            elapsed_s=ending.elapsed_s,
            verdict=ending.verdict,
            result=ending.result,
            size_bytes=ending.size_bytes,
            sizes=ending.sizes or {},
        ),
    )
    return changed if changed.state.is_finished else replace(changed, state=State.CREATED)


def close(evaluation: Evaluation, state: State) -> Evaluation:
    """End an evaluation; only a cancelled one may still have a live attempt."""
    if not state.is_finished:
        raise LedgerCorrupt(f"{evaluation.id} is closed as {state}")
    if evaluation.state.is_finished:
        raise LedgerCorrupt(f"{evaluation.id} is closed though it is {evaluation.state}")
    if state is not State.CANCELLED and evaluation.has_live_attempt:
        raise LedgerCorrupt(f"{evaluation.id} is closed as {state} while an attempt of it is live")
    if state is State.COMPLETED and evaluation.loss is None:
        raise LedgerCorrupt(f"{evaluation.id} is closed as completed without a loss")
    if state is State.STOPPED and evaluation.stop is None:
        raise LedgerCorrupt(f"{evaluation.id} is closed as stopped without a decision")
    return replace(evaluation, state=state)


def settle_repeat(evaluation: Evaluation, state: State, found: Answer) -> Evaluation:
    """End a repeat without training it, as the earlier evaluation ended."""
    if evaluation.repeats is None:
        raise LedgerCorrupt(f"{evaluation.id} is answered though it repeats no other")
    if evaluation.has_live_attempt:
        raise LedgerCorrupt(f"{evaluation.id} is answered while an attempt of it is live")
    return close(replace(evaluation, answer=found), state)


def check_confirmation(
    plan: EvaluationPlan, confirmed: Evaluation, others: Iterable[EvaluationPlan]
) -> None:
    """Raise LedgerCorrupt unless `plan` trains a completed evaluation again, on another seed.

    `others` are the confirmations of that evaluation so far.
    """
    if confirmed.confirms is not None or confirmed.state is not State.COMPLETED:
        raise LedgerCorrupt(f"{plan.id} confirms {confirmed.id}, which the search did not complete")
    if plan.hyperparameters != confirmed.hyperparameters:
        raise LedgerCorrupt(f"{plan.id} confirms {confirmed.id} with another configuration")
    if plan.seed == confirmed.seed or plan.seed in {other.seed for other in others}:
        raise LedgerCorrupt(f"{plan.id} confirms {confirmed.id} on seed {plan.seed} once more")


def check_reevaluation(
    plan: EvaluationPlan, again: Evaluation, same: Iterable[EvaluationPlan]
) -> None:
    """Raise LedgerCorrupt unless `plan` trains a completed evaluation again, on another seed.

    `same` are the evaluations of its configuration so far.
    """
    if again.confirms is not None or again.state is not State.COMPLETED:
        raise LedgerCorrupt(f"{plan.id} re-evaluates {again.id}, which did not complete")
    if plan.hyperparameters != again.hyperparameters or plan.repeats != again.configuration:
        raise LedgerCorrupt(f"{plan.id} re-evaluates {again.id} with another configuration")
    if plan.seed in {other.seed for other in same}:
        raise LedgerCorrupt(f"{plan.id} re-evaluates {again.id} on seed {plan.seed} once more")


def reopen(evaluation: Evaluation, changes: Mapping[str, object]) -> Evaluation:
    """Open a finished evaluation for another attempt."""
    if not evaluation.state.is_finished:
        raise LedgerCorrupt(f"{evaluation.id} is reopened though it is {evaluation.state}")
    if evaluation.has_live_attempt:
        raise LedgerCorrupt(f"{evaluation.id} is reopened while an attempt of it is live")
    merged = {**evaluation.changes, **changes}
    return replace(evaluation, state=State.CREATED, changes=merged, answer=None)


_STATE_OF = {
    VerdictKind.COMPLETED: State.COMPLETED,
    VerdictKind.STOPPED: State.STOPPED,
    VerdictKind.CANCELLED: State.CANCELLED,
}


def _attempt(evaluation: Evaluation, number: int) -> Attempt:
    for attempt in reversed(evaluation.attempts):
        if attempt.number == number:
            return attempt
    raise LedgerCorrupt(f"{evaluation.id} has no attempt {number}")


def _unfinished(evaluation: Evaluation, number: int) -> Attempt:
    attempt = _attempt(evaluation, number)
    if attempt.state.is_finished:
        raise LedgerCorrupt(f"{evaluation.id} attempt {number} is already {attempt.state}")
    return attempt


def _with(evaluation: Evaluation, changed: Attempt) -> Evaluation:
    attempts = tuple(
        changed if attempt.number == changed.number else attempt for attempt in evaluation.attempts
    )
    return replace(evaluation, attempts=attempts)
