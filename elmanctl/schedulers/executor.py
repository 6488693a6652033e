"""Executor protocol: what the search loop needs from a scheduler, and the reports that it gets.

There are two executors: Slurm (`slurm_executor`) and this machine (`local_executor`).  Both run the
same worker through submitit.
"""

from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from enum import StrEnum
from pathlib import Path
from typing import Protocol, runtime_checkable

from elmanctl.errors import SubmissionError
from elmanctl.ledger.submissions import Allocation, Resources, Submission, Task
from elmanctl.settings import Settings

# State of an attempt that the allocation in which it was a step took along, beside Slurm's own.
ALLOCATION_ENDED = "ALLOCATION_ENDED"


class JobState(StrEnum):
    """State of a job in its scheduler, reduced to what the loop acts on."""

    PENDING = "pending"
    RUNNING = "running"
    ENDED = "ended"
    VANISHED = "vanished"


@dataclass(frozen=True, slots=True, kw_only=True)
class JobReport:
    """The scheduler's report on one job; `raw` is its own name for the state.

    For a job that vanished, `reason` is why accounting could not be asked about it, and
    `has_siblings` whether the scheduler still knows other tasks of its array.  A job that is alive
    according to accounting but in no queue `is_unlisted`.
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
    """A job that the loop polls: its id, its name, and the submission it belongs to.

    `since` is when that submission was intended, as the ledger writes times.  `lanes` are the tasks
    of the same Slurm job, itself among them; none where it has a job of its own.  One that is a
    step in an `allocation` has an id of both: `4711.s0003`.
    """

    job_id: str
    submission: str
    task_index: int
    job_name: str
    since: str | None = None
    lanes: tuple[int, ...] = ()
    allocation: Allocation | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class PollResult:
    """The result of one poll of the scheduler.

    `reports` are by job id; there is none for a job that could not be queried this time.  `found`
    holds the job id of each submission that was looked up, None for one that was never accepted; a
    submission that could not be looked up is missing.  `accounting_error` is why accounting did
    not answer; `accounting` whether the scheduler has any, None until it was needed.
    """

    reports: Mapping[str, JobReport] = field(default_factory=dict)
    found: Mapping[str, str | None] = field(default_factory=dict)
    accounting_error: str | None = None
    accounting: bool | None = None


class SubmissionUnknown(SubmissionError):
    """The scheduler's answer was lost; the submission may have been accepted.

    `is_taken`: it was accepted, and only the job's id is missing.
    """

    def __init__(self, message: str, *, is_taken: bool = False) -> None:
        super().__init__(message)
        self.is_taken = is_taken


class SubmissionDeferred(SubmissionError):
    """The scheduler refuses so many attempts for now; a retry later, or of fewer, may pass.

    `is_limit`: it refuses because of the number of jobs.
    """

    def __init__(self, message: str, *, hint: str | None = None, is_limit: bool = False) -> None:
        super().__init__(message, hint=hint)
        self.is_limit = is_limit


class SubmissionTooLarge(SubmissionError):
    """The scheduler refused so many attempts at once; fewer may pass after the next poll."""


class Executor(Protocol):
    """What the search loop needs from a scheduler."""

    name: str

    @property
    def tasks_per_submission(self) -> int | None:
        """The most attempts of one submission: None for any, 0 until the next poll finds out."""

    @property
    def has_arrays(self) -> bool:
        """Whether a submission is a job array, or else a single job with that id."""

    def adjust(self, settings: Settings, avoided: Collection[str]) -> None:
        """Use settings that were changed, and no slot of the nodes to avoid if there are others."""

    def free_slots(self, busy: Iterable[Task]) -> Sequence[int | None]:
        """Return the slots that are free for new attempts, given the tasks that have one."""

    def gpus_of(self, slot: int | None) -> tuple[int | str, ...]:
        """Return the entries of `local.gpus` on a slot, none where there are no such."""

    def submit(self, submission: Submission, folder: Path) -> str:
        """Submit and return the job id.

        Raises SubmissionError for a permanent refusal, SubmissionDeferred, SubmissionTooLarge or
        SubmissionUnknown.
        """

    def poll(self, jobs: Sequence[LiveJob], intended: Sequence[Submission]) -> PollResult:
        """Poll the scheduler once for all jobs, and for submissions without an answer on record.

        Raises EnvironmentNotReady when the scheduler cannot be asked: then nothing is known.
        """

    def cancel(self, jobs: Sequence[LiveJob]) -> None:
        """Ask the scheduler to cancel jobs."""

    def avoid(self, jobs: Sequence[LiveJob], resources: Resources) -> None:
        """Make pending jobs avoid the nodes that these resources exclude, and no others.

        Raises EnvironmentNotReady when the scheduler refuses, e.g. for a job that has started.
        """

    def log(self, job: LiveJob) -> Path:
        """Return the path of the job's output."""

    def check(self, *, asks: bool = True) -> None:
        """Raise EnvironmentNotReady when jobs cannot be submitted from here.

        `asks`: the scheduler itself is queried, too.
        """


@runtime_checkable
class AllocationExecutor(Executor, Protocol):
    """What the search loop needs besides from an executor whose slots are those of an allocation.

    What asks Slurm raises EnvironmentNotReady when that does not answer.
    """

    @property
    def allocation(self) -> Allocation:
        """The allocation that it was started in."""

    @property
    def slot_count(self) -> int:
        """How many attempts its nodes have room for."""

    @property
    def left_s(self) -> float | None:
        """The seconds until the allocation ends, None where it has no limit."""

    def request(self, resources: Resources) -> Resources:
        """Return the resources of an attempt as a step asks for them."""

    def warn(self, jobs: Sequence[LiveJob]) -> None:
        """Send the attempts of the allocation the signal that makes them save their state."""

    def cut(self, jobs: Sequence[LiveJob]) -> None:
        """End the attempts of the allocation, for they would end with it."""
