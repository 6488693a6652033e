"""The records of a submission: its tasks, the resources that it asks for, the answer to it."""

from collections.abc import Mapping
from dataclasses import dataclass
from enum import StrEnum

from elmanctl.codec import json_field


class SubmissionState(StrEnum):
    """The state of a submission: intended until the scheduler's answer is on record."""

    INTENDED = "intended"
    ACCEPTED = "accepted"
    REFUSED = "refused"
    ABANDONED = "abandoned"


@dataclass(frozen=True, slots=True, kw_only=True)
class Allocation:
    """A job of the user, on whose nodes the controller runs attempts: its id and its name."""

    job_id: str
    job_name: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Task:
    """One element of a submission: which attempt it runs, on which numbered slot, and its GPUs.

    A slot is one of this machine, or of the `allocation` in which the attempt is a step.  `gpus`
    are entries of `local.gpus`, whose order may change while the attempt runs.
    """

    index: int
    evaluation: str
    attempt: int
    slot: int | None = json_field(default=None, omit=True)
    gpus: tuple[int | str, ...] = json_field(default=(), omit=True)
    allocation: Allocation | None = json_field(default=None, omit=True)


@dataclass(frozen=True, slots=True, kw_only=True)
class Resources:
    """The request of one attempt; `timeout_min` is its limit in minutes, 0 where it is unknown.

    It runs `tasks_per_node` tasks on each of so many `nodes`, one for each GPU that trains the same
    model; `gres` and `mem_gb` are those of a node.  `exclude` names the nodes that it must not run
    on.  One job has `per_job` attempts, and asks for so many times as much.
    """

    timeout_min: int | float = json_field(default=0, omit=True)
    nodes: int = json_field(default=1, omit=True)
    tasks_per_node: int = json_field(default=1, omit=True)
    partition: str | None = json_field(default=None, omit=True)
    account: str | None = json_field(default=None, omit=True)
    gres: str | None = json_field(default=None, omit=True)
    mem_gb: int | float | None = json_field(default=None, omit=True)
    cpus: int | None = json_field(default=None, omit=True)
    setup: tuple[str, ...] = json_field(default=(), omit=True)
    extra: Mapping[str, object] = json_field(default_factory=dict, omit=True)
    python: str | None = json_field(default=None, omit=True)
    exclude: tuple[str, ...] = json_field(default=(), omit=True)
    per_job: int = json_field(default=1, omit=True)

    @property
    def tasks(self) -> int:
        """The tasks of one job, the ranks of its training."""
        return self.nodes * self.tasks_per_node


@dataclass(frozen=True, slots=True, kw_only=True)
class SubmissionIntent:
    """A call of sbatch, or of the local executor, that is about to be made.

    It is an array of tasks under one job name; without `is_array` one task, whose job has its id.
    """

    id: str
    job_name: str
    tasks: tuple[Task, ...]
    resources: Resources = Resources()
    is_array: bool = json_field(default=True, omit=True)


@dataclass(frozen=True, slots=True, kw_only=True)
class Submission(SubmissionIntent):
    """A submission, and the scheduler's answer to it."""

    state: SubmissionState = SubmissionState.INTENDED
    job_id: str | None = None
    intended_at: str | None = None
    error: str | None = None

    @property
    def allocation(self) -> Allocation | None:
        """The allocation in which its attempt is a step, None for jobs of their own."""
        # A snapshot holds submissions without their tasks.
        return self.tasks[0].allocation if self.tasks else None

    def job_of(self, job_id: str, index: int) -> str:
        """Return the id of one task's job, given the id that the submission got.

        Where a job has several attempts, the lane is part of it: `4711_0.lane2`.
        """
        per_job = self.resources.per_job
        lane = f".lane{index % per_job}" if per_job > 1 else ""
        return f"{job_id}_{index // per_job}{lane}" if self.is_array else f"{job_id}{lane}"

    def lanes_of(self, index: int) -> tuple[int, ...]:
        """Return the tasks that share a job with one, itself among them; none without lanes."""
        per_job = self.resources.per_job
        first = index - index % per_job
        most = min(first + per_job, len(self.tasks))
        return tuple(range(first, most)) if per_job > 1 else ()
