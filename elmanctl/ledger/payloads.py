"""Typed payloads of the events of a ledger: one class a kind, its fields the keys of `data`.

The kind is the name of the class in lower case, `AttemptFinished` is `attempt_finished`.  The
table of docs/concepts/ledger.md is made from these classes.  A new kind is one class here and one
handler in `handlers`.
"""

import re
from collections.abc import Mapping
from dataclasses import dataclass

from elmanctl.codec import decode, json_field
from elmanctl.errors import LedgerCorrupt
from elmanctl.ledger import records, submissions
from elmanctl.ledger.shared_keys import SharedKeys


@dataclass(frozen=True, kw_only=True)
class Payload:
    """The facts of one event."""

    @classmethod
    def event_kind(cls) -> str:
        """Return the `kind` of such an event."""
        return re.sub(r"(?<!^)(?=[A-Z])", "_", cls.__name__).lower()


def decode_payload(kind: str, data: object) -> Payload:
    """Read the `data` of an event of a known kind.

    Raises LedgerCorrupt with the JSON path of a key that is missing, unknown or of another type.
    """
    return decode(PAYLOADS[kind], data, "data", LedgerCorrupt)


@dataclass(frozen=True, slots=True, kw_only=True)
class OptimizerFile:
    """A saved state of the optimizer: its file in the folder `optimizer`, and its checksum."""

    file: str
    sha256: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Cost:
    """Seconds, and seconds times GPUs."""

    elapsed_s: float
    device_s: float


@dataclass(frozen=True, kw_only=True)
class RunCreated(Payload):
    """The run and all that it depends on; always the first event, and only that.

    The resolved settings, the search space, the start point and its origin, the optimizer and its
    seed, the generations to make, the training data and protocol, the hash of the frozen code,
    versions, and the effect of moving each axis.
    """

    run: records.RunRecord


@dataclass(frozen=True, kw_only=True)
class RunExtended(Payload):
    """The search is to make this many generations in all, more than before."""

    generations: int


@dataclass(frozen=True, kw_only=True)
class SettingsChanged(Payload):
    """From here on these settings, by `section.key`, replace those of `run_created`.

    They say where and how jobs run, never what they measure.
    """

    changes: Mapping[str, object]


@dataclass(frozen=True, kw_only=True)
class ControllerStarted(Payload):
    """A controller drives the run, whose status is `running`.

    `folder` is the place of the run, which tells a copy from the run; `clusters` is the value of
    SLURM_CLUSTERS, without which its jobs would be searched for on another cluster.  One that works
    inside an `allocation` has so many `slots` there.
    """

    host: str
    pid: int
    folder: str | None = json_field(default=None, omit=True)
    clusters: str | None = json_field(default=None, omit=True)
    allocation: str | None = json_field(default=None, omit=True)
    slots: int | None = json_field(default=None, omit=True)


@dataclass(frozen=True, kw_only=True)
class PointsAsked(Payload):
    """New evaluations, in state `created`.

    `refused` points were dropped because no model can be built there. `optimizer` is the saved
    state of the optimizer after asking, in runs of versions that saved it. `point` is in the
    optimizer's coordinates, `config` what the worker gets, `parameters` the exact count.
    `replaces` names a failed evaluation whose place this one takes, `repeats` the first
    evaluation of the same configuration. In a sweep `branch` is the number of the combination of
    swept values that this generation belongs to.
    """

    generation: int
    evaluations: tuple[records.EvaluationPlan, ...]
    refused: int
    optimizer: OptimizerFile | None = json_field(default=None, omit=True)
    branch: int = json_field(default=0, omit=True)


@dataclass(frozen=True, kw_only=True)
class ConfirmationAsked(Payload):
    """New evaluations, in state `created`, that train completed ones again on fresh seeds.

    Each `confirms` one that completed: with its configuration, and a seed on which it was not
    confirmed before.  They belong to no generation, and no value of them is reported to the
    optimizer.
    """

    evaluations: tuple[records.EvaluationPlan, ...]


@dataclass(frozen=True, kw_only=True)
class ReevaluationAsked(Payload):
    """A generation of new evaluations, in state `created`, that train the best so far again.

    Each `reevaluates` one that completed: with its configuration, and a seed on which that was not
    trained before.  No value of them is reported to the optimizer, and their generation is reported
    as an empty one.
    """

    generation: int
    evaluations: tuple[records.EvaluationPlan, ...]


@dataclass(frozen=True, kw_only=True)
class SubmissionIntended(Payload):
    """The scheduler is about to be asked.

    Each task is a new attempt of its evaluation, both `submitted`.  `is_array` is false where the
    cluster takes no arrays: one task, a job of its own.
    """

    submission: submissions.SubmissionIntent


@dataclass(frozen=True, kw_only=True)
class SubmissionAccepted(Payload):
    """The scheduler took it.

    The job of each attempt is `<job_id>_<index>`, and `<job_id>` where `is_array` is false.
    `adopted`: the answer was found out later, by the name of the job.
    """

    submission: str
    job_id: str
    adopted: bool


@dataclass(frozen=True, kw_only=True)
class SubmissionRefused(Payload):
    """The scheduler refused, for good or for now.

    The attempts are removed, their evaluations are `created` again.
    """

    submission: str
    error: str


@dataclass(frozen=True, kw_only=True)
class SubmissionAbandoned(Payload):
    """No such job exists; the attempts are removed, their evaluations are `created` again."""

    submission: str
    error: str


@dataclass(frozen=True, kw_only=True)
class OptimizerRebuilt(Payload):
    """The saved state of the optimizer was lost and rebuilt; written by earlier versions."""

    optimizer: OptimizerFile


