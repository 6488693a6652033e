"""The effect of each kind of event on the state of a run."""

from dataclasses import fields, replace
from functools import singledispatch
from typing import Any

from elmanctl.codec import describe, encode
from elmanctl.constants import STOP_RULES
from elmanctl.errors import LedgerCorrupt
from elmanctl.ledger import payloads, records, transitions
from elmanctl.ledger.disk_use import OTHER
from elmanctl.ledger.idle import end_lane, hold_jobs, release_jobs
from elmanctl.ledger.payloads import Payload
from elmanctl.ledger.run_state import Exchange, Note, RunState
from elmanctl.ledger.spending import Spent, cost_of, devices, left_of
from elmanctl.ledger.submissions import Submission, SubmissionIntent, SubmissionState


@singledispatch
def handle(event: Payload, state: RunState, at: str) -> None:
    """Change `state` by an event of the time `at`.

    Raises LedgerCorrupt for an event that cannot follow.
    """
    raise NotImplementedError(f"no handler for {event.event_kind()}")


@handle.register
def _run_created(event: payloads.RunCreated, state: RunState, at: str) -> None:
    state.run = encode(event.run)
    generations = event.run.budget.get("generations")
    if type(generations) is not int:
        raise LedgerCorrupt(
            f"`data.run.budget.generations` must be a whole number, not {describe(generations)}"
        )
    state.generations = generations


@handle.register
def _settings_changed(event: payloads.SettingsChanged, state: RunState, at: str) -> None:
    state.changes.update(event.changes)
    if not STOP_RULES.isdisjoint(event.changes):
        state.ended_by = None


@handle.register
def _run_extended(event: payloads.RunExtended, state: RunState, at: str) -> None:
    if event.generations <= state.generations:
        raise LedgerCorrupt(f"{state.generations} generations are extended to {event.generations}")
    state.generations = event.generations
    state.ended_by = None


@handle.register
def _controller_started(event: payloads.ControllerStarted, state: RunState, at: str) -> None:
    state.controller = {**encode(event), "at": at}
    state.status, state.reason, state.advice = records.RunStatus.RUNNING, None, None


@handle.register
def _points_asked(event: payloads.PointsAsked, state: RunState, at: str) -> None:
    generation = event.generation
    is_new = generation == state.generation + 1
    if not is_new and not 0 <= generation <= state.generation:
        raise LedgerCorrupt(f"generation {generation} is asked after {state.generation}")
    if not is_new and generation not in state.open:
        raise LedgerCorrupt(f"generation {generation} is extended after it was reported")
    if not is_new and event.branch != state.turns.get(generation, 0):
        raise LedgerCorrupt(f"generation {generation} belongs to two branches of the sweep")
    if event.branch:
        state.turns[generation] = event.branch
    for plan in event.evaluations:
        if plan.id in state.evaluations:
            raise LedgerCorrupt(f"{plan.id} is asked twice")
        if plan.confirms is not None:
            raise LedgerCorrupt(f"{plan.id} is a confirmation, and yet the optimizer asked it")
        if plan.reevaluates is not None:
            raise LedgerCorrupt(f"{plan.id} is a re-evaluation, and yet the optimizer asked it")
        if plan.replaces is not None:
            _evaluation(state, plan.replaces)
        if plan.repeats is not None:
            first = _evaluation(state, plan.repeats)
            if first.repeats is not None:
                raise LedgerCorrupt(f"{plan.id} repeats {first.id}, which is a repeat itself")
            state.repeats[first.id] = (*state.repeats.get(first.id, ()), plan.id)
        state.put(records.Evaluation(generation=generation, **_values(plan)))
    state.refused[generation] = state.refused.get(generation, 0) + event.refused
    state.add("refused", event.refused)
    names = tuple(plan.id for plan in event.evaluations)
    state.exchanges.append(Exchange(generation=generation, asked=names, refused=event.refused))
    state.open[generation] = None
    state.generation = max(state.generation, generation)


