"""Monitor of live attempts, until each has a recorded verdict.

A worker that has written its result drops an empty marker into `finished/`, so one scan of one
folder finds every new result.  A worker that was killed between the two is found by the state of
its job.
"""

import logging
import time
from collections.abc import Callable, Iterator, Mapping

from elmanctl.errors import EnvironmentNotReady
from elmanctl.ledger.payloads import AttemptFinished, AttemptStarted
from elmanctl.ledger.records import (
    Attempt,
    Evaluation,
    Evidence,
    EvidenceSource,
    State,
    Verdict,
    VerdictKind,
)
from elmanctl.run.progress import heartbeat_age_s, heartbeat_timeout_s, read_table
from elmanctl.schedulers.executor import Executor, JobReport, JobState, LiveJob, PollResult
from elmanctl.schedulers.lanes import slurm_job
from elmanctl.search.file_owners import attempt_sizes
from elmanctl.search.nodes import NODE_NAME
from elmanctl.search.poll import live_job
from elmanctl.search.session import Session
from elmanctl.verdicts.judge import judge
from elmanctl.verdicts.observation import Observation, observe
from elmanctl.verdicts.worker_result import find_mismatch

logger = logging.getLogger(__name__)

# A job may end before its result is visible on a shared file system.
RESULT_GRACE_S = 15.0

# A job is lost when it is missing in so many consecutive polls; in more while sacct is silent,
# since it may still report how the job ended.
_MISSED = 2
_MISSED_UNHEARD = 5

# Left in the result file: too long, or constant within a run.
_NOT_IN_LEDGER = (
    *("version", "verdict", "versions", "protocol"),
    # Fields of the event itself.
    *("evaluation", "attempt", "parameters_expected"),
)