@dataclass(frozen=True, kw_only=True)
class AttemptStarted(Payload):
    """The job runs: attempt and evaluation are `running`; again when the scheduler restarts it."""

    evaluation: str
    attempt: int
    node: str | None = json_field(default=None, omit=True)
    at: str | None = json_field(default=None, omit=True)


@dataclass(frozen=True, kw_only=True)
class StopDecided(Payload):
    """The attempt is to end before its budget is spent; its worker is asked to after this.

    `stop` is what the decision rests on: the rule, the share of the budget, the training loss
    there and the final loss that it predicts, what that was held against, and how many other
    evaluations it was compared with.
    """

    evaluation: str
    attempt: int
    stop: records.Stop


@dataclass(frozen=True, kw_only=True)
class AttemptFinished(Payload):
    """How the attempt ended; its evaluation is `created` again until the controller decides.

    The attempt is `completed`, `stopped` or `cancelled` for the verdicts of these names and
    `failed` for all others.  `result` is null or what the worker wrote, a completed attempt's with
    its `loss`.  `size_bytes`, which may be null, is what it left on disk in allocated blocks, and
    `sizes` the same by category: `metrics`, `log`, `pickle`, `result`, `model`, `checkpoint`,
    `other`.
    """

    evaluation: str
    attempt: int
    verdict: records.Verdict
    result: Mapping[str, object] | None = json_field(make=SharedKeys)
    size_bytes: int | None
    sizes: Mapping[str, int] | None = json_field(default=None, omit=True, make=SharedKeys)
    node: str | None = json_field(default=None, omit=True)
    elapsed_s: float | None = json_field(default=None, omit=True)


@dataclass(frozen=True, kw_only=True)
class EvaluationClosed(Payload):
    """The evaluation is decided: `completed`, `stopped`, `failed` or `cancelled`.

    Only a cancelled one may have a job that is still ending.
    """

    evaluation: str
    state: records.State


@dataclass(frozen=True, kw_only=True)
class EvaluationAnswered(Payload):
    """A repeat ended without a job, as the evaluation `by` had ended.

    It is closed as `completed` with that `loss`, as `stopped` with that `stop`, as `failed` (`step`
    is where it diverged) or as `cancelled`.  `saved` is the cost of the last attempt of `by`, in
    seconds and in seconds times GPUs.
    """

    evaluation: str
    by: str
    state: records.State
    saved: Cost
    verdict: records.VerdictKind | None = json_field(default=None, omit=True)
    loss: float | None = json_field(default=None, omit=True)
    step: int | None = json_field(default=None, omit=True)
    stop: records.Stop | None = json_field(default=None, omit=True)


@dataclass(frozen=True, kw_only=True)
class EvaluationReopened(Payload):
    """A closed evaluation is `created` again.

    `changes` to its attempts (`mem_gb`, `micro_batch`, `timeout_min`, `exclude`) are merged with
    earlier ones; `since_attempt` is where the count of failures starts anew.
    """

    evaluation: str
    changes: Mapping[str, object]
    by: str


@dataclass(frozen=True, kw_only=True)
class NodeExcluded(Payload):
    """New submissions avoid this node until then: an attempt failed there because of the node."""

    node: str
    until: str
    reason: str


@dataclass(frozen=True, kw_only=True)
class NodeReadmitted(Payload):
    """New submissions may use the node again: the scheduler has no other one left."""

    node: str
    reason: str


@dataclass(frozen=True, kw_only=True)
class ValueReported(Payload):
    """The fitness value of one evaluation reported to the optimizer, in an asynchronous search.

    Once for an evaluation, after it was decided.
    """

    evaluation: str
    value: float


@dataclass(frozen=True, kw_only=True)
class GenerationTold(Payload):
    """The fitness values reported to the optimizer, in this order; once for a generation.

    In an asynchronous search it is empty: all of the generation is decided, and was reported.
    """

    generation: int
    told: tuple[tuple[str, float], ...]


@dataclass(frozen=True, kw_only=True)
class SearchEnded(Payload):
    """A stop rule ends the search: nothing more is asked, and confirmations may follow.

    A change of a rule, or more generations, may take it back.
    """

    reason: str


@dataclass(frozen=True, kw_only=True)
class RunPaused(Payload):
    """The search stopped itself; `hint` is the next thing to do, as `status RUN` shows it."""

    reason: str
    hint: str | None = json_field(default=None, omit=True)


@dataclass(frozen=True, kw_only=True)
class RunInterrupted(Payload):
    """The search was asked to stop; its jobs go on."""


@dataclass(frozen=True, kw_only=True)
class RunFinished(Payload):
    """The search reached its end."""

    reason: str


@dataclass(frozen=True, kw_only=True)
class RunCancelled(Payload):
    """The run was cancelled as a whole."""


@dataclass(frozen=True, kw_only=True)
class RequestApplied(Payload):
    """A request was carried out, with this answer."""

    request: str
    command: str
    answer: Mapping[str, object]


@dataclass(frozen=True, kw_only=True)
class Cleaned(Payload):
    """So many files of this kind were removed.

    `evaluations` holds the bytes freed of each, which add up to `freed_bytes`; what belongs to no
    evaluation, such as states of the optimizer, names none.
    """

    evaluation: str | None = json_field(default=None, omit=True)
    kind: str
    freed_bytes: int
    files: int
    evaluations: Mapping[str, int] | None = json_field(default=None, omit=True)


@dataclass(frozen=True, kw_only=True)
class Note(Payload):
    """A remark."""

    text: str


PAYLOADS: Mapping[str, type[Payload]] = {
    each.event_kind(): each for each in Payload.__subclasses__()
}
