"""Poller of the scheduler: the only place that decides when it is queried."""

import logging
import math
import time
from collections.abc import Callable, Mapping

from elmanctl import clock
from elmanctl.errors import EnvironmentNotReady
from elmanctl.ledger.records import Attempt
from elmanctl.ledger.run_state import RunState
from elmanctl.ledger.submissions import Submission
from elmanctl.run.progress import heartbeat_age_s
from elmanctl.schedulers.executor import Executor, JobReport, JobState, LiveJob, PollResult
from elmanctl.schedulers.scheduler_note import Refusal, SchedulerNote, write_note
from elmanctl.search.session import Session

logger = logging.getLogger(__name__)

# Longest interval of the backoff while the scheduler does not answer.
_SLOWEST_S = 600.0


class QueryPace:
    """The times at which a process may query the scheduler: every `poll_s`, with backoff.

    Pollers that share one never query more often together than one of them would.
    """

    def __init__(self, poll_s: float, *, now: Callable[[], float] = time.monotonic) -> None:
        self.poll_s = poll_s
        self.now = now
        self.delay_s = poll_s
        self._next = now()
        self._failures = 0

    @property
    def due_in_s(self) -> float:
        """Seconds until the next query is allowed."""
        return max(0.0, self._next - self.now())

    def follow(self, note: SchedulerNote | None) -> None:
        """Wait for the rest of the interval of a previous controller, whose last note this is."""
        self._next = max(self._next, self.now() + _left_of_interval_s(note, self.poll_s))

    def answered(self) -> None:
        """Begin an interval, whose length is counted from the end of a query."""
        self.delay_s, self._failures = self.poll_s, 0
        self._next = self.now() + self.delay_s

    def failed(self) -> None:
        """Begin an interval that is longer the longer the scheduler has been silent."""
        # The first failure may be a hiccup: backoff starts with the second.
        if self._failures:
            self.delay_s = min(2 * self.delay_s, max(_SLOWEST_S, self.poll_s))
        self._failures += 1
        self._next = self.now() + self.delay_s


class Poller:
    """Polls all live jobs and all unanswered submissions of a run at once, at a pace.

    A poll costs at most two query commands (`Executor.poll`).  Only a submission with an unclear
    refusal makes further queries, with backoff, so the load on the scheduler is bounded.  A new
    controller keeps the interval of the previous one, whose last note is `after`, however often
    they are killed and resumed.
    """

    def __init__(
        self,
        session: Session,
        executor: Executor,
        pace: QueryPace,
        *,
        after: SchedulerNote | None = None,
    ) -> None:
        self._session = session
        self._executor = executor
        self._pace = pace
        pace.follow(after)
        self._not_before: dict[str, float] = {}
        self._last: PollResult | None = None
        self._asked_at = None if after is None else after.asked_at
        self.asked_s = -math.inf
        self.silent_reason: str | None = None
        self.refusal: Refusal | None = None

    @property
    def trouble(self) -> str | None:
        """The current trouble with the scheduler in one line, None without any."""
        texts = (self.silent_reason, self.refusal.text if self.refusal else None)
        return "; ".join(text for text in texts if text) or None

    @property
    def due_in_s(self) -> float:
        """Seconds until the next poll is allowed."""
        return self._pace.due_in_s

    def poll(self) -> PollResult | None:
        """Return the answer of the scheduler, None if it is too early or there is no answer."""
        if self.due_in_s > 0:
            return None
        jobs = [
            live_job(self._session.state, attempt)
            for _, attempt in self._session.state.live_attempts()
            if attempt.job_id is not None
        ]
        intended = [
            one for one in self.intended() if self._not_before.get(one.id, 0.0) <= self._pace.now()
        ]
        if not jobs and not intended and self._executor.tasks_per_submission != 0:
            return None
        self.asked_s = self._pace.now()
        try:
            polled = self._executor.poll(jobs, intended)
        except EnvironmentNotReady as exc:
            self._failed(exc.message)
            self._note(None)
            return None
        # At the end: a slow answer must not shorten the interval.
        self._pace.answered()
        self.silent_reason = polled.accounting_error
        self._note(polled)
        return polled

    def intended(self) -> list[Submission]:
        """Return the submissions without a recorded answer."""
        return self._session.state.unanswered()

    def delay_lookup(self, submission: str) -> None:
        """Delay the lookup of a submission by one interval: a slow scheduler lists it late."""
        self._not_before[submission] = self._pace.now() + self._pace.poll_s

    def show_refusal(self, refusal: Refusal | None, *, next_s: float = 0.0) -> None:
        """Show a refused submission and its retry in `next_s`; None when it was accepted."""
        if refusal is None and self.refusal is None:
            return
        self.refusal = refusal
        self._write(max(self._pace.delay_s, next_s))

    def _failed(self, reason: str) -> None:
        self._pace.failed()
        delay_s = self._pace.delay_s
        self.silent_reason = f"{reason}; asking again in {clock.format_rough(delay_s)}"
        logger.warning("%s; asking again in %.0f s", reason, delay_s)

    def _note(self, polled: PollResult | None) -> None:
        """Save the answer for `status`."""
        self._last, self._asked_at = polled, clock.to_text(clock.now())
        self._write(self._pace.delay_s)

    def _write(self, next_s: float) -> None:
        if self._session.run["executor"] != "slurm":
            return
        reports = {} if self._last is None else self._last.reports
        note = SchedulerNote(
            at=clock.to_text(clock.now()),
            next_s=next_s,
            asked_at=self._asked_at,
            silent_reason=self.silent_reason,
            accounting=None if self._last is None else self._last.accounting,
            pending={
                job_id: report.reason
                for job_id, report in reports.items()
                if report.state is JobState.PENDING and report.reason
            },
            unlisted=self._unlisted(reports),
            refusal=self.refusal,
        )
        write_note(self._session.paths.scheduler, note)

    def _unlisted(self, reports: Mapping[str, JobReport]) -> dict[str, str]:
        """Return a description of each job that is alive in sacct but unknown to squeue."""
        texts: dict[str, str] = {}
        if not any(report.is_unlisted for report in reports.values()):
            return texts
        for evaluation, attempt in self._session.state.live_attempts():
            report = reports.get(str(attempt.job_id))
            if report is None or not report.is_unlisted:
                continue
            paths = self._session.paths.attempt(evaluation.id, attempt.number)
            age_s = heartbeat_age_s(paths, time.time())
            sign = "no sign of life"
            if age_s is not None:
                sign = f"last sign of life {clock.format_rough(max(0.0, age_s))} ago"
            texts[str(attempt.job_id)] = (
                f"sacct says {report.raw}, squeue does not know it; {sign}; "
                "if it is gone, cancel and requeue it"
            )
        return texts


def _left_of_interval_s(note: SchedulerNote | None, poll_s: float) -> float:
    """Return the rest of the previous controller's polling interval.

    Never more than one interval, even after backoff: a user who resumes may know that Slurm is
    back.
    """
    if note is None or note.asked_at is None:
        return 0.0
    ago_s = (clock.now() - clock.from_text(note.asked_at)).total_seconds()
    return min(poll_s, max(0.0, poll_s - ago_s))


def live_job(state: RunState, attempt: Attempt) -> LiveJob:
    """Return the job of an attempt as executors take it."""
    submission = state.submissions[attempt.submission]
    return LiveJob(
        job_id=str(attempt.job_id),
        submission=attempt.submission,
        task_index=attempt.task_index,
        job_name=submission.job_name,
        since=submission.intended_at,
        lanes=submission.lanes_of(attempt.task_index),
        allocation=submission.allocation,
    )
