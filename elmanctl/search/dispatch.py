"""Dispatch of attempts to the scheduler, and adoption of submissions whose answer was lost.

The intent is recorded before the scheduler is called, under a job name that no other submission
has.  Whatever happens in between, a lookup of the name shows whether it was accepted.
"""

import logging
import math
import shutil
import time
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from itertools import groupby
from typing import Any

from elmanctl import clock
from elmanctl.errors import EnvironmentNotReady, SubmissionError
from elmanctl.ledger.files import write_json
from elmanctl.ledger.payloads import (
    SubmissionAbandoned,
    SubmissionAccepted,
    SubmissionIntended,
    SubmissionRefused,
)
from elmanctl.ledger.records import Evaluation, RunStatus
from elmanctl.ledger.reserve import hold
from elmanctl.ledger.spending import devices
from elmanctl.ledger.submissions import Resources, Submission, SubmissionIntent, Task
from elmanctl.schedulers.executor import (
    AllocationExecutor,
    Executor,
    PollResult,
    SubmissionDeferred,
    SubmissionTooLarge,
    SubmissionUnknown,
)
from elmanctl.schedulers.sbatch_answer import brief
from elmanctl.schedulers.scheduler_note import Refusal
from elmanctl.search.allocation_end import has_time
from elmanctl.search.backoff import Pace
from elmanctl.search.costs import affordable, mean_device_s, overspent
from elmanctl.search.disk_admission import DiskAdmission
from elmanctl.search.early_stopping import EarlyStopping
from elmanctl.search.effective_settings import avoided_nodes
from elmanctl.search.model_pruning import ModelPruning
from elmanctl.search.nodes import readmit_oldest, says_no_node
from elmanctl.search.poll import Poller
from elmanctl.search.repeats import answering
from elmanctl.search.retry import Decisions
from elmanctl.search.session import Session
from elmanctl.search.sharing import Sharer, Sharing
from elmanctl.search.workload import attempt_resources, attempt_spec, found_micro_batches

logger = logging.getLogger(__name__)

# Interval between retries of a final refusal while live jobs may still bring results; when none is
# left the search ends with the scheduler's message.
_REFUSED_PAUSE_S = 300.0

# Time limit on submissions in one turn of the loop: the lease has to be renewed, and the controller
# may have been asked to stop.
_TURN_S = 20.0

# A submission without an answer is abandoned when it is missing in so many polls: a slow scheduler
# may still have been about to accept it at the first.
_ABSENCES = 2

# A submission of this age has been accepted or dropped.
_SETTLED_S = 600.0


@dataclass(frozen=True, slots=True)
class _Due:
    """An evaluation that needs a new attempt, with the changes and the slot of that attempt."""

    evaluation: Evaluation
    changes: Mapping[str, Any]
    slot: int | None = None


