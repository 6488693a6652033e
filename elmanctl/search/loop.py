"""Loop of the controller: ask, check, submit, wait, tell; it knows no Slurm and prints nothing.

Every decision is recorded before it takes effect, so a controller that starts after a kill at any
instant continues from the ledger alone.
"""

import threading
import time
from collections.abc import Callable, Mapping
from typing import Protocol

from elmanctl.constants import ASYNCHRONOUS, GENERATIONAL
from elmanctl.errors import SearchPaused
from elmanctl.ledger import payloads
from elmanctl.ledger.records import Evaluation, RunStatus, State, Verdict
from elmanctl.schedulers.executor import AllocationExecutor, Executor, PollResult
from elmanctl.schedulers.scheduler_note import read_note
from elmanctl.search.actions import apply_requests
from elmanctl.search.allocation_end import AllocationEnd
from elmanctl.search.asynchronous import Asynchronous
from elmanctl.search.attempt_monitor import Watcher
from elmanctl.search.confirmation_plan import due_confirmations
from elmanctl.search.dispatch import Dispatcher
from elmanctl.search.early_stopping import EarlyStopping
from elmanctl.search.effective_settings import avoided_nodes
from elmanctl.search.generational import Generational
from elmanctl.search.model_pruning import ModelPruning
from elmanctl.search.nodes import exclude_bad_nodes, judged_attempts
from elmanctl.search.point_source import PointSource
from elmanctl.search.poll import Poller, QueryPace
from elmanctl.search.repeats import answer_repeats
from elmanctl.search.requeue import recovery_hint
from elmanctl.search.retry import Decisions, trip
from elmanctl.search.schedule import Schedule
from elmanctl.search.session import Session
from elmanctl.search.sharing import Sharing
from elmanctl.search.starved_jobs import StarvedJobs

_SCHEDULES: Mapping[str, Callable[[Session, PointSource, Dispatcher], Schedule]] = {
    GENERATIONAL: Generational,
    ASYNCHRONOUS: Asynchronous,
}


class View(Protocol):
    """Observer of the loop: a live display, or a log."""

    def refresh(self, session: Session, trouble: str | None) -> None:
        """Called after every turn of the loop; `trouble` is that of the scheduler, if any."""

    def judged(self, evaluation: Evaluation, verdict: Verdict) -> None:
        """Called when an attempt has got its verdict."""

    def generation_done(self, session: Session, generation: int) -> None:
        """Called when the optimizer has learned from a generation."""

    def confirmation_asked(self, asked: payloads.ConfirmationAsked) -> None:
        """Called when the best of the search are to be trained again on fresh seeds."""


