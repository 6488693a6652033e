"""What each kind of event does to the state of a run."""

from collections.abc import Callable
from typing import TypeAlias

from elmanctl.errors import LedgerCorrupt
from elmanctl.ledger import transitions
from elmanctl.ledger.encoding import (
    decode_evaluation,
    decode_member,
    decode_run,
    decode_submission,
    decode_verdict,
)
from elmanctl.ledger.fields import Fields, as_number, as_text, describe
from elmanctl.ledger.records import (
    Evaluation,
    RunStatus,
    State,
    Submission,
    SubmissionState,
)
from elmanctl.ledger.run_state import Note, RunState
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
    folder = fields.optional_text("folder")
    if folder is not None:
        state.controller["folder"] = folder
    state.status, state.reason = RunStatus.RUNNING, None


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
        state.evaluations[evaluation.id] = evaluation
    state.refused[generation] = state.refused.get(generation, 0) + fields.whole("refused")
    with Fields(fields.mapping("optimizer"), "data.optimizer") as optimizer:
        state.optimizer_file = {"file": optimizer.text("file"), "sha256": optimizer.text("sha256")}
    state.generation = generation


def _submission_intended(state: RunState, fields: Fields, at: str) -> None:
    submission = decode_submission(fields.mapping("submission"), "data.submission", intended_at=at)
    if submission.id in state.submissions:
        raise LedgerCorrupt(f"submission {submission.id} is intended twice")
    state.submissions[submission.id] = submission
    for task in submission.tasks:
        evaluation = _evaluation(state, task.evaluation)
        state.evaluations[evaluation.id] = transitions.submit(evaluation, task, submission.id, at)


def _submission_accepted(state: RunState, fields: Fields, at: str) -> None:
    fields.flag("adopted")
    job_id = fields.text("job_id")
    submission = transitions.answer(
        _submission(state, fields.text("submission")), SubmissionState.ACCEPTED, job_id=job_id
    )
    state.submissions[submission.id] = submission
    for task in submission.tasks:
        evaluation = _evaluation(state, task.evaluation)
        state.evaluations[evaluation.id] = transitions.accept(evaluation, task, job_id)


def _submission_ended(outcome: SubmissionState) -> Handler:
    def ended(state: RunState, fields: Fields, at: str) -> None:
        submission = transitions.answer(
            _submission(state, fields.text("submission")), outcome, error=fields.text("error")
        )
        state.submissions[submission.id] = submission
        for task in submission.tasks:
            evaluation = _evaluation(state, task.evaluation)
            state.evaluations[evaluation.id] = transitions.take_back(evaluation, task)

    return ended


def _attempt_started(state: RunState, fields: Fields, at: str) -> None:
    evaluation = _evaluation(state, fields.text("evaluation"))
    state.evaluations[evaluation.id] = transitions.start(
        evaluation,
        fields.whole("attempt"),
        fields.optional_text("node"),
        fields.optional_text("at") or at,
    )


def _attempt_finished(state: RunState, fields: Fields, at: str) -> None:
    evaluation = _evaluation(state, fields.text("evaluation"))
    ending = Ending(
        verdict=decode_verdict(fields.mapping("verdict"), "data.verdict"),
        result=fields.optional_mapping("result"),
        size_bytes=fields.optional_whole("size_bytes"),
        node=fields.optional_text("node"),
        elapsed_s=fields.optional_number("elapsed_s"),
    )
    state.evaluations[evaluation.id] = transitions.finish(
        evaluation, fields.whole("attempt"), ending, at
    )


def _evaluation_closed(state: RunState, fields: Fields, at: str) -> None:
    evaluation = _evaluation(state, fields.text("evaluation"))
    closed_as = decode_member(State, fields.text("state"), "data.state")
    state.evaluations[evaluation.id] = transitions.close(evaluation, closed_as)


def _evaluation_reopened(state: RunState, fields: Fields, at: str) -> None:
    fields.text("by")
    evaluation = _evaluation(state, fields.text("evaluation"))
    state.evaluations[evaluation.id] = transitions.reopen(evaluation, fields.mapping("changes"))


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


def _run_status(status: RunStatus, *, has_reason: bool) -> Handler:
    def changed(state: RunState, fields: Fields, at: str) -> None:
        state.reason = fields.text("reason") if has_reason else None
        state.status = status

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
    fields.text("kind")
    fields.whole("files")
    named = fields.optional_text("evaluation")
    owner = _evaluation(state, named).id if named is not None else ""
    state.freed_bytes[owner] = state.freed_bytes.get(owner, 0) + fields.whole("freed_bytes")


def _note(state: RunState, fields: Fields, at: str) -> None:
    state.notes.append(Note(at=at, text=fields.text("text")))


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
    "attempt_started": _attempt_started,
    "attempt_finished": _attempt_finished,
    "evaluation_closed": _evaluation_closed,
    "evaluation_reopened": _evaluation_reopened,
    "generation_told": _generation_told,
    "run_paused": _run_status(RunStatus.PAUSED, has_reason=True),
    "run_interrupted": _run_status(RunStatus.INTERRUPTED, has_reason=False),
    "run_finished": _run_status(RunStatus.FINISHED, has_reason=True),
    "run_cancelled": _run_status(RunStatus.CANCELLED, has_reason=False),
    "request_applied": _request_applied,
    "cleaned": _cleaned,
    "note": _note,
}
