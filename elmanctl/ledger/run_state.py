"""All that is known of a run at one moment, and the questions asked of it."""

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any

from elmanctl.ledger.disk_use import DiskUse
from elmanctl.ledger.records import Attempt, Evaluation, RunStatus, State, Submission


@dataclass(frozen=True, slots=True, kw_only=True)
class Note:
    """A remark that somebody left in the ledger."""

    at: str
    text: str


@dataclass(slots=True, kw_only=True)
class RunState:
    """All that is known of a run.  Only `apply` changes it; the records in it are immutable.

    `run` is empty before the first event.  `generation` is the newest that was asked, `generations`
    how many the search is to make.  `told` maps a generation to what the optimizer was told, in
    order; `refused` maps it to the number of points refused while it was asked.  `controller` is
    the newest controller: host, pid, at.  `changes` maps `section.key` to what replaces a
    setting, `freed_bytes` an evaluation, or "" for what belongs to none, to the bytes that
    cleaning freed.  `disk` holds the totals of what attempts left.
    """

    run: Mapping[str, Any] = field(default_factory=dict)
    status: RunStatus = RunStatus.RUNNING
    reason: str | None = None
    evaluations: dict[str, Evaluation] = field(default_factory=dict)
    submissions: dict[str, Submission] = field(default_factory=dict)
    told: dict[int, list[tuple[str, float]]] = field(default_factory=dict)
    refused: dict[int, int] = field(default_factory=dict)
    generation: int = -1
    generations: int = 0
    optimizer_file: Mapping[str, Any] | None = None
    applied_requests: dict[str, Mapping[str, Any]] = field(default_factory=dict)
    controller: Mapping[str, Any] | None = None
    changes: dict[str, Any] = field(default_factory=dict)
    freed_bytes: dict[str, int] = field(default_factory=dict)
    disk: DiskUse = field(default_factory=DiskUse)
    notes: list[Note] = field(default_factory=list)
    seq: int = 0
    fence: int = 0
    last_event_at: str | None = None

    def live_attempts(self) -> list[tuple[Evaluation, Attempt]]:
        """Return every attempt that is not finished, with its evaluation, in order."""
        live = (item for item in self.evaluations.values() if item.has_live_attempt)
        return [(evaluation, evaluation.attempts[-1]) for evaluation in live]

    def counts(self) -> dict[State, int]:
        """Return how many evaluations are in each state; every state is a key."""
        counted = dict.fromkeys(State, 0)
        for evaluation in self.evaluations.values():
            counted[evaluation.state] += 1
        return counted

    def ranked(self) -> list[Evaluation]:
        """Return the completed evaluations, lowest loss first, equal losses in order of id."""
        keyed = [
            (evaluation.loss, evaluation.generation, evaluation.id)
            for evaluation in self.evaluations.values()
            if evaluation.state is State.COMPLETED and evaluation.loss is not None
        ]
        return [self.evaluations[name] for _, _, name in sorted(keyed)]

    @property
    def refused_share(self) -> float:
        """The share of sampled points that were refused before they cost anything."""
        refused = sum(self.refused.values())
        return refused / max(1, refused + len(self.evaluations))

    def best(self) -> Evaluation | None:
        """Return the completed evaluation of the lowest loss, or None."""
        return next(iter(self.ranked()), None)

    def failed_evaluations(self) -> list[Evaluation]:
        """Return the failed evaluations, in order."""
        return [item for item in self.evaluations.values() if item.state is State.FAILED]

    @property
    def size_bytes(self) -> int:
        """What the attempts left on disk, less what cleaning freed of it."""
        return sum(map(self.size_of, self.evaluations.values()))

    def size_of(self, evaluation: Evaluation) -> int:
        """Return what an evaluation's attempts left on disk, less what cleaning freed of it."""
        written = sum(attempt.size_bytes or 0 for attempt in evaluation.attempts)
        return max(0, written - self.freed_bytes.get(evaluation.id, 0))

    def copy(self) -> "RunState":
        """Return a state of its own that shares the immutable records."""
        return replace(
            self,
            evaluations=dict(self.evaluations),
            submissions=dict(self.submissions),
            told=dict(self.told),
            refused=dict(self.refused),
            applied_requests=dict(self.applied_requests),
            freed_bytes=dict(self.freed_bytes),
            changes=dict(self.changes),
            notes=list(self.notes),
        )
