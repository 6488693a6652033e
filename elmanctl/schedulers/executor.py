"""The border to whatever runs jobs: what the search loop asks of it, and what it answers.

Two executors exist: Slurm (`slurm_executor`) and this machine (`local_executor`).  Both run the
same worker through submitit.
"""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from enum import StrEnum
from pathlib import Path
from typing import Protocol

from elmanctl.errors import SubmissionError
from elmanctl.ledger.records import Resources, Submission


class JobState(StrEnum):
    """A scheduler's word on one job, reduced to what the loop acts on."""

    PENDING = "pending"
    RUNNING = "running"
    ENDED = "ended"
    VANISHED = "vanished"


@dataclass(frozen=True, slots=True, kw_only=True)
class JobReport:
    """What the scheduler says of one job; `raw` is its own name for the state.

    Of a job that vanished, `reason` says why accounting could not be asked about it, and
    `has_siblings` whether the scheduler still knows other tasks of its array.  A job that is alive
    by accounting alone, and in no queue, `is_unlisted`.
    """

    state: JobState
    raw: str = ""
    reason: str | None = None
    node: str | None = None
    exit_code: int | None = None
    signal: int | None = None
    has_siblings: bool = False
    is_unlisted: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class LiveJob:
    """A job that the loop asks about: its id, its name, and the submission it belongs to.

    `since` is when that submission was intended, as the ledger writes times.
    """

    job_id: str
    submission: str
    task_index: int
    job_name: str
    since: str | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Sighting:
    """What one look at the scheduler brought.

    `reports` are by job id; a job without one could not be asked about this time.  `found` holds
    the job id of each submission that was looked up, or None for one that was never accepted; one
    that is not in it could not be looked up.  `unheard` is why something could not be asked,
    `accounting` whether the scheduler keeps any, None while nobody had to know.
    """

    reports: Mapping[str, JobReport] = field(default_factory=dict)
    found: Mapping[str, str | None] = field(default_factory=dict)
    unheard: str | None = None
    accounting: bool | None = None


class SubmissionUnknown(SubmissionError):
    """The scheduler's answer did not arrive; the submission may have been accepted.

    `is_taken` says that it was accepted, and only the job's id is missing.
    """

    def __init__(self, message: str, *, is_taken: bool = False) -> None:
        super().__init__(message)
        self.is_taken = is_taken


class SubmissionDeferred(SubmissionError):
    """The scheduler does not take so many attempts now; later, or fewer, it may.

    `is_limit` says that the number of jobs is what it refuses.
    """

    def __init__(self, message: str, *, hint: str | None = None, is_limit: bool = False) -> None:
        super().__init__(message, hint=hint)
        self.is_limit = is_limit


class SubmissionTooLarge(SubmissionError):
    """The scheduler refused so many attempts at once; fewer may pass after the next look."""


class Executor(Protocol):
    """What the search loop needs from a scheduler."""

    name: str

    @property
    def tasks_per_submission(self) -> int | None:
        """How many attempts one submission may hold: None any number, 0 known after a look."""

    @property
    def has_arrays(self) -> bool:
        """Whether a submission is an array of jobs, or else one job of that id."""

    def free_slots(self, busy: Iterable[int | None]) -> Sequence[int | None]:
        """Return the slots open for new attempts, given those that are taken."""

    def submit(self, submission: Submission, folder: Path) -> str:
        """Submit and return the job id.

        Raises SubmissionError for a refusal that stays one, SubmissionDeferred, SubmissionTooLarge
        or SubmissionUnknown.
        """

    def look(self, jobs: Sequence[LiveJob], intended: Sequence[Submission]) -> Sighting:
        """Ask once after all jobs, and after submissions whose answer is not on record.

        Raises EnvironmentNotReady when the scheduler cannot be asked: nobody may then conclude
        anything.
        """

    def cancel(self, jobs: Sequence[LiveJob]) -> None:
        """Ask for jobs to be ended."""

    def avoid(self, jobs: Sequence[LiveJob], resources: Resources) -> None:
        """Let jobs that wait avoid the nodes that these resources exclude, and no others.

        Raises EnvironmentNotReady when the scheduler does not do it, for one that began say.
        """

    def log(self, job: LiveJob) -> Path:
        """Return where the job's output is kept."""

    def check(self, *, asks: bool = True) -> None:
        """Raise EnvironmentNotReady when jobs cannot be submitted from here.

        `asks`: the scheduler itself is asked too.
        """
