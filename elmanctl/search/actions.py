"""What `requeue`, `cancel` and `clean` do to a run.

The same functions serve the controller, which applies requests left by other processes, and the
command itself when no controller holds the run's lease.
"""

import logging
from collections.abc import Callable, Mapping
from typing import Any

from elmanctl.errors import ElmanError, UsageError
from elmanctl.ledger.payloads import (
    EvaluationClosed,
    EvaluationReopened,
    RequestApplied,
    RunCancelled,
)
from elmanctl.ledger.records import Evaluation, RunStatus, State
from elmanctl.ledger.requests import answer_request, pending_requests
from elmanctl.ledger.run_state import RunState
from elmanctl.search.attempt_monitor import Watcher
from elmanctl.search.cleaning import plan_cleaning, remove_planned, retention
from elmanctl.search.request_schema import check_arguments
from elmanctl.search.requeue import plan_requeue, reopened_row, select_requeueable
from elmanctl.search.selection import select_named
from elmanctl.search.session import Session

logger = logging.getLogger(__name__)

Answer = dict[str, Any]


def apply_requests(session: Session, watcher: Watcher) -> None:
    """Apply what other processes asked for, each request once, and answer it."""
    for request in pending_requests(session.paths.folder):
        known = session.state.applied_requests.get(request.id)
        if known is None:
            try:
                answer = perform(session, watcher, request.command, request.arguments, request.id)
            except ElmanError as exc:
                answer = {"error": exc.message, "hint": exc.hint, "exit_code": exc.exit_code}
            session.record(
                RequestApplied(request=request.id, command=request.command, answer=answer)
            )
        else:
            answer = dict(known["answer"])
        answer_request(session.paths.folder, request, answer)


def perform(
    session: Session, watcher: Watcher, command: str, arguments: Mapping[str, Any], by: str
) -> Answer:
    """Carry out one command on an open run and return its answer, plain data.

    `by` names who asked, once: a request whose effect is on record is not carried out again.
    Raises UsageError for an unknown command and what the command itself raises.
    """
    actions: dict[str, Callable[[Session, Watcher, Mapping[str, Any], str], Answer]] = {
        "requeue": _requeue,
        "cancel": _cancel,
        "clean": _clean,
    }
    check_arguments(command, arguments)
    return actions[command](session, watcher, arguments, by)


def _requeue(session: Session, watcher: Watcher, arguments: Mapping[str, Any], by: str) -> Answer:
    """Open evaluations again: the failures stay on record, the retry count starts anew."""
    session.refuse_cancelled()
    names = arguments.get("evaluations") or []
    chosen = (
        select_named(session.state, names)
        if names
        else select_requeueable(session.state, kinds=arguments.get("kinds") or [])
    )
    # A controller that died before its answer was on record may have opened some already.
    opened = [e for e in chosen if e.changes.get("request") == by]
    rest = [e for e in chosen if e not in opened]
    plan = plan_requeue(session.state, session.settings, rest, arguments)
    rows = [reopened_row(session.state, evaluation) for evaluation in opened]
    for item in plan.chosen:
        rows.append(item.row())
        session.record(
            EvaluationReopened(
                evaluation=item.evaluation.id,
                changes={
                    **item.changes,
                    "since_attempt": len(item.evaluation.attempts),
                    "request": by,
                },
                by=by,
            )
        )
    return {"requeued": rows, "refused": dict(plan.refused)}


def _cancel(session: Session, watcher: Watcher, arguments: Mapping[str, Any], by: str) -> Answer:
    """Close evaluations as cancelled and end their jobs; with `all`, the whole run."""
    everything = bool(arguments.get("all"))
    if everything and session.state.status is RunStatus.FINISHED and not session.state.is_busy:
        raise UsageError(f"the run `{session.run['name']}` is finished: nothing is left to cancel")
    chosen = (
        to_cancel(session.state)
        if everything
        else select_named(session.state, arguments.get("evaluations") or [])
    )
    rows: list[dict[str, Any]] = []
    for evaluation in chosen:
        last = evaluation.last_attempt
        row = {"evaluation": evaluation.id, "job": last.job_id if last else None}
        if evaluation.state.is_finished:
            rows.append({**row, "result": f"already {evaluation.state}"})
            continue
        session.record(EvaluationClosed(evaluation=evaluation.id, state=State.CANCELLED))
        rows.append({**row, "result": "cancelled"})
    error = watcher.cancel([session.state.evaluations[row["evaluation"]] for row in rows])
    if everything:
        session.record(RunCancelled())
    return {"cancelled": rows, "error": error}


def to_cancel(state: RunState) -> list[Evaluation]:
    """Return what a run as a whole still has: what is open, and cancelled jobs that go on."""
    live = {evaluation.id for evaluation, _ in state.live_attempts()}
    return [e for e in state.evaluations.values() if not e.state.is_finished or e.id in live]


def _clean(session: Session, watcher: Watcher, arguments: Mapping[str, Any], by: str) -> Answer:
    """Remove what the plan names, and record how much that freed."""
    policy = retention(session.settings.disk, arguments)
    kinds = arguments.get("kinds") or []
    plan = plan_cleaning(session.paths, session.state, policy, kinds=kinds)
    freed = remove_planned(session, plan)
    return {"freed_bytes": freed.size_bytes, "files": freed.files}
