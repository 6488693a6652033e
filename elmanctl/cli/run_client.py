"""Acting on a run whose controller may or may not be at work."""

import os
import time
from collections.abc import Mapping
from typing import Any

from elmanctl.cli.output import say
from elmanctl.errors import ElmanError, LedgerError, LedgerLocked
from elmanctl.ledger.lease import is_gone, read_holder
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
from elmanctl.search.disk_forecast import explained
from elmanctl.search.dispatch import Dispatcher
from elmanctl.search.effective_settings import effective_settings
from elmanctl.search.poll import Poller
from elmanctl.search.retry import Decisions
from elmanctl.search.run_identity import refuse_changed_code, refuse_copy, refuse_other_clusters
from elmanctl.search.session import Session

# A controller that is inside sbatch answers after it.
_ANSWER_TIMEOUT_S = 300.0
_POLL_S = 0.2

# Jobs that were cancelled take a moment to end.
_COLLECT_S = 10.0
_COLLECT_POLL_S = 1.0

# A scheduler that is busy may take a moment to do what it was told.
_PAUSES_S = (0.0, 2.0, 4.0)

# What must work on a full disk, to get out of it.
_MAKING_ROOM = ("clean", "cancel")


def act_on_run(paths: RunPaths, command: str, arguments: Mapping[str, Any]) -> dict[str, Any]:
    """Carry out a command under the run's lease, or have the controller that holds it do so.

    After `cancel` the scheduler is asked what became of the jobs: each row says it as `now`,
    `still_there` holds the jobs that go on, and `unknown` why that could not be asked.
    Raises what the command raises, LedgerLocked when a controller does not answer.
    """
    if command in ("cancel", "requeue"):
        # Here and not under the lease: the jobs are asked about here also where a controller acts.
        refuse_other_clusters(load_run(paths.folder).state, os.environ)
    for _ in range(2):
        try:
            answer = _act_here(paths, command, arguments)
        except LedgerLocked:
            asked = _ask_controller(paths, command, arguments)
            if asked is None:
                continue
            answer = asked
        return _looked_after(paths, answer) if command == "cancel" else answer
    raise LedgerLocked(
        f"the controller of {paths.folder.name} does not answer",
        hint="the request was withdrawn; is the controller suspended?",
    )


def _act_here(paths: RunPaths, command: str, arguments: Mapping[str, Any]) -> dict[str, Any]:
    with (
        explained(paths.folder.name),
        Session.open(paths.folder, may_use_reserve=command in _MAKING_ROOM) as session,
    ):
        refuse_copy(paths, session.state)
        if command == "requeue":
            refuse_changed_code(paths, session.run)
            check_path(paths.folder)
        executor = make_executor(paths, session.run["executor"], session.settings)
        is_slurm = session.run["executor"] == "slurm"
        poll_s = session.settings.slurm.poll_s if is_slurm else 0.0
        poller = Poller(session, executor, poll_s=poll_s)
        watcher = Watcher(session, executor)
        # Left behind by a command whose controller ended before it answered.
        apply_requests(session, watcher)
        if command == "requeue":
            executor.check()
        dispatcher = Dispatcher(session, executor, poller, Decisions(session))
        if command == "cancel" and poller.intended() and (sighting := poller.look()):
            # A job that was accepted, and whose id nobody wrote down, is to be ended too.
            dispatcher.adopt(sighting)
            watcher.look(sighting)
        answer = perform(session, watcher, command, arguments, f"lease {session.lease.fence}")
        if command == "cancel":
            _collect(session, watcher, poller)
        if command == "requeue":
            watcher.look(dispatcher.adopt_all())
            dispatcher.submit_waiting()
            for row in answer["requeued"]:
                last = session.state.evaluations[row["evaluation"]].last_attempt
                row["job"] = last.job_id if last and not last.state.is_finished else None
        return answer


def _looked_after(paths: RunPaths, answer: Mapping[str, Any]) -> dict[str, Any]:
    """Return the answer to `cancel` with where its jobs are now."""
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
    """Record how cancelled jobs ended, as far as that is known soon.

    Slurm is asked once, after a moment: the next controller records what is still ending then.
    """

    def is_ending() -> bool:
        return any(e.state is State.CANCELLED for e, _ in session.state.live_attempts())

    end = time.monotonic() + _COLLECT_S
    while is_ending() and time.monotonic() + max(_COLLECT_POLL_S, poller.due_in_s) < end:
        time.sleep(_COLLECT_POLL_S)
        watcher.look(poller.look())


def _ask_controller(
    paths: RunPaths, command: str, arguments: Mapping[str, Any]
) -> dict[str, Any] | None:
    """Leave a request and return its answer, None when the controller went away before it."""

    def is_alive() -> bool:
        holder = read_holder(paths.folder)
        return holder is not None and is_gone(holder) is not True

    try:
        request = leave_request(paths.folder, command, arguments, waits_s=_ANSWER_TIMEOUT_S)
    except LedgerError as exc:
        if full_disk(exc) is None or command not in _MAKING_ROOM or not give_up(paths.folder):
            raise
        request = leave_request(paths.folder, command, arguments, waits_s=_ANSWER_TIMEOUT_S)
    say(f"asking the controller of {paths.folder.name}")
    try:
        found = wait_for_answer(
            paths.folder, request, timeout_s=_ANSWER_TIMEOUT_S, poll_s=_POLL_S, is_alive=is_alive
        )
    finally:
        # Also when the user gives up waiting: what nobody waits for must not happen later.
        withdraw_request(paths.folder, request)
    if found is None:
        return None
    answer = dict(found)
    if "error" in answer and "exit_code" in answer:
        error = ElmanError(answer["error"], hint=answer.get("hint"))
        error.exit_code = int(answer["exit_code"])  # type: ignore[misc]
        raise error
    return {**answer, "by_controller": True}
