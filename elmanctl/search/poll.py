"""Asking the scheduler: the one place that decides when, for everybody who wants to know."""

import logging
import time
from collections.abc import Callable, Mapping

from elmanctl import clock
from elmanctl.errors import EnvironmentNotReady
from elmanctl.ledger.records import Attempt, Submission
from elmanctl.ledger.run_state import RunState
from elmanctl.run.progress import heartbeat_age_s
from elmanctl.schedulers.executor import Executor, JobReport, JobState, LiveJob, PollResult
from elmanctl.schedulers.scheduler_note import Refusal, SchedulerNote, write_note
from elmanctl.search.session import Session

logger = logging.getLogger(__name__)

# A scheduler that does not answer is asked ever more slowly, at last this slowly.
_SLOWEST_S = 600.0


class Poller:
    """Takes one look for all live jobs and all unanswered submissions, once in `poll_s`.

    A look costs two query commands at most (`Executor.look`), and nobody else asks any but a
    submission whose refusal leaves a doubt, which is tried ever more rarely: that bounds the load
    on a scheduler, whatever else goes on.  A controller keeps to the interval of the one before
    it, whose last note is `after`, however often they are killed and resumed.
    """

    def __init__(
        self,
        session: Session,
        executor: Executor,
        *,
        poll_s: float,
        after: SchedulerNote | None = None,
        now: Callable[[], float] = time.monotonic,
    ) -> None:
        self._session = session
        self._executor = executor
        self._poll_s = poll_s
        self._now = now
        self._delay_s = poll_s
        self._next = now() + _left_of_interval_s(after, poll_s)
        self._not_before: dict[str, float] = {}
        self._failures = 0
        self._last: PollResult | None = None
        self._asked_at = None if after is None else after.asked_at
        self.silent_reason: str | None = None
        self.refusal: Refusal | None = None

    @property
    def trouble(self) -> str | None:
        """What the scheduler does not do now, in one line."""
        told = (self.silent_reason, self.refusal.text if self.refusal else None)
        return "; ".join(text for text in told if text) or None

    @property
    def due_in_s(self) -> float:
        """Seconds until the scheduler may be asked again."""
        return max(0.0, self._next - self._now())

    def poll(self) -> PollResult | None:
        """Return what the scheduler says, None when it is not time yet, or it says nothing."""
        if self._now() < self._next:
            return None
        jobs = [
            live_job(self._session, attempt)
            for _, attempt in self._session.state.live_attempts()
            if attempt.job_id is not None
        ]
        intended = [
            one for one in self.intended() if self._not_before.get(one.id, 0.0) <= self._now()
        ]
        if not jobs and not intended and self._executor.tasks_per_submission != 0:
            return None
        try:
            polled = self._executor.poll(jobs, intended)
        except EnvironmentNotReady as exc:
            self._failed(exc.message)
            self._note(None)
            return None
        # From its end: a slow answer must not bring the next question closer.
        self._delay_s, self._failures = self._poll_s, 0
        self._next = self._now() + self._delay_s
        self.silent_reason = polled.accounting_error
        self._note(polled)
        return polled

    def intended(self) -> list[Submission]:
        """Return the submissions whose answer is not on record."""
        return self._session.state.unanswered()

    def heard_nothing_of(self, submission: str) -> None:
        """Ask after a submission no sooner than in one interval: a slow scheduler lists it late."""
        self._not_before[submission] = self._now() + self._poll_s

    def tell_refusal(self, refusal: Refusal | None, *, next_s: float = 0.0) -> None:
        """Show that a submission was refused and is tried again in `next_s`, None when no more."""
        if refusal is None and self.refusal is None:
            return
        self.refusal = refusal
        self._write(max(self._delay_s, next_s))

    def _failed(self, reason: str) -> None:
        # The first silence may be a hiccup: the pace changes with the second.
        if self._failures:
            self._delay_s = min(2 * self._delay_s, max(_SLOWEST_S, self._poll_s))
        self._failures += 1
        self._next = self._now() + self._delay_s
        self.silent_reason = f"{reason}; asking again in {clock.format_rough(self._delay_s)}"
        logger.warning("%s; asking again in %.0f s", reason, self._delay_s)

    def _note(self, polled: PollResult | None) -> None:
        """Leave for `status` what was said."""
        self._last, self._asked_at = polled, clock.to_text(clock.now())
        self._write(self._delay_s)

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
        """Return what is known of each job that only accounting takes for alive."""
        told: dict[str, str] = {}
        if not any(report.is_unlisted for report in reports.values()):
            return told
        for evaluation, attempt in self._session.state.live_attempts():
            report = reports.get(str(attempt.job_id))
            if report is None or not report.is_unlisted:
                continue
            paths = self._session.paths.attempt(evaluation.id, attempt.number)
            age_s = heartbeat_age_s(paths, time.time())
            sign = "no sign of life"
            if age_s is not None:
                sign = f"last sign of life {clock.format_rough(max(0.0, age_s))} ago"
            told[str(attempt.job_id)] = (
                f"sacct says {report.raw}, squeue does not know it; {sign}; "
                "if it is gone, cancel it and queue it again"
            )
        return told


def _left_of_interval_s(note: SchedulerNote | None, poll_s: float) -> float:
    """Return for how long a new controller leaves Slurm alone, by what the last one left.

    Not for longer than an interval, also where a silent Slurm was asked ever more slowly: who
    resumes may know that it is back.
    """
    if note is None or note.asked_at is None:
        return 0.0
    ago_s = (clock.now() - clock.from_text(note.asked_at)).total_seconds()
    return min(poll_s, max(0.0, poll_s - ago_s))


def live_job(session: Session, attempt: Attempt) -> LiveJob:
    """Return an attempt's job as executors know it."""
    return job_of(session.state, attempt)


def job_of(state: RunState, attempt: Attempt) -> LiveJob:
    """Return the same by what is on record, for who has no hold on the run."""
    submission = state.submissions[attempt.submission]
    return LiveJob(
        job_id=str(attempt.job_id),
        submission=attempt.submission,
        task_index=attempt.task_index,
        job_name=submission.job_name,
        since=submission.intended_at,
    )
