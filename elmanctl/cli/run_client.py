"""The client of a run: carries out a command itself, or has the run's controller do it."""

import os
import time
from collections.abc import Mapping
from typing import Any

from elmanctl.cli.output import say
from elmanctl.errors import ElmanError, LedgerError, LedgerLocked
from elmanctl.ledger.holder import is_gone
from elmanctl.ledger.lease import read_holder
from elmanctl.ledger.records import State
from elmanctl.ledger.requests import leave_request, wait_for_answer, withdraw_request
from elmanctl.ledger.reserve import full_disk, give_up
from elmanctl.ledger.state import load_run
from elmanctl.run.paths import RunPaths
from elmanctl.schedulers import make_executor
from elmanctl.schedulers.quoting import check_path
from elmanctl.search.actions import apply_requests, perform
from elmanctl.search.attempt_monitor import Watcher
from elmanctl.search.cancelled_jobs import Now, jobs_left
from elmanctl.search.disk_errors import explained
from elmanctl.search.dispatch import Dispatcher
from elmanctl.search.early_stopping import EarlyStopping
from elmanctl.search.effective_settings import effective_settings
from elmanctl.search.model_pruning import ModelPruning
from elmanctl.search.poll import Poller, QueryPace
from elmanctl.search.retry import Decisions
from elmanctl.search.run_identity import refuse_changed_code, refuse_copy, refuse_other_clusters
from elmanctl.search.session import Session

# A controller that is inside sbatch answers when that returns.
_ANSWER_TIMEOUT_S = 300.0
_POLL_S = 0.2

# Cancelled jobs take a moment to end.
_COLLECT_S = 10.0
_COLLECT_POLL_S = 1.0

# Pauses before each look at the jobs left: a busy scheduler is slow to cancel.
_PAUSES_S = (0.0, 2.0, 4.0)

# Commands that must work on a full disk.
_FREEING_SPACE = ("clean", "cancel")


def act_on_run(paths: RunPaths, command: str, arguments: Mapping[str, Any]) -> dict[str, Any]:
    """Carry out a command under the run's lease, or have the controller that holds it do so.

    After `cancel` the jobs are polled: each row has the state of its job as `now`, `still_there`
    lists the jobs that still exist, and `unknown` is why the poll failed, if it did.
    Raises what the command raises, LedgerLocked if a controller does not answer.
    """
    if command in ("cancel", "requeue"):
        # Checked without the lease: this process polls the jobs even if a controller cancels them.
        refuse_other_clusters(load_run(paths.folder).state, os.environ)
    for _ in range(2):
        try:
            answer = _act(paths, command, arguments)
        except LedgerLocked:
            asked = _ask_controller(paths, command, arguments)
            if asked is None:
                continue
            answer = asked
        return _with_jobs_left(paths, answer) if command == "cancel" else answer
    raise LedgerLocked(
        f"the controller of {paths.folder.name} does not answer",
        hint="the request was withdrawn; is the controller suspended?",
    )


def _act(paths: RunPaths, command: str, arguments: Mapping[str, Any]) -> dict[str, Any]:
    with (
        explained(paths.folder.name),
        Session.open(paths.folder, may_use_reserve=command in _FREEING_SPACE) as session,
    ):
        refuse_copy(paths, session.state)
        if command == "requeue":
            refuse_changed_code(paths, session.run)
            check_path(paths.folder)
        executor = make_executor(paths, session.run["executor"], session.settings)
        is_slurm = session.run["executor"] == "slurm"
        poll_s = session.settings.slurm.poll_s if is_slurm else 0.0
        poller = Poller(session, executor, QueryPace(poll_s))
        watcher = Watcher(session, executor)
        # Requests left by commands whose controller ended before it answered.
        apply_requests(session, watcher)
        if command == "requeue":
            executor.check()
        dispatcher = Dispatcher(
            *(session, executor, poller, Decisions(session), ModelPruning(session)),
            EarlyStopping(session, executor),
        )
        if command == "cancel" and poller.intended() and (polled := poller.poll()):
            # A job that was accepted but whose id was never recorded must be cancelled too.
            dispatcher.adopt(polled)
            watcher.look(polled)
        answer = perform(session, watcher, command, arguments, f"lease {session.lease.fence}")
        if command == "cancel":
            _collect(session, watcher, poller)
        if command == "requeue":
            watcher.look(dispatcher.adopt_all())
            if (session.state.controller or {}).get("allocation") is None:
                # A run that is searched inside an allocation gets no jobs of its own by that.
                dispatcher.submit_waiting()
            for row in answer["requeued"]:
                last = session.state.evaluations[row["evaluation"]].last_attempt
                row["job"] = last.job_id if last and not last.state.is_finished else None
        return answer


def _with_jobs_left(paths: RunPaths, answer: Mapping[str, Any]) -> dict[str, Any]:
    """Add the present state of the cancelled jobs to the answer."""
    names = [row["evaluation"] for row in answer["cancelled"]]
    left: Mapping[str, Now] = {}
    unknown = None
    for pause_s in _PAUSES_S:
        time.sleep(pause_s)
        state = load_run(paths.folder).state
        executor = make_executor(paths, state.run["executor"], effective_settings(state))
        left, unknown = jobs_left(state, names, executor)
        if not any(now.is_there for now in left.values()):
            break
    rows = [{**row, "now": left.get(row["evaluation"])} for row in answer["cancelled"]]
    there = [row for row in rows if row["now"] is not None and row["now"].is_there]
    return {**answer, "cancelled": rows, "still_there": there, "unknown": unknown}


def _collect(session: Session, watcher: Watcher, poller: Poller) -> None:
    """Record how cancelled jobs ended, as far as one prompt poll of Slurm tells.

    The next controller records the jobs that are still ending then.
    """

    def is_ending() -> bool:
        return any(e.state is State.CANCELLED for e, _ in session.state.live_attempts())

    end = time.monotonic() + _COLLECT_S
    while is_ending() and time.monotonic() + max(_COLLECT_POLL_S, poller.due_in_s) < end:
        time.sleep(_COLLECT_POLL_S)
        watcher.look(poller.poll())


def _ask_controller(
    paths: RunPaths, command: str, arguments: Mapping[str, Any]
) -> dict[str, Any] | None:
    """Leave a request and return its answer, None if the controller ended before answering."""

    def is_alive() -> bool:
        holder = read_holder(paths.folder)
        return holder is not None and is_gone(holder) is not True

    try:
        request = leave_request(paths.folder, command, arguments, waits_s=_ANSWER_TIMEOUT_S)
    except LedgerError as exc:
        if full_disk(exc) is None or command not in _FREEING_SPACE or not give_up(paths.folder):
            raise
        request = leave_request(paths.folder, command, arguments, waits_s=_ANSWER_TIMEOUT_S)
    say(f"waiting for the controller of {paths.folder.name}")
    try:
        found = wait_for_answer(
            paths.folder, request, timeout_s=_ANSWER_TIMEOUT_S, poll_s=_POLL_S, is_alive=is_alive
        )
    finally:
        # Also after Ctrl-C: a request that nobody waits for must not be carried out later.
        withdraw_request(paths.folder, request)
    if found is None:
        return None
    answer = dict(found)
    if "error" in answer and "exit_code" in answer:
        advice = answer.get("hint")
        error = ElmanError(str(answer["error"]), hint=None if advice is None else str(advice))
        error.exit_code = int(str(answer["exit_code"]))  # type: ignore[misc]
        raise error
    return {**answer, "by_controller": True}
