"""The actions `requeue`, `cancel`, `clean` and `set` on an open run.

The controller applies them for requests of other processes, and the command itself does so when
no controller holds the lease.
"""

import logging
from collections.abc import Mapping
from typing import Any

from elmanctl.codec import encode
from elmanctl.errors import ElmanError, UsageError
from elmanctl.ledger import payloads
from elmanctl.ledger.records import Evaluation, RunStatus, State
from elmanctl.ledger.requests import answer_request, pending_requests
from elmanctl.ledger.run_state import RunState
from elmanctl.schedulers import make_executor
from elmanctl.search import request_schema
from elmanctl.search.attempt_monitor import Watcher
from elmanctl.search.cleaning import plan_cleaning, remove_planned, retention
from elmanctl.search.effective_settings import effective_settings
from elmanctl.search.requeue import plan_requeue, reopened_row, select_requeueable
from elmanctl.search.selection import select_named
from elmanctl.search.session import Session
from elmanctl.settings import Settings

logger = logging.getLogger(__name__)

Answer = dict[str, Any]


def apply_requests(session: Session, watcher: Watcher) -> None:
    """Apply every pending request once, and answer it."""
    for request in pending_requests(session.paths.folder):
        known = session.state.applied_requests.get(request.id)
        if known is None:
            try:
                answer = perform(session, watcher, request.command, request.arguments, request.id)
            except ElmanError as exc:
                answer = {"error": exc.message, "hint": exc.hint, "exit_code": exc.exit_code}
            session.record(
                payloads.RequestApplied(request=request.id, command=request.command, answer=answer)
            )
        else:
            answer = dict(known["answer"])
        answer_request(session.paths.folder, request, answer)


def perform(
    session: Session, watcher: Watcher, command: str, arguments: Mapping[str, Any], by: str
) -> Answer:
    """Carry out one command on an open run and return its answer, plain data.

    `by` is unique to the request, so that applying it twice requeues nothing twice.  Raises what
    `decode_request` and the command itself raise.
    """
    request = request_schema.decode_request(command, arguments)
    if isinstance(request, request_schema.RequeueRequest):
        return _requeue(session, request, by)
    if isinstance(request, request_schema.CancelRequest):
        return _cancel(session, watcher, request)
    if isinstance(request, request_schema.SetRequest):
        return _set(session, request)
    return _clean(session, request)


def _requeue(session: Session, request: request_schema.RequeueRequest, by: str) -> Answer:
    """Reopen evaluations: the failures stay on record, the retry count starts anew."""
    session.refuse_cancelled()
    chosen = (
        select_named(session.state, request.evaluations)
        if request.evaluations
        else select_requeueable(session.state, kinds=request.kinds)
    )
    # A controller that died before it recorded the answer may have reopened some already.
    opened = [e for e in chosen if e.changes.get("request") == by]
    rest = [e for e in chosen if e not in opened]
    plan = plan_requeue(session.state, session.settings, rest, request)
    rows = [reopened_row(session.state, evaluation) for evaluation in opened]
    for evaluation, row in plan.chosen:
        rows.append(row)
        made = {"since_attempt": len(evaluation.attempts), "request": by}
        session.record(
            payloads.EvaluationReopened(
                evaluation=evaluation.id, changes={**row["changes"], **made}, by=by
            )
        )
    return {"requeued": rows, "refused": dict(plan.refused)}


def _cancel(session: Session, watcher: Watcher, request: request_schema.CancelRequest) -> Answer:
    """Close evaluations as cancelled and end their jobs; with `all`, the whole run."""
    if request.all and session.state.status is RunStatus.FINISHED and not session.state.is_busy:
        raise UsageError(f"the run `{session.run['name']}` is finished: nothing is left to cancel")
    chosen = (
        to_cancel(session.state)
        if request.all
        else select_named(session.state, request.evaluations)
    )
    rows: list[dict[str, Any]] = []
    for evaluation in chosen:
        last = evaluation.last_attempt
        row = {"evaluation": evaluation.id, "job": last.job_id if last else None}
        if evaluation.state.is_finished:
            rows.append({**row, "result": f"already {evaluation.state}"})
            continue
        session.record(payloads.EvaluationClosed(evaluation=evaluation.id, state=State.CANCELLED))
        rows.append({**row, "result": "cancelled"})
    error = watcher.cancel([session.state.evaluations[row["evaluation"]] for row in rows])
    if request.all:
        session.record(payloads.RunCancelled())
    return {"cancelled": rows, "error": error}


def to_cancel(state: RunState) -> list[Evaluation]:
    """Return the evaluations that cancelling the run affects: open ones, and those with a job."""
    live = {evaluation.id for evaluation, _ in state.live_attempts()}
    return [e for e in state.evaluations.values() if not e.state.is_finished or e.id in live]


def _set(session: Session, request: request_schema.SetRequest) -> Answer:
    """Change settings; those of GPUs are checked where the attempts are started."""
    session.refuse_cancelled()
    session.check_changes(request.changes)
    before = session.settings
    changed = effective_settings(session.state, request.changes)
    make_executor(session.paths, session.run["executor"], changed).check(asks=False)
    session.change_settings(request.changes)
    return {
        "changed": [
            {"setting": key, "was": setting_of(before, key), "now": setting_of(changed, key)}
            for key in request.changes
        ]
    }


def setting_of(settings: Settings, key: str) -> object:
    """Return the value of a setting as plain data."""
    section, name = key.split(".", 1)
    return encode(getattr(getattr(settings, section), name))


def _clean(session: Session, request: request_schema.CleanRequest) -> Answer:
    """Remove the planned files, and record the bytes freed."""
    policy = retention(session.settings.disk, request)
    plan = plan_cleaning(session.paths, session.state, policy, kinds=request.kinds)
    freed = remove_planned(session, plan)
    return {"freed_bytes": sum(freed), "files": len(freed)}
