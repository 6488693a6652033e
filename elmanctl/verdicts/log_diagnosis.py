"""Diagnosis of a failure from the tail of its job log; pure."""

from dataclasses import dataclass

from elmanctl.ledger.records import Cause, Evidence, VerdictKind
from elmanctl.verdicts.causes import find_cause
from elmanctl.verdicts.log_tail import LogTail
from elmanctl.verdicts.logs.classifier import cause_evidence, find_error, quote, texts_of
from elmanctl.verdicts.logs.reading import read_parts
from elmanctl.verdicts.text_rule import Weight


@dataclass(frozen=True, slots=True, kw_only=True)
class LogDiagnosis:
    """The failure that a log names; `quotes` are the deciding line and the line of its cause."""

    kind: VerdictKind
    weight: Weight
    cause: Cause | None
    quotes: tuple[Evidence, ...]

    @property
    def is_from_scheduler(self) -> bool:
        """Whether the scheduler wrote the line."""
        return self.weight is Weight.SCHEDULER

    @property
    def is_scheduler_reason(self) -> bool:
        """Whether the scheduler wrote why it ended the job."""
        return self.is_from_scheduler and self.kind is not VerdictKind.CANCELLED

    @property
    def is_conclusive(self) -> bool:
        """Whether it decides by itself: a cancellation only in the scheduler's own words."""
        return self.is_from_scheduler or self.kind is not VerdictKind.CANCELLED

    @property
    def is_root_cause(self) -> bool:
        """Whether the line says why a run ended, and not only that it did."""
        echoes = (VerdictKind.KILLED, VerdictKind.CANCELLED)
        return not self.is_from_scheduler and self.kind not in echoes

    @property
    def blames_node(self) -> bool:
        """Whether the line names, as the root cause, what the node lacks."""
        return self.weight is Weight.CAUSE and self.kind is VerdictKind.ENVIRONMENT


def diagnose_log(tail: LogTail | None) -> LogDiagnosis | None:
    """Return the error that ended a run according to its log, None if the log names none."""
    if tail is None:
        return None
    found = read_parts([(tail.first_line, "\n".join(tail.lines))])
    error = find_error(found)
    if error is None:
        return None
    kind = error.rule.kind
    cause = find_cause(kind, texts_of(found, kind))
    more = cause_evidence(found, cause, (error.piece,), tail.file)
    return LogDiagnosis(
        kind=kind,
        weight=error.rule.weight,
        cause=cause,
        quotes=(quote(error.piece, tail.file), *more),
    )
