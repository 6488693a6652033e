"""What each kind of event does to the state of a run."""

from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import TypeAlias

from elmanctl.errors import LedgerCorrupt
from elmanctl.ledger import transitions
from elmanctl.ledger.disk_use import OTHER
from elmanctl.ledger.encoding import (
    decode_evaluation,
    decode_member,
    decode_run,
    decode_submission,
    decode_verdict,
)
from elmanctl.ledger.fields import Fields, as_number, as_text, describe
from elmanctl.ledger.records import (
    Answer,
    Evaluation,
    ExcludedNode,
    RunStatus,
    State,
    Submission,
    SubmissionState,
    VerdictKind,
)
from elmanctl.ledger.run_state import Note, RunState
from elmanctl.ledger.shared_keys import SharedKeys
from elmanctl.ledger.spending import Spent, cost_of
from elmanctl.ledger.transitions import Ending

Handler: TypeAlias = Callable[[RunState, Fields, str], None]


def _run_created(state: RunState, fields: Fields, at: str) -> None:
    state.run = decode_run(fields.mapping("run"), "data.run")
    with Fields(state.run["budget"], "data.run.budget") as budget:
        state.generations = budget.whole("generations")
        budget.optional_text("params")


def _settings_changed(state: RunState, fields: Fields, at: str) -> None:
    state.changes.update(fields.mapping("changes"))


def _run_extended(state: RunState, fields: Fields, at: str) -> None:
    generations = fields.whole("generations")
    if generations <= state.generations:
        raise LedgerCorrupt(f"{state.generations} generations are extended to {generations}")
    state.generations = generations


def _controller_started(state: RunState, fields: Fields, at: str) -> None:
    state.controller = {"host": fields.text("host"), "pid": fields.whole("pid"), "at": at}
    for name in ("folder", "clusters"):
        told = fields.optional_text(name)
        if told is not None:
            state.controller[name] = told
    state.status, state.reason, state.advice = RunStatus.RUNNING, None, None


def _points_asked(state: RunState, fields: Fields, at: str) -> None:
    generation = fields.whole("generation")
    if generation not in (max(0, state.generation), state.generation + 1):
        raise LedgerCorrupt(f"generation {generation} is asked after {state.generation}")
    if generation in state.told:
        raise LedgerCorrupt(f"generation {generation} is asked for more after it was told")
    for path, item in fields.items("evaluations"):
        evaluation = decode_evaluation(item, path, generation=generation)
        if evaluation.id in state.evaluations:
            raise LedgerCorrupt(f"{evaluation.id} is asked twice")
        if evaluation.replaces is not None:
            _evaluation(state, evaluation.replaces)
        if evaluation.repeats is not None:
            first = _evaluation(state, evaluation.repeats)
            if first.repeats is not None:
                raise LedgerCorrupt(f"{evaluation.id} repeats {first.id}, which is a repeat itself")
            state.repeats[first.id] = (*state.repeats.get(first.id, ()), evaluation.id)
        state.put(evaluation)
    refused = fields.whole("refused")
    state.refused[generation] = state.refused.get(generation, 0) + refused
    state.add("refused", refused)
    _optimizer_rebuilt(state, fields, at)
    state.generation = generation


def _optimizer_rebuilt(state: RunState, fields: Fields, at: str) -> None:
    with Fields(fields.mapping("optimizer"), "data.optimizer") as optimizer:
        state.optimizer_file = {"file": optimizer.text("file"), "sha256": optimizer.text("sha256")}


def _submission_intended(state: RunState, fields: Fields, at: str) -> None:
    submission = decode_submission(fields.mapping("submission"), "data.submission", intended_at=at)
    if submission.id in state.submissions:
        raise LedgerCorrupt(f"submission {submission.id} is intended twice")
    state.put_submission(submission)
    for task in submission.tasks:
        evaluation = _evaluation(state, task.evaluation)
        state.trained += not evaluation.attempts
        state.put(transitions.submit(evaluation, task, submission.id, at))


def _submission_accepted(state: RunState, fields: Fields, at: str) -> None:
    fields.flag("adopted")
    job_id = fields.text("job_id")
    submission = transitions.answer(
        _submission(state, fields.text("submission")), SubmissionState.ACCEPTED, job_id=job_id
    )
    state.put_submission(submission)
    for task in submission.tasks:
        evaluation = _evaluation(state, task.evaluation)
        own_id = submission.job_of(job_id, task.index)
        state.put(transitions.accept(evaluation, task, own_id))


