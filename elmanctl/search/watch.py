"""Watching live attempts until each has a verdict on record."""

import logging
import time
from collections.abc import Callable

from elmanctl.errors import EnvironmentNotReady
from elmanctl.jobs.executor import Executor, JobReport, JobState, LiveJob
from elmanctl.jobs.observe import heartbeat_age_s, observe, read_table
from elmanctl.jobs.verdict import judge
from elmanctl.ledger.disk import measure
from elmanctl.ledger.encoding import encode_verdict
from elmanctl.ledger.records import Attempt, Evaluation, State, Verdict
from elmanctl.search.session import Session

logger = logging.getLogger(__name__)

# A job may end before its result is visible on a shared file system.
RESULT_GRACE_S = 15.0

# A job that the scheduler forgot is lost once its heartbeat is older than this many beats.
_STALE_BEATS = 4

# Kept in the result file, too long or too fixed to repeat in the ledger.
_NOT_IN_LEDGER = ("version", "verdict", "versions", "protocol")


class Watcher:
    """Asks after live attempts and records what became of them."""

    def __init__(
        self,
        session: Session,
        executor: Executor,
        *,
        poll_s: float,
        now: Callable[[], float] = time.monotonic,
    ) -> None:
        self._session = session
        self._executor = executor
        self._poll_s = poll_s
        self._now = now
        self._next_poll = 0.0
        self._ended_since: dict[str, float] = {}
        self._missed: dict[str, int] = {}
        self.silent_reason: str | None = None

    def look(self) -> list[tuple[Evaluation, Verdict]]:
        """Look once at every live attempt; return those that were judged."""
        judged = []
        for evaluation, attempt in self._session.state.live_attempts():
            paths = self._session.paths.attempt(evaluation.id, attempt.number)
            if read_table(paths.result) is not None:
                judged.append(self._settle(evaluation, attempt, None))
        if self._now() >= self._next_poll:
            self._next_poll = self._now() + self._poll_s
            judged += self._poll()
        return judged

    def _poll(self) -> list[tuple[Evaluation, Verdict]]:
        live = {
            attempt.job_id: (evaluation, attempt)
            for evaluation, attempt in self._session.state.live_attempts()
            if attempt.job_id is not None
        }
        if not live:
            return []
        reports = self._executor.reports([_job(attempt) for _, attempt in live.values()])
        silent = [report for report in reports.values() if report.state is JobState.UNKNOWN]
        self.silent_reason = silent[0].reason if silent else None
        # Cancelled before its job had an id, or by a controller that died before it said so.
        self._end(
            [
                _job(attempt)
                for job_id, (evaluation, attempt) in live.items()
                if evaluation.state is State.CANCELLED
                and reports[job_id].state in (JobState.PENDING, JobState.RUNNING)
            ]
        )
        judged = []
        for job_id, (evaluation, attempt) in live.items():
            verdict = self._act_on(reports[job_id], evaluation, attempt)
            if verdict is not None:
                judged.append(verdict)
        return judged

    def _act_on(
        self, report: JobReport, evaluation: Evaluation, attempt: Attempt
    ) -> tuple[Evaluation, Verdict] | None:
        key = str(attempt.job_id)
        if report.state is JobState.RUNNING and attempt.state is State.SUBMITTED:
            self._session.record(
                "attempt_started",
                evaluation=evaluation.id,
                attempt=attempt.number,
                **({"node": report.node} if report.node else {}),
            )
        if report.state is JobState.VANISHED:
            self._missed[key] = self._missed.get(key, 0) + 1
            if self._missed[key] < 2 or not self._is_silent(evaluation, attempt):
                return None
        elif report.state is JobState.ENDED:
            self._missed.pop(key, None)
            since = self._ended_since.setdefault(key, self._now())
            # A worker that a signal ended had no time to leave a result.
            expects_result = report.raw in ("COMPLETED", "FAILED") and report.signal is None
            if expects_result and self._now() - since < RESULT_GRACE_S:
                return None
            if self._is_at_work_elsewhere(evaluation, attempt):
                return None
        else:
            self._missed.pop(key, None)
            self._ended_since.pop(key, None)
            return None
        return self._settle(evaluation, attempt, report)

    def _is_at_work_elsewhere(self, evaluation: Evaluation, attempt: Attempt) -> bool:
        """Whether a job that nobody knows of holds the attempt and gives signs of life.

        A controller that was paused before sbatch and then replaced, or a ledger that was cut,
        leaves such a job; ours has then ended without training, and the other's result counts.
        """
        claim = read_table(self._session.paths.attempt(evaluation.id, attempt.number).claim)
        return (
            claim is not None
            and claim.get("job_id") != attempt.job_id
            and evaluation.state is not State.CANCELLED
            and not self._is_silent(evaluation, attempt)
        )

    def _is_silent(self, evaluation: Evaluation, attempt: Attempt) -> bool:
        paths = self._session.paths.attempt(evaluation.id, attempt.number)
        age = heartbeat_age_s(paths, time.time())
        return age is None or age > self._stale_after_s

    @property
    def _stale_after_s(self) -> float:
        return _STALE_BEATS * self._session.settings.train.heartbeat_s

    def _settle(
        self, evaluation: Evaluation, attempt: Attempt, report: JobReport | None
    ) -> tuple[Evaluation, Verdict]:
        """Judge an attempt and put its verdict on record."""
        session = self._session
        paths = session.paths.attempt(evaluation.id, attempt.number)
        log = self._executor.log(_job(attempt))
        submission = session.state.submissions[attempt.submission]
        seen = observe(
            paths,
            log,
            report,
            root=session.paths.folder,
            limit_s=60 * float(str(submission.resources["timeout_min"])),
            stale_after_s=self._stale_after_s,
            cancel_requested=evaluation.state is State.CANCELLED,
        )
        verdict = judge(seen)
        result, beat = seen.result, seen.heartbeat or {}
        known = {"node": (report.node if report else None) or attempt.node or beat.get("host")}
        known |= {"elapsed_s": seen.elapsed_s}
        session.record(
            "attempt_finished",
            evaluation=evaluation.id,
            attempt=attempt.number,
            verdict=encode_verdict(verdict),
            result=None
            if result is None
            else {key: value for key, value in result.items() if key not in _NOT_IN_LEDGER},
            size_bytes=measure(paths.folder) + (log.stat().st_size if log.exists() else 0),
            **{key: value for key, value in known.items() if value is not None},
        )
        return session.state.evaluations[evaluation.id], verdict

    def cancel(self, evaluations: list[Evaluation]) -> str | None:
        """Ask the scheduler to end the live attempts of evaluations; return why it could not."""
        jobs = [
            _job(attempt)
            for evaluation in evaluations
            if (attempt := evaluation.last_attempt)
            and attempt.job_id
            and not attempt.state.is_finished
        ]
        self._next_poll = 0.0
        return self._end(jobs)

    def _end(self, jobs: list[LiveJob]) -> str | None:
        if not jobs:
            return None
        try:
            self._executor.cancel(jobs)
        except EnvironmentNotReady as exc:
            logger.warning("%s", exc.message)
            return exc.message
        return None


def _job(attempt: Attempt) -> LiveJob:
    return LiveJob(
        job_id=str(attempt.job_id), submission=attempt.submission, task_index=attempt.task_index
    )