class Dispatcher:
    """Submits the next attempts of waiting evaluations."""

    def __init__(
        self,
        session: Session,
        executor: Executor,
        poller: Poller,
        decisions: Decisions,
        models: ModelPruning,
        stopping: EarlyStopping,
        *,
        sharing: Sharing | None = None,
        now: Callable[[], float] = time.monotonic,
    ) -> None:
        self._session = session
        self._executor = executor
        self._poller = poller
        self._decisions = decisions
        self._sharing = Sharing() if sharing is None else sharing
        self._sharer = Sharer(session, executor, self._wanted)
        self._sharing.join(self._sharer)
        self._now = now
        self._inside = executor if isinstance(executor, AllocationExecutor) else None
        self._next_submission = 0.0
        self._models = models
        self._stopping = stopping
        self._disk = DiskAdmission(session)
        self._pace = Pace()
        self._unanswered: Counter[str] = Counter()
        self._lost = 0
        self._to_come: Callable[[], int] = lambda: 0

    def adopt_all(self) -> PollResult | None:
        """Settle every submission without a recorded answer; return the result of the poll.

        If it is too early to poll, the next poll settles them.  Raises EnvironmentNotReady when
        the scheduler does not answer.
        """
        polled = self._poller.poll()
        if polled is not None:
            self.adopt(polled)
        reason, left = self._poller.silent_reason, self._poller.intended()
        if reason is not None and (left or polled is None):
            unknown = f"whether it took {len(left)} submissions is not known; " if left else ""
            raise EnvironmentNotReady(reason, hint=f"{unknown}`elmanctl resume` when it answers")
        return polled

    def adopt(self, polled: PollResult) -> None:
        """Record the outcome of submissions that were looked up."""
        for submission in self._poller.intended():
            if submission.id not in polled.found:
                continue
            job_id = polled.found[submission.id]
            if job_id is not None:
                self._session.record(
                    SubmissionAccepted(submission=submission.id, job_id=job_id, adopted=True)
                )
            elif self._is_missing(submission):
                self._session.record(
                    SubmissionAbandoned(
                        submission=submission.id, error="the scheduler has no job of this name"
                    )
                )
                self._back_off_if_lost(submission.id)
            else:
                continue
            self._unanswered.pop(submission.id, None)

    def _back_off_if_lost(self, submission: str) -> None:
        """Pause when the scheduler loses one submission after the other."""
        if submission in self._unanswered:
            self._lost += 1
            if self._lost > 1:
                self._pace.pause(self._now())

    def _is_missing(self, submission: Submission) -> bool:
        """Whether enough polls did not find the job of a submission.

        An old submission of an earlier controller needs only one: it would have been accepted by
        now.
        """
        if submission.id not in self._unanswered and _age_s(submission) > _SETTLED_S:
            return True
        self._unanswered[submission.id] += 1
        return self._unanswered[submission.id] >= _ABSENCES

    def check_room(self) -> None:
        """Raise SearchPaused unless the disk has room for an attempt, while none is live."""
        self._disk.admit(1, live=0)

    def expect(self, to_come: Callable[[], int]) -> None:
        """Take a share of the slots for attempts that are yet `to_come`, too."""
        self._to_come = to_come

    def room(self) -> int:
        """Return how many slots are free beside those that waiting attempts will take."""
        if self._session.state.status is RunStatus.CANCELLED:
            return 0
        return max(0, len(self._sharing.free_slots(self._sharer)) - len(self._waiting()))

    def leave(self) -> None:
        """Give this run's share of the slots to the other runs of this process."""
        self._sharing.leave(self._sharer)

    def submit_waiting(self) -> None:
        """Submit waiting evaluations, as far as budget, slots and disk allow.

        Raises SearchPaused when the disk is nearly full, and while no attempt is live when the
        budget is used up or the allocation ends; SubmissionError for a final refusal then.
        """
        waiting = self._waiting()
        if not waiting:
            self._poller.show_refusal(None)
            return
        live = self._live
        if live and self._now() < self._next_submission:
            return
        if self._executor.tasks_per_submission == 0:
            # Known after the next poll.
            return
        if self._inside and not has_time(self._session, self._inside, is_idle=not live):
            return
        waiting = self._paid(waiting, is_idle=not live)
        slots = self._sharing.free_slots(self._sharer)
        ready = [replace(due, slot=slot) for due, slot in zip(waiting, slots, strict=False)]
        ready = ready[: self._disk.admit(len(ready), live=live)]
        for resources, group in groupby(ready, key=self._resources):
            if not self._submit_alike(list(group), resources):
                return
        if ready:
            self._poller.show_refusal(None)

    def _submit_alike(self, members: Sequence[_Due], resources: Resources) -> bool:
        """Submit attempts with the same resources; return whether all were accepted.

        Raises SubmissionError as `submit_waiting` does.
        """
        left = list(members)
        until = self._now() + _TURN_S
        while left:
            if self._now() > until:
                return False
            most = self._executor.tasks_per_submission or len(left)
            size = min(most, self._pace.size(len(left), self._live, self._now()))
            if size == 0:
                return False
            began = self._now()
            try:
                self._submit(left[:size], resources)
            except SubmissionTooLarge as exc:
                logger.info("%d attempts are too many at once: %s", size, exc.message)
                return False
            except SubmissionUnknown as exc:
                level = logging.INFO if exc.is_taken else logging.WARNING
                logger.log(level, "the answer of a submission is missing: %s", exc.message)
                return False
            except SubmissionError as exc:
                if says_no_node(exc.message) and readmit_oldest(self._session, exc.message):
                    self.submit_waiting()
                    return False
                now = self._now()
                if isinstance(exc, SubmissionDeferred):
                    took_s = now - began
                    self._pace.refused(size, self._live, now, is_limit=exc.is_limit, took_s=took_s)
                    self._show_refusal(exc, self._pace.next_at, is_final=False)
                    return False
                if not self._live:
                    raise
                self._next_submission = now + _REFUSED_PAUSE_S
                self._show_refusal(exc, self._next_submission, is_final=True)
                return False
            self._lost = 0
            self._pace.taken(size, self._live, self._now())
            left = left[size:]
        return True

    @property
    def _live(self) -> int:
        return len(self._session.state.live)

    def _show_refusal(self, exc: SubmissionError, at: float, *, is_final: bool) -> None:
        """Show a refusal in the live view and in `status`, with the next try `at`."""
        self._poller.show_refusal(
            Refusal(words=brief(exc.message), hint=exc.hint, is_final=is_final),
            next_s=max(0.0, at - self._now()),
        )

    def _wanted(self) -> int:
        """Return how many attempts wait for a slot, or will ask for one."""
        is_cancelled = self._session.state.status is RunStatus.CANCELLED
        return 0 if is_cancelled else len(self._waiting()) + self._to_come()

    def _waiting(self) -> list[_Due]:
        """Return the evaluations that need a new attempt, in order."""
        return [
            _Due(evaluation, {**evaluation.changes, **decision.changes})
            for evaluation, decision in self._decisions.waiting()
            if decision.close is None and answering(self._session.state, evaluation) is None
        ]

    def _submit(self, members: Sequence[_Due], resources: Resources) -> None:
        session = self._session
        number = self._next_number()
        intent = SubmissionIntent(
            id=f"s{number:04}",
            job_name=f"elman-{session.run['name']}-{session.run['token']}-s{number:04}",
            tasks=tuple(
                Task(
                    index=index,
                    evaluation=due.evaluation.id,
                    attempt=len(due.evaluation.attempts) + 1,
                    slot=due.slot,
                    gpus=self._executor.gpus_of(due.slot),
                    allocation=None if self._inside is None else self._inside.allocation,
                )
                for index, due in enumerate(members)
            ),
            resources=resources,
            is_array=self._executor.has_arrays,
        )
        self._write_specs(intent, members)
        session.record(SubmissionIntended(submission=intent))
        submission = session.state.submissions[intent.id]
        try:
            job_id = self._executor.submit(submission, session.paths.submission(submission.id))
        except SubmissionUnknown as exc:
            self._unanswered[submission.id] = 0
            if not exc.is_taken:
                self._poller.delay_lookup(submission.id)
            raise
        except SubmissionError as exc:
            session.record(SubmissionRefused(submission=submission.id, error=exc.message))
            if isinstance(exc, SubmissionDeferred):
                # Retries may go on for hours, each with a folder of its own.
                shutil.rmtree(session.paths.submission(submission.id), ignore_errors=True)
            raise
        session.record(SubmissionAccepted(submission=submission.id, job_id=job_id, adopted=False))

    def _next_number(self) -> int:
        """Return the number of the next submission, whose name was never used.

        After a repair of the ledger the folders of lost submissions are still there, and a lookup
        of their names would find their jobs.
        """
        number = len(self._session.state.submissions) + 1
        while self._session.paths.submission(f"s{number:04}").exists():
            number += 1
        return number

    def _write_specs(self, submission: SubmissionIntent, members: Sequence[_Due]) -> None:
        session = self._session
        limit = int(submission.resources.timeout_min)
        kept = self._models.asked()
        for task, due in zip(submission.tasks, members, strict=True):
            # The changes of a retry are not among the evaluation's own.
            changed = replace(due.evaluation, changes=due.changes)
            spec = attempt_spec(session.run, session.settings, changed, task.attempt, limit)
            found = found_micro_batches(session.state, due.evaluation)
            spec = replace(spec, micro_batches=found, **self._stopping.asked(due.evaluation))
            if due.evaluation.confirms is None:
                spec = replace(spec, **kept)
            paths = session.paths.attempt(task.evaluation, task.attempt)
            paths.folder.mkdir(parents=True, exist_ok=True)
            write_json(paths.spec, spec.encode())
            with suppress(FileExistsError):
                hold(paths.reserve)

    def _resources(self, due: _Due) -> Resources:
        avoided = {node.node for node in avoided_nodes(self._session.state)}
        changes = {**due.changes, "exclude": sorted(avoided.union(due.changes.get("exclude", ())))}
        executor = self._session.run["executor"]
        resources = attempt_resources(self._session.settings, executor, changes)
        return resources if self._inside is None else self._inside.request(resources)

    def _paid(self, waiting: list[_Due], *, is_idle: bool) -> list[_Due]:
        """Return those of `waiting` that the budget covers.

        Raises SearchPaused when it covers none and no attempt is live.
        """
        state, settings = self._session.state, self._session.settings
        now = clock.now()
        expected_s = mean_device_s(state)
        if expected_s is None and settings.train.minutes is not None:
            resources = attempt_resources(settings, self._session.run["executor"], {})
            expected_s = 60 * settings.train.minutes * devices(resources)
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


def _age_s(submission: Submission) -> float:
    """Return the age of a submission, infinite in ledgers of versions that did not record it."""
    if submission.intended_at is None:
        return math.inf
    return (clock.now() - clock.from_text(submission.intended_at)).total_seconds()
