"""The border to whatever runs jobs: what the search loop asks of it, and what it answers.

Two executors exist: Slurm (`slurm_executor`) and this machine (`local_executor`).  Both run the
same worker through submitit.
"""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from enum import StrEnum
from pathlib import Path
from typing import Any, Protocol

from elmanctl.errors import SubmissionError
from elmanctl.ledger.records import Submission


class JobState(StrEnum):
    """A scheduler's word on one job, reduced to what the loop acts on."""

    PENDING = "pending"
    RUNNING = "running"
    ENDED = "ended"
    VANISHED = "vanished"
    UNKNOWN = "unknown"


@dataclass(frozen=True, slots=True, kw_only=True)
class JobReport:
    """What the scheduler says of one job; `raw` is its own name for the state."""

    state: JobState
    raw: str = ""
    reason: str | None = None
    node: str | None = None
    exit_code: int | None = None
    signal: int | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class LiveJob:
    """A job that the loop asks about: its id and the submission it belongs to."""

    job_id: str
    submission: str
    task_index: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Resources:
    """What one job asks for; `timeout_min` is its time limit in minutes."""

    timeout_min: int
    partition: str | None = None
    account: str | None = None
    gres: str | None = None
    mem_gb: float | None = None
    cpus: int | None = None
    setup: tuple[str, ...] = ()
    extra: Mapping[str, Any] = field(default_factory=dict)
    python: str | None = None

    def encode(self) -> dict[str, Any]:
        """Return plain data for the ledger, without what is not set."""
        return {key: value for key, value in asdict(self).items() if value not in (None, (), {})}

    @classmethod
    def decode(cls, data: Mapping[str, Any]) -> "Resources":
        """Return the resources that `encode` wrote."""
        return cls(**{**data, "setup": tuple(data.get("setup", ()))})


class SubmissionUnknown(SubmissionError):
    """The scheduler's answer did not arrive; the submission may have been accepted."""


class Executor(Protocol):
    """What the search loop needs from a scheduler."""

    name: str

    @property
    def tasks_per_submission(self) -> int | None:
        """How many attempts one submission may hold, None for any number."""

    def free_slots(self, busy: Iterable[int | None]) -> Sequence[int | None]:
        """Return the slots open for new attempts, given those that are taken."""

    def submit(self, submission: Submission, folder: Path) -> str:
        """Submit and return the job id; raises SubmissionError or SubmissionUnknown."""

    def find(self, submission: Submission, folder: Path) -> str | None:
        """Return the job id of a submission that may have been accepted, None if it never was.

        Raises EnvironmentNotReady when the scheduler cannot be asked: nobody may then conclude
        that the submission does not exist.
        """

    def reports(self, jobs: Sequence[LiveJob]) -> Mapping[str, JobReport]:
        """Return a report for every job asked about."""

    def cancel(self, jobs: Sequence[LiveJob]) -> None:
        """Ask for jobs to be ended."""

    def log(self, job: LiveJob) -> Path:
        """Return where the job's output is kept."""

    def check(self) -> None:
        """Raise EnvironmentNotReady when jobs cannot be submitted from here."""
