"""Submitting attempts, and finding again what was submitted but never recorded.

The intention is in the ledger before the scheduler hears of it, under a name that no other
submission has.  Whatever happens in between, the name tells later whether it was accepted.
"""

import logging
import time
from collections.abc import Mapping, Sequence
from contextlib import suppress
from itertools import groupby
from typing import Any

from elmanctl.errors import EnvironmentNotReady, SearchPaused, SubmissionError
from elmanctl.jobs.executor import Executor, SubmissionUnknown
from elmanctl.jobs.retry import decide
from elmanctl.ledger.disk import space_of
from elmanctl.ledger.encoding import encode_submission
from elmanctl.ledger.files import write_json
from elmanctl.ledger.records import Evaluation, State, Submission, SubmissionState, Task
from elmanctl.ledger.reserve import hold
from elmanctl.search.cleaning import Freed, plan_cleaning, remove_planned, retention
from elmanctl.search.session import Session
from elmanctl.search.storage import attempts_that_fit, describe_shortage
from elmanctl.search.workload import attempt_resources, attempt_spec

logger = logging.getLogger(__name__)

# A scheduler that refused, for a limit on jobs say, is left in peace for so long.
_REFUSED_PAUSE_S = 60.0

# Between two cleanings of a run that waits for room.
_CLEANED_PAUSE_S = 60.0


class Dispatcher:
    """Turns evaluations that wait into submissions."""

    def __init__(self, session: Session, executor: Executor, *, poll_s: float) -> None:
        self._session = session
        self._executor = executor
        self._poll_s = poll_s
        self._next_adoption = 0.0
        self._next_submission = 0.0
        self._next_cleaning = 0.0

    def adopt(self) -> None:
        """Settle every submission whose answer is not on record.

        Raises EnvironmentNotReady when the scheduler cannot say: then nothing is changed.
        """
        session = self._session
        for submission in list(session.state.submissions.values()):
            if submission.state is not SubmissionState.INTENDED:
                continue
            job_id = self._executor.find(submission, session.paths.submission(submission.id))
            if job_id is not None:
                session.record(
                    "submission_accepted", submission=submission.id, job_id=job_id, adopted=True
                )
            else:
                session.record(
                    "submission_abandoned",
                    submission=submission.id,
                    error="the scheduler has no job of this name",
                )

    def adopt_later(self) -> None:
        """Adopt while a search runs, no more often than the scheduler may be asked."""
        if time.monotonic() < self._next_adoption:
            return
        self._next_adoption = time.monotonic() + self._poll_s
        try:
            self.adopt()
        except EnvironmentNotReady as exc:
            logger.warning("%s", exc.message)

    def waiting(self) -> list[Evaluation]:
        """Return the evaluations that need a new attempt, in order."""
        return [
            evaluation
            for evaluation in self._session.state.evaluations.values()
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
        live = self._session.state.live_attempts()
        slots = self._executor.free_slots(self._slot(attempt) for _, attempt in live)
        ready = list(zip(waiting, slots, strict=False))
        ready = ready[: self._room(len(ready), len(live))]
        if not ready:
            return
        for resources, group in groupby(ready, key=lambda pair: self._resources(pair[0])):
            members = list(group)
            size = self._executor.tasks_per_submission or len(members)
            for first in range(0, len(members), size):
                try:
                    self._submit(members[first : first + size], resources)
                except SubmissionUnknown as exc:
                    # A slow scheduler may list the job only after a while.
                    self._next_adoption = time.monotonic() + self._poll_s
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
            with suppress(FileExistsError):
                hold(paths.reserve)

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

    def _room(self, wanted: int, live: int) -> int:
        """Return how many of the wanted attempts the disk has room for, beside the live ones.

        Raises SearchPaused at the floor, and when nothing fits and no job is left to wait for.
        """
        if not wanted:
            return 0
        fit = self._fitting(wanted, live)
        freed: Freed | None = None
        if fit <= 0 and self._may_clean():
            freed = self._clean()
            fit = self._fitting(wanted, live)
        if fit < 0 or (fit == 0 and not live):
            raise self._shortage(wanted, freed)
        return fit

    def _fitting(self, wanted: int, live: int) -> int:
        session = self._session
        fit = attempts_that_fit(
            space_of(session.paths.folder),
            session.settings.disk,
            attempt_bytes=session.state.disk.attempt_bytes,
            live=live,
        )
        return wanted if fit is None else min(wanted, fit)

    def _may_clean(self) -> bool:
        """Whether the run's own rules ask for cleaning; looking for what may go takes a while."""
        if not self._session.settings.disk.auto_clean or time.monotonic() < self._next_cleaning:
            return False
        self._next_cleaning = time.monotonic() + _CLEANED_PAUSE_S
        return True

    def _clean(self) -> Freed:
        """Free what the run's own rules let go, and say so in the ledger."""
        session = self._session
        policy = retention(session.settings.disk, {})
        plan = plan_cleaning(session.paths, session.state, policy)
        freed = remove_planned(session, plan)
        if freed.files:
            text = f"too little room: {freed.files} files, {freed.size_bytes} bytes, were cleaned"
            session.record("note", text=f"{text} by the rules of [disk]")
        return freed

    def _shortage(self, wanted: int, freed: Freed | None) -> SearchPaused:
        session = self._session
        settings, name = session.settings.disk, session.run["name"]
        text = describe_shortage(
            space_of(session.paths.folder),
            settings,
            attempt_bytes=session.state.disk.attempt_bytes,
            waiting=wanted,
        )
        plan = plan_cleaning(session.paths, session.state, retention(settings, {}))
        could_bytes = sum(item.size_bytes for item in plan)
        if freed is not None:
            text += f"; cleaning by the rules of [disk] freed {freed.size_bytes} bytes"
        return SearchPaused(
            text,
            hint=f"`elmanctl clean {name}` would free {could_bytes / 1e9:.3f} GB, `elmanctl disk` "
            f"shows what else takes room; then `elmanctl resume {name}`",
        )


def verdicts_since_reopened(evaluation: Evaluation) -> list[Any]:
    """Return the verdicts that count for the retry policy, oldest first.

    A re-queue by hand starts the count anew; attempts that were taken back have no verdict.
    """
    since = evaluation.changes.get("since_attempt", 0)
    first = int(since) if isinstance(since, int) else 0
    return [a.verdict for a in evaluation.attempts[first:] if a.verdict is not None]
