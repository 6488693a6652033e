"""Submitting attempts, and finding again what was submitted but never recorded.

The intention is in the ledger before the scheduler hears of it, under a name that no other
submission has.  Whatever happens in between, the name tells later whether it was accepted.
"""

import logging
import time
from collections.abc import Mapping, Sequence
from itertools import groupby
from typing import Any

from elmanctl.errors import EnvironmentNotReady, SearchPaused, SubmissionError
from elmanctl.jobs.executor import (
    Executor,
    Sighting,
    SubmissionTooLarge,
    SubmissionUnknown,
)
from elmanctl.jobs.retry import decide
from elmanctl.ledger.disk import free_bytes
from elmanctl.ledger.encoding import encode_submission
from elmanctl.ledger.files import write_json
from elmanctl.ledger.records import Evaluation, State, Submission, Task
from elmanctl.search.poll import Poller
from elmanctl.search.session import Session
from elmanctl.search.workload import attempt_resources, attempt_spec

logger = logging.getLogger(__name__)

_GB = 1_000_000_000

# A scheduler that refused, for a limit on jobs say, is left in peace for so long.
_REFUSED_PAUSE_S = 60.0


class Dispatcher:
    """Turns evaluations that wait into submissions."""

    def __init__(self, session: Session, executor: Executor, poller: Poller) -> None:
        self._session = session
        self._executor = executor
        self._poller = poller
        self._next_submission = 0.0

    def adopt_all(self) -> Sighting | None:
        """Settle every submission whose answer is not on record; return what the look brought.

        Raises EnvironmentNotReady when the scheduler cannot say: then nothing is concluded.
        """
        sighting = self._poller.look()
        if sighting is not None:
            self.adopt(sighting)
        left = self._poller.intended()
        if left:
            raise EnvironmentNotReady(
                self._poller.silent_reason or "the scheduler cannot be asked yet",
                hint=f"whether it took {len(left)} submissions is not known; `elmanctl resume` "
                "when it answers",
            )
        return sighting

    def adopt(self, sighting: Sighting) -> None:
        """Put on record what became of submissions that were looked up."""
        for submission in self._poller.intended():
            if submission.id not in sighting.found:
                continue
            job_id = sighting.found[submission.id]
            if job_id is not None:
                self._session.record(
                    "submission_accepted", submission=submission.id, job_id=job_id, adopted=True
                )
            else:
                self._session.record(
                    "submission_abandoned",
                    submission=submission.id,
                    error="the scheduler has no job of this name",
                )

    def waiting(self) -> list[Evaluation]:
        """Return the evaluations that need a new attempt, in order."""
        return [
            evaluation
            for evaluation in self._session.state.unfinished()
            if evaluation.state is State.CREATED and self._changes(evaluation) is not None
        ]

    def submit_waiting(self) -> None:
        """Submit what waits, as far as there is room.

        Raises SearchPaused when the disk is nearly full, SubmissionError when the scheduler
        refuses and nothing is running that could change its mind.
        """
        waiting = self.waiting()
        if not waiting or time.monotonic() < self._next_submission:
            return
        if self._executor.tasks_per_submission == 0:
            # Known after the next look.
            return
        live = self._session.state.live_attempts()
        slots = self._executor.free_slots(self._slot(attempt) for _, attempt in live)
        ready = list(zip(waiting, slots, strict=False))
        if not ready:
            return
        self._check_disk()
        for resources, group in groupby(ready, key=lambda pair: self._resources(pair[0])):
            members = list(group)
            size = self._executor.tasks_per_submission or len(members)
            for first in range(0, len(members), size):
                try:
                    self._submit(members[first : first + size], resources)
                except SubmissionTooLarge as exc:
                    logger.info("%d attempts are too many at once: %s", size, exc.message)
                    return
                except SubmissionUnknown as exc:
                    logger.warning("the answer of a submission is missing: %s", exc.message)
                    return
                except SubmissionError as exc:
                    if not self._session.state.live_attempts():
                        raise
                    self._next_submission = time.monotonic() + _REFUSED_PAUSE_S
                    logger.warning("a submission was refused, trying later: %s", exc.message)
                    return

    def _submit(
        self, members: Sequence[tuple[Evaluation, int | None]], resources: Mapping[str, Any]
    ) -> None:
        session = self._session
        number = self._next_number()
        submission = Submission(
            id=f"s{number:04}",
            job_name=f"elman-{session.run['name']}-{session.run['token']}-s{number:04}",
            tasks=tuple(
                Task(
                    index=index,
                    evaluation=evaluation.id,
                    attempt=len(evaluation.attempts) + 1,
                    slot=slot,
                )
                for index, (evaluation, slot) in enumerate(members)
            ),
            resources=resources,
        )
        self._write_specs(submission)
        session.record("submission_intended", submission=encode_submission(submission))
        intended = session.state.submissions[submission.id]
        try:
            job_id = self._executor.submit(intended, session.paths.submission(submission.id))
        except SubmissionUnknown:
            self._poller.heard_nothing_of(submission.id)
            raise
        except SubmissionError as exc:
            session.record("submission_refused", submission=submission.id, error=exc.message)
            raise
        session.record(
            "submission_accepted", submission=submission.id, job_id=job_id, adopted=False
        )

    def _next_number(self) -> int:
        """Return the number of the next submission, whose name nobody has used.

        Where a ledger was cut, the folders of submissions that it forgot are still there, and
        their jobs would be found in place of ours.
        """
        number = len(self._session.state.submissions) + 1
        while self._session.paths.submission(f"s{number:04}").exists():
            number += 1
        return number

    def _write_specs(self, submission: Submission) -> None:
        session = self._session
        limit = int(str(submission.resources["timeout_min"]))
        for task in submission.tasks:
            evaluation = session.state.evaluations[task.evaluation]
            spec = attempt_spec(session.run, session.settings, evaluation, task.attempt, limit)
            paths = session.paths.attempt(task.evaluation, task.attempt)
            paths.folder.mkdir(parents=True, exist_ok=True)
            write_json(paths.spec, spec.encode())

    def _resources(self, evaluation: Evaluation) -> dict[str, Any]:
        changes = {**evaluation.changes, **(self._changes(evaluation) or {})}
        return attempt_resources(
            self._session.settings, self._session.run["executor"], changes
        ).encode()

    def _changes(self, evaluation: Evaluation) -> Mapping[str, Any] | None:
        """Return what the next attempt changes, None when there is to be none."""
        verdicts = verdicts_since_reopened(evaluation)
        if not verdicts:
            return {}
        last = evaluation.last_attempt
        assert last is not None
        asked = self._session.state.submissions[last.submission].resources.get("mem_gb")
        mem_gb = float(asked) if isinstance(asked, int | float) else None
        decision = decide(verdicts, self._session.settings.retry, mem_gb=mem_gb)
        return decision.changes if decision.close is None else None

    def _slot(self, attempt: Any) -> int | None:
        submission = self._session.state.submissions[attempt.submission]
        return next(task.slot for task in submission.tasks if task.index == attempt.task_index)

    def _check_disk(self) -> None:
        floor_gb = self._session.settings.disk.floor_gb
        free_gb = free_bytes(self._session.paths.folder) / _GB
        if free_gb < floor_gb:
            raise SearchPaused(
                f"{free_gb:.2f} GB are free, under the floor of {floor_gb:g} GB (`disk.floor_gb`)",
                hint="make room, e.g. with `elmanctl clean`, then `elmanctl resume`",
            )


def verdicts_since_reopened(evaluation: Evaluation) -> list[Any]:
    """Return the verdicts that count for the retry policy, oldest first.

    A re-queue by hand starts the count anew; attempts that were taken back have no verdict.
    """
    since = evaluation.changes.get("since_attempt", 0)
    first = int(since) if isinstance(since, int) else 0
    return [a.verdict for a in evaluation.attempts[first:] if a.verdict is not None]