@handle.register
def _confirmation_asked(event: payloads.ConfirmationAsked, state: RunState, at: str) -> None:
    for plan in event.evaluations:
        if plan.id in state.evaluations:
            raise LedgerCorrupt(f"{plan.id} is asked twice")
        confirmed = _evaluation(state, plan.confirms or "")
        transitions.check_confirmation(plan, confirmed, state.confirmations_of(confirmed.id))
        known = state.confirmations.get(confirmed.id, ())
        state.confirmations[confirmed.id] = (*known, plan.id)
        state.put(records.Evaluation(generation=records.CONFIRMATION, **_values(plan)))


@handle.register
def _reevaluation_asked(event: payloads.ReevaluationAsked, state: RunState, at: str) -> None:
    generation = event.generation
    if generation != state.generation + 1 or state.open:
        raise LedgerCorrupt(f"generation {generation} is asked after {state.generation}")
    for plan in event.evaluations:
        if plan.id in state.evaluations:
            raise LedgerCorrupt(f"{plan.id} is asked twice")
        again = _evaluation(state, plan.reevaluates or "")
        first = _evaluation(state, again.configuration).id
        transitions.check_reevaluation(plan, again, state.same_configuration(first))
        state.repeats[first] = (*state.repeats.get(first, ()), plan.id)
        state.put(records.Evaluation(generation=generation, **_values(plan)))
    state.turns[generation] = records.NO_BRANCH
    state.open[generation] = None
    state.generation = generation


@handle.register
def _optimizer_rebuilt(event: payloads.OptimizerRebuilt, state: RunState, at: str) -> None:
    """Nothing: no state of the optimizer is read from a file."""


@handle.register
def _submission_intended(event: payloads.SubmissionIntended, state: RunState, at: str) -> None:
    submission = Submission(intended_at=at, **_values(event.submission))
    if submission.id in state.submissions:
        raise LedgerCorrupt(f"submission {submission.id} is intended twice")
    state.put_submission(submission)
    hold_jobs(state, submission)
    for task in submission.tasks:
        evaluation = _evaluation(state, task.evaluation)
        state.trained += not evaluation.attempts
        state.put(transitions.submit(evaluation, task, submission.id, at))


@handle.register
def _submission_accepted(event: payloads.SubmissionAccepted, state: RunState, at: str) -> None:
    submission = transitions.answer(
        _submission(state, event.submission),
        SubmissionState.ACCEPTED,
        job_id=event.job_id,
    )
    state.put_submission(submission)
    for task in submission.tasks:
        evaluation = _evaluation(state, task.evaluation)
        own_id = submission.job_of(event.job_id, task.index)
        state.put(transitions.accept(evaluation, task, own_id))


@handle.register
def _submission_failed(
    event: payloads.SubmissionRefused | payloads.SubmissionAbandoned, state: RunState, at: str
) -> None:
    is_refusal = isinstance(event, payloads.SubmissionRefused)
    outcome = SubmissionState.REFUSED if is_refusal else SubmissionState.ABANDONED
    intended = _submission(state, event.submission)
    submission = transitions.answer(intended, outcome, error=event.error)
    state.put_submission(submission)
    release_jobs(state, submission)
    for task in submission.tasks:
        evaluation = _evaluation(state, task.evaluation)
        left = transitions.take_back(evaluation, task)
        state.trained -= bool(evaluation.attempts) and not left.attempts
        state.put(left)


@handle.register
def _attempt_started(event: payloads.AttemptStarted, state: RunState, at: str) -> None:
    evaluation = _evaluation(state, event.evaluation)
    state.put(transitions.start(evaluation, event.attempt, event.node, event.at or at))


@handle.register
def _stop_decided(event: payloads.StopDecided, state: RunState, at: str) -> None:
    evaluation = _evaluation(state, event.evaluation)
    state.put(transitions.decide_stop(evaluation, event.attempt, event.stop, at))