class Controller:
    """Drives one run until it is finished, paused or asked to stop.

    With `confirms_now` it asks no further generation: it confirms the best so far and then pauses.
    """

    def __init__(
        self,
        session: Session,
        executor: Executor,
        view: View,
        *,
        pace: QueryPace,
        tick_s: float,
        stop: threading.Event,
        sharing: Sharing | None = None,
        confirms_now: bool = False,
        now: Callable[[], float] = time.monotonic,
    ) -> None:
        self._session = session
        self._executor = executor
        self._confirms_now = confirms_now
        self._view = view
        self._tick_s = tick_s
        self._stop = stop
        note = read_note(session.paths.scheduler)
        self._poller = Poller(session, executor, pace, after=note)
        self._decisions = Decisions(session)
        self._models = ModelPruning(session)
        self._stopping = EarlyStopping(session, executor, now=now)
        self._dispatcher = Dispatcher(
            *(session, executor, self._poller, self._decisions, self._models, self._stopping),
            sharing=sharing,
            now=now,
        )
        self._watcher = Watcher(session, executor, now=now)
        self._end = None
        if isinstance(executor, AllocationExecutor):
            self._end = AllocationEnd(session, executor)
        self._starved = StarvedJobs(session, executor, now=now)
        schedule = _SCHEDULES[session.settings.search.mode]
        self._schedule = schedule(session, PointSource(session), self._dispatcher)

    def drive(self) -> None:
        """Run to the end; return early when asked to stop.

        Raises SearchPaused when the search stops itself, EnvironmentNotReady when the scheduler
        does not answer at the start.
        """
        self.start()
        while not self._stop.is_set():
            if self.advance():
                return
            self.submit()
            self._stop.wait(self._tick_s)
        self.interrupt()

    def start(self) -> None:
        """Settle what an earlier controller left; raises EnvironmentNotReady as `drive` does."""
        self._observe(self._dispatcher.adopt_all())
        # For attempts judged by a controller that died before it excluded their nodes.
        exclude_bad_nodes(self._session, judged_attempts(self._session.state))

    def advance(self) -> bool:
        """Do all that is due but submissions; return whether the search has ended.

        Raises SearchPaused when the search stops itself.
        """
        session = self._session
        session.lease.renew()
        apply_requests(session, self._watcher)
        avoided = {node.node for node in avoided_nodes(session.state)}
        self._executor.adjust(session.settings, avoided)
        if self._end is not None:
            self._end.look()
        polled = self._poller.poll()
        if polled is not None:
            self._dispatcher.adopt(polled)
        self._observe(polled)
        if session.state.status is RunStatus.CANCELLED:
            # Its jobs are ending; their verdicts are still recorded.
            return not session.state.live_attempts()
        self._stopping.look(polled)
        return self._go_on()

    def submit(self) -> None:
        """Submit what is waiting, as far as there is room; raises as `submit_waiting` does."""
        if self._session.state.status is not RunStatus.CANCELLED:
            self._dispatcher.submit_waiting()
        self._view.refresh(self._session, self._poller.trouble)

    def interrupt(self) -> None:
        """Record that the controller was asked to stop."""
        if self._session.state.status is not RunStatus.CANCELLED:
            self._session.record(payloads.RunInterrupted())

    def leave(self) -> None:
        """Give this run's share of the slots to the other runs of this process."""
        self._dispatcher.leave()

    @property
    def asked_s(self) -> float:
        """When the scheduler was last asked about this run, by the clock of its pace."""
        return self._poller.asked_s

    def _go_on(self) -> bool:
        """Advance as far as possible without waiting; return whether the search is finished."""
        self._close_decided()
        self._models.prune()
        answer_repeats(self._session)
        if self._advance():
            self._models.prune(is_end=True)
            self._session.record(self._ending())
            self._view.refresh(self._session, None)
            return True
        answer_repeats(self._session)
        return False

    def _ending(self) -> payloads.RunFinished | payloads.RunPaused:
        """Return the event that ends the work on a run of which nothing is left to do now."""
        state = self._session.state
        done = state.totals.get("generations_told", 0)
        if state.ended_by is not None:
            return payloads.RunFinished(reason=state.ended_by)
        if done >= state.generations:
            return payloads.RunFinished(reason="all generations are done")
        return payloads.RunPaused(
            reason=f"{done} of {state.generations} generations are done, and their best confirmed",
            hint=f"`elmanctl resume {state.run['name']}` goes on with the search",
        )

    def _observe(self, polled: PollResult | None) -> None:
        judged = self._watcher.look(polled)
        for evaluation, verdict in judged:
            self._view.judged(evaluation, verdict)
            self._models.add(evaluation)
        exclude_bad_nodes(self._session, [(e, e.attempts[-1]) for e, _ in judged])
        if polled is not None:
            self._starved.look(polled)

    def _close_decided(self) -> None:
        """Close evaluations that get no retry; pause the search at failures that would repeat."""
        session = self._session
        failed = []
        for evaluation, decision in self._decisions.waiting():
            if decision.close is not None:
                session.record(
                    payloads.EvaluationClosed(evaluation=evaluation.id, state=decision.close)
                )
            if decision.close is State.FAILED:
                failed.append(evaluation)
        found = trip(session.state, session.settings, failed)
        if found is not None:
            raise SearchPaused(found.reason, hint=recovery_hint(session.state))

    def _advance(self) -> bool:
        """Report and ask what is due; return whether nothing is left.

        Points come first, then the confirmations of the best.
        """
        told = set(self._session.state.told)
        is_over = self._schedule.advance(asks=not self._confirms_now)
        for generation in self._session.state.told.keys() - told:
            self._view.generation_done(self._session, generation)
        return is_over and not self._confirm()

    def _confirm(self) -> bool:
        """Ask for the confirmations that the best still lack; return whether there are any."""
        due = due_confirmations(self._session.state, self._session.settings)
        if due is None:
            return False
        self._session.record(due)
        self._view.confirmation_asked(due)
        return True