def _submission_ended(outcome: SubmissionState) -> Handler:
    def ended(state: RunState, fields: Fields, at: str) -> None:
        submission = transitions.answer(
            _submission(state, fields.text("submission")), outcome, error=fields.text("error")
        )
        state.put_submission(submission)
        for task in submission.tasks:
            evaluation = _evaluation(state, task.evaluation)
            left = transitions.take_back(evaluation, task)
            state.trained -= bool(evaluation.attempts) and not left.attempts
            state.put(left)

    return ended


def _attempt_started(state: RunState, fields: Fields, at: str) -> None:
    evaluation = _evaluation(state, fields.text("evaluation"))
    state.put(
        transitions.start(
            evaluation,
            fields.whole("attempt"),
            fields.optional_text("node"),
            fields.optional_text("at") or at,
        )
    )


def _attempt_finished(state: RunState, fields: Fields, at: str) -> None:
    evaluation = _evaluation(state, fields.text("evaluation"))
    size_bytes, sizes = _sizes(fields)
    result = fields.optional_mapping("result")
    ending = Ending(
        verdict=decode_verdict(fields.mapping("verdict"), "data.verdict"),
        result=None if result is None else SharedKeys(result),
        size_bytes=size_bytes,
        sizes=sizes,
        node=fields.optional_text("node"),
        elapsed_s=fields.optional_number("elapsed_s"),
    )
    number = fields.whole("attempt")
    finished = transitions.finish(evaluation, number, ending, at)
    state.put(finished)
    attempt = next(each for each in finished.attempts if each.number == number)
    kind = ending.verdict.kind.value
    cost = cost_of(attempt, _submission(state, attempt.submission).resources)
    state.spent[kind] = state.spent.get(kind, Spent()) + cost
    if ending.verdict.kind is VerdictKind.COMPLETED:
        state.failures_in_a_row.clear()
    else:
        state.failures_in_a_row.append((evaluation.id, number))
    if size_bytes is not None:
        is_first = all(each.size_bytes is None for each in evaluation.attempts)
        state.disk = state.disk.wrote(sizes or {OTHER: size_bytes}, new_evaluation=is_first)


def _sizes(fields: Fields) -> tuple[int | None, Mapping[str, int]]:
    """Return what an attempt left on disk, and the same by category where that is known."""
    size_bytes = fields.optional_whole("size_bytes")
    told = fields.optional_mapping("sizes")
    if told is None:
        return size_bytes, {}
    with Fields(told, "data.sizes") as by_category:
        sizes = SharedKeys({category: by_category.whole(category) for category in told})
    if sum(sizes.values()) != size_bytes:
        raise LedgerCorrupt(f"`data.sizes` add up to {sum(sizes.values())}, not to {size_bytes}")
    return size_bytes, sizes


def _evaluation_closed(state: RunState, fields: Fields, at: str) -> None:
    evaluation = _evaluation(state, fields.text("evaluation"))
    closed_as = decode_member(State, fields.text("state"), "data.state")
    state.put(transitions.close(evaluation, closed_as))


def _evaluation_answered(state: RunState, fields: Fields, at: str) -> None:
    evaluation = _evaluation(state, fields.text("evaluation"))
    kind = fields.optional_text("verdict")
    with Fields(fields.mapping("saved"), "data.saved") as saved:
        saved_s, saved_device_s = saved.number("elapsed_s"), saved.number("device_s")
    found = Answer(
        by=_evaluation(state, fields.text("by")).id,
        verdict=None if kind is None else decode_member(VerdictKind, kind, "data.verdict"),
        loss=fields.optional_number("loss"),
        step=fields.optional_whole("step"),
        saved_s=saved_s,
        saved_device_s=saved_device_s,
    )
    closed_as = decode_member(State, fields.text("state"), "data.state")
    state.put(transitions.settle_repeat(evaluation, closed_as, found))
    state.answered += 1
    state.saved += _saved(found)


def _saved(answer: Answer) -> Spent:
    return Spent(attempts=1, elapsed_s=answer.saved_s, device_s=answer.saved_device_s)


def _evaluation_reopened(state: RunState, fields: Fields, at: str) -> None:
    fields.text("by")
    evaluation = _evaluation(state, fields.text("evaluation"))
    if evaluation.answer is not None:
        # It may be trained now, or be answered another time.
        state.answered -= 1
        state.saved -= _saved(evaluation.answer)
    state.put(transitions.reopen(evaluation, fields.mapping("changes")))
    state.failures_in_a_row.clear()


def _node_excluded(state: RunState, fields: Fields, at: str) -> None:
    node = fields.text("node")
    state.excluded_nodes[node] = ExcludedNode(
        node=node, at=at, until=fields.text("until"), reason=fields.text("reason")
    )