@handle.register
def _attempt_finished(event: payloads.AttemptFinished, state: RunState, at: str) -> None:
    evaluation = _evaluation(state, event.evaluation)
    sizes = event.sizes or {}
    if event.sizes is not None and sum(sizes.values()) != event.size_bytes:
        raise LedgerCorrupt(
            f"`data.sizes` add up to {sum(sizes.values())}, not to {event.size_bytes}"
        )
    finished = transitions.finish(evaluation, event, at)
    state.put(finished)
    attempt = next(each for each in finished.attempts if each.number == event.attempt)
    kind = event.verdict.kind
    submission = _submission(state, attempt.submission)
    used = devices(submission.resources)
    cost = cost_of(attempt, used)
    end_lane(state, submission, attempt.task_index, used, attempt.finished_at)
    state.spent[kind.value] = state.spent.get(kind.value, Spent()) + cost
    if kind is records.VerdictKind.STOPPED:
        state.spared += left_of(attempt, cost)
    if kind in (records.VerdictKind.COMPLETED, records.VerdictKind.STOPPED):
        state.failures_in_a_row.clear()
    else:
        state.failures_in_a_row.append((evaluation.id, event.attempt))
    if event.size_bytes is not None:
        is_first = all(each.size_bytes is None for each in evaluation.attempts)
        state.disk = state.disk.wrote(sizes or {OTHER: event.size_bytes}, new_evaluation=is_first)


@handle.register
def _evaluation_closed(event: payloads.EvaluationClosed, state: RunState, at: str) -> None:
    state.put(transitions.close(_evaluation(state, event.evaluation), event.state))
    _await_report(state, event.evaluation)


@handle.register
def _evaluation_answered(event: payloads.EvaluationAnswered, state: RunState, at: str) -> None:
    found = records.Answer(
        by=_evaluation(state, event.by).id,
        verdict=event.verdict,
        loss=event.loss,
        step=event.step,
        stop=event.stop,
        saved_s=event.saved.elapsed_s,
        saved_device_s=event.saved.device_s,
    )
    evaluation = _evaluation(state, event.evaluation)
    state.put(transitions.settle_repeat(evaluation, event.state, found))
    state.answered += 1
    state.saved += _saved(found)
    _await_report(state, evaluation.id)


def _await_report(state: RunState, name: str) -> None:
    """Note that an evaluation is decided, and that the optimizer does not know it."""
    evaluation = _evaluation(state, name)
    is_asked = evaluation.confirms is None and evaluation.reevaluates is None
    if is_asked and name not in state.reported:
        state.unreported[name] = None


def _saved(answer: records.Answer) -> Spent:
    return Spent(attempts=1, elapsed_s=answer.saved_s, device_s=answer.saved_device_s)


@handle.register
def _evaluation_reopened(event: payloads.EvaluationReopened, state: RunState, at: str) -> None:
    evaluation = _evaluation(state, event.evaluation)
    if evaluation.answer is not None:
        # It may be trained now, or be answered another time.
        state.answered -= 1
        state.saved -= _saved(evaluation.answer)
    state.put(transitions.reopen(evaluation, event.changes))
    state.unreported.pop(evaluation.id, None)
    state.failures_in_a_row.clear()


@handle.register
def _node_excluded(event: payloads.NodeExcluded, state: RunState, at: str) -> None:
    state.excluded_nodes[event.node] = records.ExcludedNode(
        node=event.node, at=at, until=event.until, reason=event.reason
    )


@handle.register
def _node_readmitted(event: payloads.NodeReadmitted, state: RunState, at: str) -> None:
    excluded = state.excluded_nodes.get(event.node)
    if excluded is None:
        raise LedgerCorrupt(f"node {describe(event.node)} is readmitted and was not excluded")
    state.excluded_nodes[event.node] = replace(excluded, until=at, readmitted=True)


@handle.register
def _value_reported(event: payloads.ValueReported, state: RunState, at: str) -> None:
    evaluation = _evaluation(state, event.evaluation)
    if not evaluation.state.is_finished:
        raise LedgerCorrupt(f"{evaluation.id} is reported before it is decided")
    _report(state, evaluation.generation, ((evaluation.id, event.value),))


