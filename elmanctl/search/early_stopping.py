"""Early stopping of a run's attempts: looks at their losses, decides, and asks workers to end.

A decision is recorded before its worker is asked, and asking again does no harm, so that a kill of
the controller at any moment changes nothing.  Whether the worker ends early or completes before it
reads the request, it leaves one result, which counts.
"""

import logging
import time
from collections import defaultdict
from collections.abc import Callable, Iterator, Mapping
from datetime import timedelta
from typing import Any

from elmanctl import clock
from elmanctl.codec import encode
from elmanctl.errors import EnvironmentNotReady
from elmanctl.ledger.files import write_json
from elmanctl.ledger.payloads import StopDecided
from elmanctl.ledger.records import Attempt, Evaluation, State
from elmanctl.ledger.run_state import RunState
from elmanctl.run.frozen_code import knows_spec_key
from elmanctl.run.progress import heartbeat_timeout_s, read_curve, read_table
from elmanctl.schedulers.executor import Executor, JobState, PollResult
from elmanctl.search.fitness import curve_of
from elmanctl.search.poll import live_job
from elmanctl.search.session import Session
from elmanctl.search.stopping import Curve, Seen, decide

logger = logging.getLogger(__name__)

# A step or a validation may take this long, on top of what a shared file system hides.
GRACE_S = 120.0


class EarlyStopping:
    """Stops the attempts of one run early, by its settings of `[stopping]`."""

    def __init__(
        self, session: Session, executor: Executor, *, now: Callable[[], float] = time.monotonic
    ) -> None:
        self._session = session
        self._executor = executor
        self._now = now
        # The code of an older run has workers that do not know a request to stop.
        self._knows = knows_spec_key(session.paths.code, "stoppable")
        self._judged: dict[tuple[str, int], int] = {}
        self._looked_at: float | None = None

    def asked(self, evaluation: Evaluation) -> Mapping[str, Any]:
        """Return the fields of the spec of an attempt by which it can be stopped early."""
        return {"stoppable": True} if self._may_stop(evaluation) else {}

    def _may_stop(self, evaluation: Evaluation) -> bool:
        """Whether an evaluation may end early: no configuration again, nor what a user asked again.

        The mean of a configuration would lack the losses that are not among the best.
        """
        return (
            self._knows
            and self._session.settings.stopping.is_on
            and evaluation.confirms is None
            and evaluation.reevaluates is None
            and evaluation.repeats is None
            and "since_attempt" not in evaluation.changes
        )

    def look(self, polled: PollResult | None) -> None:
        """Decide on the attempts with new losses, and ask those to end that are to be stopped.

        Does nothing until the heartbeats can be new.  `polled` is what the scheduler said, None
        when it was not asked this time.
        """
        if polled is not None:
            self._end_overdue(polled)
        interval_s = self._session.settings.train.heartbeat_s
        now = self._now()
        if self._looked_at is not None and now - self._looked_at < interval_s:
            return
        self._looked_at = now
        for evaluation, attempt in self._session.state.live_attempts():
            if attempt.stop is not None and evaluation.state is not State.CANCELLED:
                self._ask(evaluation, attempt)
        if self._knows and self._session.settings.stopping.is_on:
            self._decide_on_live()

    def _decide_on_live(self) -> None:
        session = self._session
        curves = dict(self._live_curves())
        self._judged = {key: looks for key, looks in self._judged.items() if key in curves}
        fresh = {
            key: curve for key, curve in curves.items() if len(curve) > self._judged.get(key, 0)
        }
        if not fresh:
            return
        finished = _finished_curves(session.state)
        for key, curve in fresh.items():
            branch = _branch(session.state, key[0])
            others = [
                Seen(curve=other)
                for name, other in curves.items()
                if name != key and _branch(session.state, name[0]) == branch
            ]
            stop = decide(
                session.settings.stopping,
                curve,
                [*finished.get(branch, ()), *others],
                judged=self._judged.get(key, 0),
            )
            self._judged[key] = len(curve)
            if stop is None:
                continue
            name, number = key
            session.record(StopDecided(evaluation=name, attempt=number, stop=stop))
            evaluation = session.state.evaluations[name]
            self._ask(evaluation, evaluation.attempts[-1])

    def _live_curves(self) -> Iterator[tuple[tuple[str, int], Curve]]:
        """Yield the losses so far of each live attempt that may be stopped and is not yet."""
        for evaluation, attempt in self._session.state.live_attempts():
            is_open = attempt.stop is None and not evaluation.state.is_finished
            if is_open and self._may_stop(evaluation):
                paths = self._session.paths.attempt(evaluation.id, attempt.number)
                beat = read_table(paths.heartbeat) or {}
                # Nothing of a job that has ended by itself, or was restarted by the scheduler.
                if beat.get("phase") in ("warmup", "training", "validation"):
                    yield (evaluation.id, attempt.number), read_curve(beat.get("curve"))

    def _ask(self, evaluation: Evaluation, attempt: Attempt) -> None:
        """Ask a worker to end its training."""
        paths = self._session.paths.attempt(evaluation.id, attempt.number)
        if not paths.stop.exists():
            write_json(paths.stop, encode(attempt.stop))

    def _end_overdue(self, polled: PollResult) -> None:
        """Cancel the jobs whose workers were asked to end long ago and have not."""
        wait_s = heartbeat_timeout_s(self._session.settings.train.heartbeat_s) + GRACE_S
        latest = clock.now() - timedelta(seconds=wait_s)
        jobs = [
            live_job(self._session.state, attempt)
            for _, attempt in self._session.state.live_attempts()
            if attempt.stop_at is not None
            and clock.from_text(attempt.stop_at) < latest
            and (report := polled.reports.get(str(attempt.job_id))) is not None
            and report.state in (JobState.PENDING, JobState.RUNNING)
        ]
        if jobs:
            try:
                self._executor.cancel(jobs)
            except EnvironmentNotReady as exc:
                logger.warning("%s", exc.message)


def _finished_curves(state: RunState) -> dict[int, list[Seen]]:
    """Return, for each branch of a sweep, the losses of its evaluations that have ended."""
    found: defaultdict[int, list[Seen]] = defaultdict(list)
    for evaluation in state.evaluations.values():
        is_own = evaluation.answer is None and evaluation.confirms is None
        if is_own and evaluation.state.is_finished and (curve := curve_of(evaluation)):
            seen = Seen(curve=curve, loss=evaluation.loss)
            found[_branch(state, evaluation.id)].append(seen)
    return found


def _branch(state: RunState, name: str) -> int:
    """Return the branch of a sweep that an evaluation belongs to; each branch has a best."""
    return state.turns.get(state.evaluations[name].generation, 0)