class Watcher:
    """Records how attempts start and end, from the files of workers and polls of the scheduler."""

    def __init__(
        self, session: Session, executor: Executor, *, now: Callable[[], float] = time.monotonic
    ) -> None:
        self._session = session
        self._executor = executor
        self._now = now
        self._ended: dict[str, tuple[float, JobReport]] = {}
        self._missed: dict[str, int] = {}
        # Workers write markers only if the folder exists.
        session.paths.finished.mkdir(exist_ok=True)

    def look(self, polled: PollResult | None) -> list[tuple[Evaluation, Verdict]]:
        """Look at what is new; return the attempts that were judged.

        `polled` is what the scheduler said, None when it was not asked this time.
        """
        judged = [*self._collect_finished(), *self._judge_ended()]
        if polled is not None:
            judged += self._act_on_all(polled)
        return judged

    def _collect_finished(self) -> Iterator[tuple[Evaluation, Verdict]]:
        """Settle attempts with a marker, and remove the marker."""
        try:
            names = sorted(marker.name for marker in self._session.paths.finished.iterdir())
        except OSError as exc:
            logger.debug("no markers can be read: %s", exc)
            return
        for name in names:
            evaluation_id, _, number = name.rpartition("-")
            evaluation = self._session.state.evaluations.get(evaluation_id)
            attempts = () if evaluation is None else evaluation.attempts
            attempt = next((one for one in attempts if str(one.number) == number), None)
            if evaluation is None or attempt is None:
                continue
            if not attempt.state.is_finished:
                result = self._result(evaluation, attempt)
                if result is None:
                    # A shared file system may show the marker first.
                    continue
                yield self._settle(evaluation, attempt, None, result)
            # Removed after the record: a kill in between leaves it for the next controller.
            (self._session.paths.finished / name).unlink(missing_ok=True)

    def _judge_ended(self) -> Iterator[tuple[Evaluation, Verdict]]:
        """Settle ended jobs when their result has come or the grace period is over."""
        live = {str(pair[1].job_id): pair for pair in self._live()} if self._ended else {}
        for key, (since, report) in list(self._ended.items()):
            if key not in live:
                del self._ended[key]
                continue
            evaluation, attempt = live[key]
            is_over = self._now() - since >= RESULT_GRACE_S
            result = self._result(evaluation, attempt)
            if result is not None or (
                is_over and not self._is_at_work_elsewhere(evaluation, attempt)
            ):
                yield self._settle(evaluation, attempt, report, result)

    def _live(self) -> list[tuple[Evaluation, Attempt]]:
        return [pair for pair in self._session.state.live_attempts() if pair[1].job_id is not None]

    def _act_on_all(self, polled: PollResult) -> Iterator[tuple[Evaluation, Verdict]]:
        live = [
            (report, evaluation, attempt)
            for evaluation, attempt in self._live()
            if (report := polled.reports.get(str(attempt.job_id))) is not None
        ]
        # Cancelled before the job had an id, or by a controller that died before scancel.
        self._end(
            [
                live_job(self._session.state, attempt)
                for report, evaluation, attempt in live
                if evaluation.state is State.CANCELLED
                and report.state in (JobState.PENDING, JobState.RUNNING)
            ]
        )
        for report, evaluation, attempt in live:
            verdict = self._act_on(report, evaluation, attempt)
            if verdict is not None:
                yield verdict

    def _act_on(
        self, report: JobReport, evaluation: Evaluation, attempt: Attempt
    ) -> tuple[Evaluation, Verdict] | None:
        key = str(attempt.job_id)
        # A job that only sacct calls alive is not retried automatically: sacct may be right.
        # A user who cancels its evaluation says that it is not.
        cancelled = evaluation.state is State.CANCELLED
        if report.state is JobState.VANISHED or (report.is_unlisted and cancelled):
            self._missed[key] = self._missed.get(key, 0) + 1
            enough = _MISSED if report.reason is None else _MISSED_UNHEARD
            result = self._result(evaluation, attempt)
            if result is None and (
                self._missed[key] < enough or not self._is_silent(evaluation, attempt)
            ):
                return None
            return self._settle(evaluation, attempt, report, result)
        self._missed.pop(key, None)
        if report.is_unlisted and (result := self._result(evaluation, attempt)) is not None:
            return self._settle(evaluation, attempt, report, result)
        if report.state is JobState.ENDED:
            since, _ = self._ended.setdefault(key, (self._now(), report))
            # A worker killed by a signal had no time to write a result.
            expects_result = report.raw in ("COMPLETED", "FAILED") and report.signal is None
            is_over = not expects_result or self._now() - since >= RESULT_GRACE_S
            result = self._result(evaluation, attempt)
            if result is None and (not is_over or self._is_at_work_elsewhere(evaluation, attempt)):
                return None
            return self._settle(evaluation, attempt, report, result)
        # Alive, possibly requeued by the scheduler after an end.
        self._ended.pop(key, None)
        if report.state is JobState.RUNNING and attempt.state is State.SUBMITTED:
            self._session.record(
                AttemptStarted(
                    evaluation=evaluation.id, attempt=attempt.number, node=report.node or None
                )
            )
        return None

    def _result(self, evaluation: Evaluation, attempt: Attempt) -> Mapping[str, object] | None:
        return read_table(self._session.paths.attempt(evaluation.id, attempt.number).result)

    def _is_at_work_elsewhere(self, evaluation: Evaluation, attempt: Attempt) -> bool:
        """Whether an unrecorded job has claimed the attempt and its heartbeat is fresh.

        A controller that was paused before sbatch and then replaced, or a ledger that was cut,
        leaves such a job; ours has then ended without training, and the other's result counts.
        """
        claim = read_table(self._session.paths.attempt(evaluation.id, attempt.number).claim)
        return (
            claim is not None
            and claim.get("job_id") != slurm_job(str(attempt.job_id))
            and evaluation.state is not State.CANCELLED
            and not self._is_silent(evaluation, attempt)
        )

    def _is_silent(self, evaluation: Evaluation, attempt: Attempt) -> bool:
        paths = self._session.paths.attempt(evaluation.id, attempt.number)
        age = heartbeat_age_s(paths, time.time())
        return age is None or age > self._stale_after_s

    @property
    def _stale_after_s(self) -> float:
        return heartbeat_timeout_s(self._session.settings.train.heartbeat_s)

    def _settle(
        self,
        evaluation: Evaluation,
        attempt: Attempt,
        report: JobReport | None,
        result: Mapping[str, object] | None,
    ) -> tuple[Evaluation, Verdict]:
        """Judge an attempt and record its verdict."""
        session = self._session
        paths = session.paths.attempt(evaluation.id, attempt.number)
        log = self._executor.log(live_job(session.state, attempt))
        submission = session.state.submissions[attempt.submission]
        seen = observe(
            paths,
            log,
            report,
            result=result,
            root=session.paths.folder,
            limit_s=60 * submission.resources.timeout_min,
            stale_after_s=self._stale_after_s,
            cancel_requested=evaluation.state is State.CANCELLED,
            stop_requested=attempt.stop is not None,
            has_started=attempt.state is not State.SUBMITTED,
        )
        fault = _mismatch(seen, evaluation, attempt)
        verdict = judge(seen) if fault is None else fault
        result = seen.result if fault is None else None
        tasks = submission.resources.tasks
        sizes = attempt_sizes(session.paths, evaluation.id, attempt, ranks=tasks)
        kept = {key: value for key, value in (result or {}).items() if key not in _NOT_IN_LEDGER}
        node = _node_at_fault(seen) or (report.node if report else None) or attempt.node
        session.record(
            AttemptFinished(
                evaluation=evaluation.id,
                attempt=attempt.number,
                verdict=verdict,
                result=None if result is None else kept,
                size_bytes=sum(sizes.values()),
                sizes=sizes,
                node=node or _host(seen.heartbeat or {}),
                elapsed_s=seen.elapsed_s,
            )
        )
        return session.state.evaluations[evaluation.id], verdict

    def cancel(self, evaluations: list[Evaluation]) -> str | None:
        """Cancel the live jobs of evaluations; return the error of the scheduler, if any."""
        return self._end(
            [
                live_job(self._session.state, attempt)
                for evaluation in evaluations
                if (attempt := evaluation.last_attempt)
                and attempt.job_id
                and not attempt.state.is_finished
            ]
        )

    def _end(self, jobs: list[LiveJob]) -> str | None:
        if not jobs:
            return None
        try:
            self._executor.cancel(jobs)
        except EnvironmentNotReady as exc:
            logger.warning("%s", exc.message)
            return exc.message
        return None


def _host(beat: Mapping[str, object], key: str = "host") -> str | None:
    """Return the node named by a heartbeat, None for anything but a node name."""
    host = beat.get(key)
    return host if isinstance(host, str) and NODE_NAME.fullmatch(host) else None


def _node_at_fault(seen: Observation) -> str | None:
    """Return the one of a job's nodes on which a rank failed or was lost, None if it is unknown."""
    if seen.result is not None:
        return _host(seen.result, "failed_on")
    return _host(seen.lost_rank or {}, "node")


def _mismatch(seen: Observation, evaluation: Evaluation, attempt: Attempt) -> Verdict | None:
    """Return the verdict on the result of another attempt, None for the attempt's own."""
    text = find_mismatch(
        seen.result or {},
        evaluation=evaluation.id,
        attempt=attempt.number,
        parameters=evaluation.parameters,
    )
    if text is None:
        return None
    evidence = Evidence(source=EvidenceSource.RESULT, text=text, file=seen.result_file)
    return Verdict(kind=VerdictKind.UNDETERMINED, evidence=(evidence,))
