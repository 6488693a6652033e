"""The records of a run: evaluations, attempts, submissions, verdicts."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import StrEnum
from typing import Any

from elmanctl.codec import json_field
from elmanctl.ledger.shared_keys import SharedKeys

# In place of the generation of a confirmation, and of the branch of a generation for which no
# optimizer was asked.
CONFIRMATION = -2
NO_BRANCH = -1


class State(StrEnum):
    """The state of an evaluation or of an attempt."""

    CREATED = "created"
    SUBMITTED = "submitted"
    RUNNING = "running"
    COMPLETED = "completed"
    FAILED = "failed"
    CANCELLED = "cancelled"
    STOPPED = "stopped"

    @property
    def is_finished(self) -> bool:
        """Whether nothing more happens without a request."""
        return self in (State.COMPLETED, State.FAILED, State.CANCELLED, State.STOPPED)


class VerdictKind(StrEnum):
    """The way an attempt ended."""

    COMPLETED = "completed"
    DIVERGED = "diverged"
    STOPPED = "stopped"
    INVALID = "invalid"
    OOM = "oom"
    CUDA_ERROR = "cuda_error"
    PYTHON_ERROR = "python_error"
    ENVIRONMENT = "environment"
    DISK_FULL = "disk_full"
    TIMEOUT = "timeout"
    KILLED = "killed"
    NODE_FAILURE = "node_failure"
    PREEMPTED = "preempted"
    CANCELLED = "cancelled"
    LOST = "lost"
    UNDETERMINED = "undetermined"


class EvidenceSource(StrEnum):
    """The source of evidence, most trusted first."""

    RESULT = "result"
    EXIT = "exit"
    SCHEDULER = "scheduler"
    CPU_TIME = "cpu_time"
    LOG = "log"
    HEARTBEAT = "heartbeat"
    CONTROLLER = "controller"


@dataclass(frozen=True, slots=True, kw_only=True)
class Evidence:
    """One observation that a verdict rests on; `file` is relative to the run's folder."""

    source: EvidenceSource
    text: str
    file: str | None = json_field(default=None, omit=True)
    line: int | None = json_field(default=None, omit=True)


class Confidence(StrEnum):
    """The confidence of a verdict."""

    CERTAIN = "certain"  # the worker's own word, or the scheduler names the cause
    LIKELY = "likely"  # an exit code, a signal or a line of a log that is understood
    UNCLEAR = "unclear"  # nothing that is understood


class Cause(StrEnum):
    """The cause of a verdict: whose memory or which limit ran out, or which other part failed."""

    HOST = "host"
    GPU = "gpu"
    NEIGHBOUR = "neighbour"
    DEVICE = "device"
    SCHEDULER = "scheduler"
    ARGUMENTS = "arguments"
    CPU_TIME = "cpu_time"


@dataclass(frozen=True, slots=True, kw_only=True)
class Verdict:
    """The verdict on an attempt, and the evidence it rests on.

    `cause` is host, gpu or neighbour for `oom`, device for a `cuda_error` of broken hardware,
    scheduler for an `environment` where the scheduler did not answer its own job, arguments where
    srun refused its own options, cpu_time for a `timeout` by the shell's limit and not the job's,
    and otherwise None.  `confidence` is None in ledgers that were written before it existed.
    """

    kind: VerdictKind
    evidence: tuple[Evidence, ...] = ()
    confidence: Confidence | None = json_field(default=None, omit=True)
    cause: Cause | None = json_field(default=None, omit=True)

    @property
    def summary(self) -> str:
        """The first observation, as one line for tables."""
        return self.evidence[0].text.splitlines()[0] if self.evidence else ""


@dataclass(frozen=True, slots=True, kw_only=True)
class Stop:
    """A decision to end an attempt before its budget is spent, and what it rests on.

    At `share` of its budget the training loss was `loss`, from which `predicted` is its final loss.
    `limit` is what it was held against: under `curve` the lowest final loss, with the `chance` of
    ending below it, under `asha` the highest loss that went on from the rung.  `compared` counts
    the other evaluations that it was compared with.
    """

    rule: str
    share: float
    loss: float
    predicted: float
    limit: float
    chance: float | None = json_field(default=None, omit=True)
    compared: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Attempt:
    """One job that runs, or ran, an evaluation; `number` counts from 1.

    `sizes` are the bytes that it left by category, `size_bytes` is their sum; a ledger of version
    0.1 has the sum alone.  `stop` is the decision of `stop_at` to end it early.
    """

    number: int
    submission: str
    task_index: int
    state: State = State.SUBMITTED
    job_id: str | None = None
    node: str | None = None
    submitted_at: str | None = None
    started_at: str | None = None
    finished_at: str | None = None
    elapsed_s: float | None = None
    verdict: Verdict | None = None
    result: Mapping[str, object] | None = None
    size_bytes: int | None = None
    sizes: Mapping[str, int] = field(default_factory=dict)
    stop: Stop | None = json_field(default=None, omit=True)
    stop_at: str | None = json_field(default=None, omit=True)


