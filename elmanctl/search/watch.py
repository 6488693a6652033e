"""Watching live attempts until each has a verdict on record."""

import logging
import time
from collections.abc import Callable, Mapping
from typing import Any

from elmanctl.errors import EnvironmentNotReady
from elmanctl.jobs.executor import Executor, JobReport, JobState, LiveJob
from elmanctl.jobs.observe import elapsed_s, heartbeat_age_s, read_log, read_table
from elmanctl.jobs.verdict import Observation, judge
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
            result = self._result(evaluation, attempt)
            if result is not None:
                judged.append(self._settle(evaluation, attempt, None, result))
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
        jobs = [
            LiveJob(job_id=job_id, submission=a.submission, task_index=a.task_index)
            for job_id, (_, a) in live.items()
        ]
        reports = self._executor.reports(jobs)
        silent = [report for report in reports.values() if report.state is JobState.UNKNOWN]
        self.silent_reason = silent[0].reason if silent else None
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
            expects_result = report.raw.split(" ")[0] in ("COMPLETED", "FAILED")
            if expects_result and self._now() - since < RESULT_GRACE_S:
                return None
        else:
            self._missed.pop(key, None)
            self._ended_since.pop(key, None)
            return None
        return self._settle(evaluation, attempt, report, self._result(evaluation, attempt))

    def _is_silent(self, evaluation: Evaluation, attempt: Attempt) -> bool:
        paths = self._session.paths.attempt(evaluation.id, attempt.number)
        age = heartbeat_age_s(paths, time.time())
        return age is None or age > _STALE_BEATS * self._session.settings.train.heartbeat_s

    def _result(self, evaluation: Evaluation, attempt: Attempt) -> dict[str, Any] | None:
        return read_table(self._session.paths.attempt(evaluation.id, attempt.number).result)

    def _settle(
        self,
        evaluation: Evaluation,
        attempt: Attempt,
        report: JobReport | None,
        result: Mapping[str, Any] | None,
    ) -> tuple[Evaluation, Verdict]:
        session = self._session
        paths = session.paths.attempt(evaluation.id, attempt.number)
        heartbeat = read_table(paths.heartbeat)
        submission = session.state.submissions[attempt.submission]
        job = LiveJob(
            job_id=str(attempt.job_id),
            submission=attempt.submission,
            task_index=attempt.task_index,
        )
        log = self._executor.log(job)
        verdict = judge(
            Observation(
                result=result,
                result_file=str(paths.result.relative_to(session.paths.folder)),
                report=report,
                log=read_log(log, session.paths.folder),
                heartbeat=heartbeat,
                cancel_requested=evaluation.state is State.CANCELLED,
                elapsed_s=elapsed_s(heartbeat),
                limit_s=60 * float(str(submission.resources["timeout_min"])),
            )
        )
        node = report.node if report else (heartbeat or {}).get("host")
        extra = {"node": node, "elapsed_s": elapsed_s(heartbeat)}
        session.record(
            "attempt_finished",
            evaluation=evaluation.id,
            attempt=attempt.number,
            verdict=encode_verdict(verdict),
            result=None
            if result is None
            else {key: value for key, value in result.items() if key not in _NOT_IN_LEDGER},
            size_bytes=measure(paths.folder) + (log.stat().st_size if log.exists() else 0),
            **{key: value for key, value in extra.items() if value is not None},
        )
        return session.state.evaluations[evaluation.id], verdict

    def cancel(self, evaluations: list[Evaluation]) -> str | None:
        """Ask the scheduler to end the live attempts of evaluations; return why it could not."""
        jobs = [
            LiveJob(job_id=a.job_id, submission=a.submission, task_index=a.task_index)
            for evaluation in evaluations
            if (a := evaluation.last_attempt) and a.job_id and not a.state.is_finished
        ]
        try:
            self._executor.cancel(jobs)
        except EnvironmentNotReady as exc:
            return exc.message
        self._next_poll = 0.0
        return None
