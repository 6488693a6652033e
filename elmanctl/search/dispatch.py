"""Submitting attempts, and finding again what was submitted but never recorded.

The intention is in the ledger before the scheduler hears of it, under a name that no other
submission has.  Whatever happens in between, the name tells later whether it was accepted.
"""

import logging
import time
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from itertools import groupby
from typing import Any

from elmanctl import clock
from elmanctl.errors import EnvironmentNotReady, SubmissionError
from elmanctl.jobs.executor import (
    Executor,
    Sighting,
    SubmissionTooLarge,
    SubmissionUnknown,
)
from elmanctl.ledger.encoding import encode_submission
from elmanctl.ledger.files import write_json
from elmanctl.ledger.records import Evaluation, State, Submission, Task
from elmanctl.ledger.reserve import hold
from elmanctl.ledger.spending import devices
from elmanctl.search.costs import affordable, mean_device_s, overspent
from elmanctl.search.in_force import nodes_in_force
from elmanctl.search.next_attempt import decision_on
from elmanctl.search.nodes import readmit_oldest, says_no_node
from elmanctl.search.poll import Poller
from elmanctl.search.repeats import answering
from elmanctl.search.room import Room
from elmanctl.search.session import Session
from elmanctl.search.workload import attempt_resources, attempt_spec

logger = logging.getLogger(__name__)

# A scheduler that refused, for a limit on jobs say, is left in peace for so long.
_REFUSED_PAUSE_S = 60.0


@dataclass(frozen=True, slots=True)
class _Due:
    """An evaluation that needs a new attempt, and all that this one gets of its own."""

    evaluation: Evaluation
    changes: Mapping[str, Any]
    slot: int | None = None


class Dispatcher:
    """Turns evaluations that wait into submissions."""

    def __init__(self, session: Session, executor: Executor, poller: Poller) -> None:
        self._session = session
        self._executor = executor
        self._poller = poller
        self._next_submission = 0.0
        self._room = Room(session)

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

    def submit_waiting(self) -> None:
        """Submit what waits, as far as there is room.

        Raises SearchPaused when the disk is nearly full, or when the budget is used up and
        nothing is running that could be waited for; SubmissionError when the scheduler
        refuses and nothing is running that could change its mind.
        """
        if time.monotonic() < self._next_submission:
            return
        waiting = self._waiting()
        if not waiting:
            return
        if self._executor.tasks_per_submission == 0:
            # Known after the next look.
            return
        live = self._session.state.live_attempts()
        waiting = self._paid(waiting, is_idle=not live)
        slots = self._executor.free_slots(self._slot(attempt) for _, attempt in live)
        ready = [replace(due, slot=slot) for due, slot in zip(waiting, slots, strict=False)]
        ready = ready[: self._room.for_attempts(len(ready), live=len(live))]
        if not ready:
            return
        for resources, group in groupby(ready, key=self._resources):
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
                    if says_no_node(exc.message) and readmit_oldest(self._session, exc.message):
                        self.submit_waiting()
                        return
                    if not self._session.state.live_attempts():
                        raise
                    self._next_submission = time.monotonic() + _REFUSED_PAUSE_S
                    logger.warning("a submission was refused, trying later: %s", exc.message)
                    return

    def _waiting(self) -> list[_Due]:
        """Return the evaluations that need a new attempt, in order."""
        state, settings = self._session.state, self._session.settings
        open_ones = [
            e
            for e in state.unfinished()
            if e.state is State.CREATED and answering(state, e) is None
        ]
        waiting = []
        for evaluation in open_ones:
            changes: Mapping[str, Any] = {}
            if evaluation.counted_attempts:
                decision = decision_on(state, settings, evaluation)
                if decision.close is not None:
                    continue
                changes = decision.changes
            waiting.append(_Due(evaluation, {**evaluation.changes, **changes}))
        return waiting

    def _submit(self, members: Sequence[_Due], resources: Mapping[str, Any]) -> None:
        session = self._session
        number = self._next_number()
        submission = Submission(
            id=f"s{number:04}",
            job_name=f"elman-{session.run['name']}-{session.run['token']}-s{number:04}",
            tasks=tuple(
                Task(
                    index=index,
                    evaluation=due.evaluation.id,
                    attempt=len(due.evaluation.attempts) + 1,
                    slot=due.slot,
                )
                for index, due in enumerate(members)
            ),
            resources=resources,
        )
        self._write_specs(submission, members)
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

    def _write_specs(self, submission: Submission, members: Sequence[_Due]) -> None:
        session = self._session
        limit = int(str(submission.resources["timeout_min"]))
        for task, due in zip(submission.tasks, members, strict=True):
            # What the last failure changes is not among the evaluation's own changes.
            changed = replace(due.evaluation, changes=due.changes)
            spec = attempt_spec(session.run, session.settings, changed, task.attempt, limit)
            paths = session.paths.attempt(task.evaluation, task.attempt)
            paths.folder.mkdir(parents=True, exist_ok=True)
            write_json(paths.spec, spec.encode())
            with suppress(FileExistsError):
                hold(paths.reserve)

    def _resources(self, due: _Due) -> dict[str, Any]:
        avoided = {node.node for node in nodes_in_force(self._session.state)}
        changes = {**due.changes, "exclude": sorted(avoided.union(due.changes.get("exclude", ())))}
        executor = self._session.run["executor"]
        return attempt_resources(self._session.settings, executor, changes).encode()

    def _paid(self, waiting: list[_Due], *, is_idle: bool) -> list[_Due]:
        """Return those of `waiting` that the budget pays for.

        Raises SearchPaused when it pays for none and nothing runs whose end could change that.
        """
        state, settings = self._session.state, self._session.settings
        now = clock.now()
        expected_s = mean_device_s(state)
        if expected_s is None and settings.train.minutes is not None:
            resources = attempt_resources(settings, self._session.run["executor"], {})
            expected_s = 60 * settings.train.minutes * devices(resources.encode())
        paid = affordable(
            [due.evaluation for due in waiting],
            state,
            settings.budget,
            expected_device_s=expected_s,
            now=now,
        )
        if not paid and is_idle:
            raise overspent(
                state,
                settings.budget,
                population=settings.search.population,
                expected_device_s=expected_s,
                now=now,
            )
        names = {evaluation.id for evaluation in paid}
        return [due for due in waiting if due.evaluation.id in names]

    def _slot(self, attempt: Any) -> int | None:
        submission = self._session.state.submissions[attempt.submission]
        return next(task.slot for task in submission.tasks if task.index == attempt.task_index)