def _node_readmitted(state: RunState, fields: Fields, at: str) -> None:
    fields.text("reason")
    node = fields.text("node")
    if node not in state.excluded_nodes:
        raise LedgerCorrupt(f"node {describe(node)} is readmitted and was not excluded")
    state.excluded_nodes[node] = replace(state.excluded_nodes[node], until=at, readmitted=True)


def _generation_told(state: RunState, fields: Fields, at: str) -> None:
    generation = fields.whole("generation")
    if not 0 <= generation <= state.generation or generation in state.told:
        raise LedgerCorrupt(f"generation {generation} is told, which was not asked or is told")
    told = []
    for path, pair in fields.items("told"):
        if not isinstance(pair, list) or len(pair) != 2:
            raise LedgerCorrupt(f"`{path}` must be a pair, not {describe(pair)}")
        evaluation = _evaluation(state, as_text(pair[0], f"{path}[0]"))
        told.append((evaluation.id, as_number(pair[1], f"{path}[1]")))
    state.told[generation] = told
    state.add("generations_told", 1)


def _run_status(status: RunStatus, *, has_reason: bool) -> Handler:
    def changed(state: RunState, fields: Fields, at: str) -> None:
        state.reason = fields.text("reason") if has_reason else None
        # Events of version 0.1 have no hint.
        state.advice = fields.optional_text("hint") if status is RunStatus.PAUSED else None
        state.status = status
        if status is RunStatus.PAUSED:
            state.failures_in_a_row.clear()

    return changed


def _request_applied(state: RunState, fields: Fields, at: str) -> None:
    request = fields.text("request")
    if request in state.applied_requests:
        raise LedgerCorrupt(f"request {request} is applied twice")
    state.applied_requests[request] = {
        "command": fields.text("command"),
        "answer": fields.mapping("answer"),
    }


def _cleaned(state: RunState, fields: Fields, at: str) -> None:
    kind = fields.text("kind")
    fields.whole("files")
    total = fields.whole("freed_bytes")
    named = fields.optional_text("evaluation")
    several = fields.optional_mapping("evaluations")
    owners: dict[str, int] = {named or "": total}
    if several is not None:
        with Fields(several, "data.evaluations") as by_owner:
            owners = {name: by_owner.whole(name) for name in several}
        if named is not None or sum(owners.values()) != total:
            raise LedgerCorrupt("`data.evaluations` do not add up to `data.freed_bytes`")
    for name, freed in owners.items():
        owner = _evaluation(state, name).id if name else ""
        state.free(owner, freed)
    if several is not None or named is not None:
        state.disk = state.disk.freed(kind, total)


def _note(state: RunState, fields: Fields, at: str) -> None:
    state.notes.append(Note(at=at, text=fields.text("text")))
    state.add("notes", 1)


def _evaluation(state: RunState, name: str) -> Evaluation:
    evaluation = state.evaluations.get(name)
    if evaluation is None:
        raise LedgerCorrupt(f"there is no evaluation {describe(name)}")
    return evaluation


def _submission(state: RunState, name: str) -> Submission:
    submission = state.submissions.get(name)
    if submission is None:
        raise LedgerCorrupt(f"there is no submission {describe(name)}")
    return submission


HANDLERS: dict[str, Handler] = {
    "run_created": _run_created,
    "run_extended": _run_extended,
    "settings_changed": _settings_changed,
    "controller_started": _controller_started,
    "points_asked": _points_asked,
    "submission_intended": _submission_intended,
    "submission_accepted": _submission_accepted,
    "submission_refused": _submission_ended(SubmissionState.REFUSED),
    "submission_abandoned": _submission_ended(SubmissionState.ABANDONED),
    "optimizer_rebuilt": _optimizer_rebuilt,
    "attempt_started": _attempt_started,
    "attempt_finished": _attempt_finished,
    "evaluation_closed": _evaluation_closed,
    "evaluation_answered": _evaluation_answered,
    "evaluation_reopened": _evaluation_reopened,
    "node_excluded": _node_excluded,
    "node_readmitted": _node_readmitted,
    "generation_told": _generation_told,
    "run_paused": _run_status(RunStatus.PAUSED, has_reason=True),
    "run_interrupted": _run_status(RunStatus.INTERRUPTED, has_reason=False),
    "run_finished": _run_status(RunStatus.FINISHED, has_reason=True),
    "run_cancelled": _run_status(RunStatus.CANCELLED, has_reason=False),
    "request_applied": _request_applied,
    "cleaned": _cleaned,
    "note": _note,
}