@dataclass(frozen=True, slots=True, kw_only=True)
class Answer:
    """The ending of a repeat that was not trained: as the earlier evaluation, `by`, had ended.

    `verdict` is None where that one was cancelled before any verdict; `step` is where it diverged,
    `stop` why it was stopped early.  `saved_s` and `saved_device_s` are what its last attempt cost.
    """

    by: str
    verdict: VerdictKind | None = None
    loss: float | None = None
    step: int | None = None
    saved_s: float = 0.0
    saved_device_s: float = 0.0
    stop: Stop | None = json_field(default=None, omit=True)


@dataclass(frozen=True, slots=True, kw_only=True)
class EvaluationPlan:
    """One candidate of a search, as it was asked for.

    `point` is in the optimizer's coordinates, `config` the model's configuration, `lr` the
    learning rate, `parameters` the exact count of the model.  `replaces` names the failed
    evaluation whose place this one takes, `repeats` the first one of the same configuration.
    `confirms` makes it a confirmation: it names the completed evaluation whose configuration this
    one trains again, on a seed that the search did not use.  So does `reevaluates`, within the
    search and its budget; such a one is a repeat as well.
    """

    id: str
    point: tuple[float, ...]
    config: Mapping[str, object] = json_field(make=SharedKeys)
    lr: float = json_field(within="config")
    parameters: int
    seed: int
    replaces: str | None = json_field(default=None, omit=True)
    repeats: str | None = json_field(default=None, omit=True)
    confirms: str | None = json_field(default=None, omit=True)
    reevaluates: str | None = json_field(default=None, omit=True)

    @property
    def hyperparameters(self) -> dict[str, object]:
        """The configuration and the learning rate, in one table for people and programs."""
        return {**self.config, "lr": self.lr}


@dataclass(frozen=True, slots=True, kw_only=True)
class Evaluation(EvaluationPlan):
    """A candidate with its state and attempts.

    The `generation` of a confirmation is `CONFIRMATION`: the optimizer never asked for it.
    `changes` are what re-queues asked for: `mem_gb`, `micro_batch`, `timeout_min`, `exclude`, and
    `since_attempt`, the attempts made before the newest of them.
    """

    generation: int
    state: State = State.CREATED
    changes: Mapping[str, object] = field(default_factory=dict)
    attempts: tuple[Attempt, ...] = ()
    answer: Answer | None = None

    @property
    def configuration(self) -> str:
        """The name of the first evaluation of the same configuration, which may be this one."""
        return self.repeats or self.id

    @property
    def last_attempt(self) -> Attempt | None:
        """The newest attempt, or None before the first submission."""
        return self.attempts[-1] if self.attempts else None

    @property
    def counted_attempts(self) -> tuple[Attempt, ...]:
        """The judged attempts that decide what follows: a re-queue by hand starts anew."""
        since = self.changes.get("since_attempt", 0)
        first = since if isinstance(since, int) else 0
        return tuple(item for item in self.attempts[first:] if item.verdict is not None)

    @property
    def has_live_attempt(self) -> bool:
        """Whether a job of this evaluation may still be running."""
        last = self.last_attempt
        return last is not None and not last.state.is_finished

    @property
    def verdict_kind(self) -> VerdictKind | None:
        """The verdict of the newest attempt, or of the evaluation that answered this one."""
        if self.answer is not None:
            return self.answer.verdict
        last = self.last_attempt
        return last.verdict.kind if last is not None and last.verdict is not None else None

    @property
    def stop(self) -> Stop | None:
        """Why the newest attempt is to end early, or the evaluation that answered this one did."""
        if self.answer is not None:
            return self.answer.stop
        return None if self.last_attempt is None else self.last_attempt.stop

    @property
    def loss(self) -> float | None:
        """The loss of the newest completed attempt, or of the evaluation that answered this one."""
        if self.answer is not None:
            return self.answer.loss
        for attempt in reversed(self.attempts):
            if attempt.state is State.COMPLETED and attempt.result is not None:
                value = attempt.result.get("loss")
                return float(value) if isinstance(value, int | float) else None
        return None


@dataclass(frozen=True, slots=True, kw_only=True)
class ExcludedNode:
    """A node that new submissions avoid until a moment; `at` is when that was decided.

    `readmitted`: it may be used again because no other node was left.
    """

    node: str
    at: str
    until: str
    reason: str
    readmitted: bool = False


class RunStatus(StrEnum):
    """The state of a run."""

    RUNNING = "running"
    PAUSED = "paused"
    INTERRUPTED = "interrupted"
    FINISHED = "finished"
    CANCELLED = "cancelled"


def evaluation_id(generation: int, index: int) -> str:
    """Return the name of an evaluation, as in `g012-e03`."""
    return f"g{generation:03}-e{index:02}"


def confirmation_id(number: int, index: int) -> str:
    """Return the name of an evaluation of a run's confirmation `number`, as in `c000-e03`."""
    return f"c{number:03}-e{index:02}"


@dataclass(frozen=True, slots=True, kw_only=True)
class RunRecord:
    """A run and all that it depends on, as its first event describes it."""

    name: str
    token: str
    model: str
    executor: str
    settings: Mapping[str, Any]
    space: Mapping[str, Any]
    audit: Mapping[str, Any] | None = json_field(default=None, omit=True)
    start: Mapping[str, Any]
    optimizer: Mapping[str, Any]
    budget: Mapping[str, Any]
    data: Mapping[str, Any]
    protocol: Mapping[str, Any]
    code: Mapping[str, Any]
    versions: Mapping[str, Any]