@handle.register
def _generation_told(event: payloads.GenerationTold, state: RunState, at: str) -> None:
    generation = event.generation
    if generation not in state.open:
        raise LedgerCorrupt(f"generation {generation} is reported before it was asked, or twice")
    members = state.members.get(generation, ())
    # The study's optimizer learns from invalid points, too, of which there are no evaluations.
    if event.told or not members:
        _report(state, generation, event.told)
    # Also those of an asynchronous search, which were reported one by one.
    state.told[generation] = list(event.told) or [
        (name, state.reported[name]) for name in members if name in state.reported
    ]
    for name in members:
        state.unreported.pop(name, None)
    del state.open[generation]
    state.add("generations_told", 1)


def _report(state: RunState, generation: int, told: tuple[tuple[str, float], ...]) -> None:
    """Note the values that the optimizer of a generation learns at once."""
    for name, value in told:
        if _evaluation(state, name).confirms is not None:
            raise LedgerCorrupt(f"{name} is a confirmation, and yet it is reported")
        if _evaluation(state, name).reevaluates is not None:
            raise LedgerCorrupt(f"{name} is a re-evaluation, and yet it is reported")
        if name in state.reported:
            raise LedgerCorrupt(f"{name} is reported twice")
        state.reported[name] = value
        state.unreported.pop(name, None)
    state.exchanges.append(Exchange(generation=generation, told=told))


@handle.register
def _search_ended(event: payloads.SearchEnded, state: RunState, at: str) -> None:
    if state.generation < 0 or state.ended_by is not None:
        raise LedgerCorrupt("the search is ended before it began, or twice")
    state.ended_by = event.reason


@handle.register
def _run_paused(event: payloads.RunPaused, state: RunState, at: str) -> None:
    state.status, state.reason, state.advice = records.RunStatus.PAUSED, event.reason, event.hint
    state.failures_in_a_row.clear()


@handle.register
def _run_interrupted(event: payloads.RunInterrupted, state: RunState, at: str) -> None:
    state.status, state.reason, state.advice = records.RunStatus.INTERRUPTED, None, None


@handle.register
def _run_finished(event: payloads.RunFinished, state: RunState, at: str) -> None:
    state.status, state.reason, state.advice = records.RunStatus.FINISHED, event.reason, None


@handle.register
def _run_cancelled(event: payloads.RunCancelled, state: RunState, at: str) -> None:
    state.status, state.reason, state.advice = records.RunStatus.CANCELLED, None, None


@handle.register
def _request_applied(event: payloads.RequestApplied, state: RunState, at: str) -> None:
    if event.request in state.applied_requests:
        raise LedgerCorrupt(f"request {event.request} is applied twice")
    state.applied_requests[event.request] = {"command": event.command, "answer": event.answer}


@handle.register
def _cleaned(event: payloads.Cleaned, state: RunState, at: str) -> None:
    owners = {event.evaluation or "": event.freed_bytes}
    if event.evaluations is not None:
        owners = dict(event.evaluations)
        if event.evaluation is not None or sum(owners.values()) != event.freed_bytes:
            raise LedgerCorrupt("`data.evaluations` do not add up to `data.freed_bytes`")
    for name, freed in owners.items():
        state.free(_evaluation(state, name).id if name else "", freed)
    if event.evaluations is not None or event.evaluation is not None:
        state.disk = state.disk.freed(event.kind, event.freed_bytes)


@handle.register
def _note(event: payloads.Note, state: RunState, at: str) -> None:
    state.notes.append(Note(at=at, text=event.text))
    state.add("notes", 1)


def _values(record: records.EvaluationPlan | SubmissionIntent) -> dict[str, Any]:
    return {each.name: getattr(record, each.name) for each in fields(record)}


def _evaluation(state: RunState, name: str) -> records.Evaluation:
    evaluation = state.evaluations.get(name)
    if evaluation is None:
        raise LedgerCorrupt(f"there is no evaluation {describe(name)}")
    return evaluation


def _submission(state: RunState, name: str) -> Submission:
    submission = state.submissions.get(name)
    if submission is None:
        raise LedgerCorrupt(f"there is no submission {describe(name)}")
    return submission
