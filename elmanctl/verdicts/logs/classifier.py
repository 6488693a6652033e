"""Classifier of training logs: a verdict from the text alone; pure.

A log is weaker evidence than what the worker and the scheduler say.  What it does not say clearly
is `undetermined`, and only a training loss printed as not finite is `diverged`.
"""

from collections.abc import Iterable, Sequence

from elmanctl.ledger.records import (
    Cause,
    Confidence,
    Evidence,
    EvidenceSource,
    Verdict,
    VerdictKind,
)
from elmanctl.verdicts.causes import find_cause, find_neighbour, names_broken_device
from elmanctl.verdicts.logs import rules as log_rules
from elmanctl.verdicts.logs.ends import declared_end
from elmanctl.verdicts.logs.reading import Error, Piece, Reading, read_parts
from elmanctl.verdicts.text_rule import Weight

_K = VerdictKind

QUOTE_LIMIT = 400

# Python flushes at most one buffer of stdout after it has written a traceback to stderr.
_BUFFER_BYTES = 10_000

# A run has recovered after so many finite losses in a row.
_RECOVERED = 2

# Of several root causes the first of these decides.
_ORDER = (
    *(_K.DISK_FULL, _K.OOM, _K.ENVIRONMENT, _K.LOST, _K.INVALID),
    *(_K.CUDA_ERROR, _K.PYTHON_ERROR),
)

# Nothing was understood, or the text just ends.
_UNCLEAR = (_K.UNDETERMINED, _K.LOST)


def classify_parts(parts: Iterable[tuple[int, str]]) -> Verdict:
    """Return the verdict on the parts of a log, each with the number of its first line.

    The deciding lines are quoted.
    """
    found = read_parts(parts)
    if found.last is None:
        empty = Evidence(source=EvidenceSource.LOG, text="the log is empty")
        return Verdict(kind=_K.LOST, evidence=(empty,), confidence=Confidence.UNCLEAR)
    kind, pieces = _decide(found)
    cause = find_cause(kind, texts_of(found, kind))
    return Verdict(
        kind=kind,
        evidence=(*map(quote, pieces), *cause_evidence(found, cause, pieces)),
        confidence=Confidence.UNCLEAR if kind in _UNCLEAR else Confidence.LIKELY,
        cause=cause,
    )


def texts_of(found: Reading, kind: VerdictKind) -> tuple[str, ...]:
    """Return the lines of a log that report a kind of failure."""
    return tuple(error.piece.text for error in found.errors if error.rule.kind is kind)


def cause_evidence(
    found: Reading, cause: Cause | None, quoted: Sequence[Piece], file: str | None = None
) -> list[Evidence]:
    """Return the line that names the broken device or the neighbour, beyond those quoted."""
    for piece in (error.piece for error in found.errors):
        if cause is Cause.DEVICE and names_broken_device(piece.text):
            return [] if piece in quoted else [quote(piece, file)]
        neighbour = find_neighbour(piece.text) if cause is Cause.NEIGHBOUR else None
        if neighbour is not None:
            return [
                Evidence(
                    source=EvidenceSource.LOG, text=str(neighbour), file=file, line=piece.number
                )
            ]
    return []


def quote(piece: Piece, file: str | None = None) -> Evidence:
    """Return a piece of a log as evidence."""
    text = piece.text.strip()[:QUOTE_LIMIT]
    return Evidence(source=EvidenceSource.LOG, text=text, file=file, line=piece.number)


def _decide(found: Reading) -> tuple[VerdictKind, tuple[Piece, ...]]:
    assert found.last is not None
    if found.several is not None:
        return _K.UNDETERMINED, (found.several,)
    error = find_error(found)
    bad = [loss.piece for loss in found.losses if not loss.finite]
    if error is not None and not (bad and _yields_to_losses(error)):
        return error.rule.kind, (error.piece,)
    if bad:
        after = (error.piece,) if error is not None else ()
        kind, pieces = _of_bad_losses(found, bad)
        if kind is not _K.COMPLETED:
            return kind, (*pieces, *after)
        if error is not None:
            return error.rule.kind, after
    finished = _finish(found)
    if finished is not None:
        if len(found.bad_gradients) > _RECOVERED and all(found.bad_gradients[-_RECOVERED - 1 :]):
            return _K.UNDETERMINED, (found.losses[-1].piece, finished)
        return _K.COMPLETED, (finished,)
    if found.cut_traceback is not None:
        return _K.LOST, (found.cut_traceback, found.last)
    if found.losses or found.begun is not None:
        return _K.LOST, (found.last,)
    return _K.UNDETERMINED, (found.last,)


def _finish(found: Reading) -> Piece | None:
    """Return the piece that reports a finish after which no training continues."""
    for piece in (found.finished, _weak_finish(found)):
        if piece is not None and not found.continues_after(piece):
            return piece
    return None


def _weak_finish(found: Reading) -> Piece | None:
    """Return a sign of success that counts only if no error came after the last loss."""
    if found.ended_well is not None and (found.losses or found.begun is not None):
        return found.ended_well
    return declared_end(found)


def _yields_to_losses(error: Error) -> bool:
    """Whether bad losses explain the end better than an error that may be their consequence."""
    if error.rule.weight in (Weight.SIGNAL, Weight.SCHEDULER, Weight.SYMPTOM):
        return True
    of_python = error.rule.kind is _K.PYTHON_ERROR
    return of_python and log_rules.is_numeric_error(error.piece.text)


def _of_bad_losses(found: Reading, bad: Sequence[Piece]) -> tuple[VerdictKind, tuple[Piece, ...]]:
    """Return what non-finite losses mean; `completed` where the run recovered from them."""
    if found.refused is not None:
        return _K.INVALID, (found.refused, bad[0])
    last = bad[-1].offset
    later = [loss.piece for loss in found.losses if loss.finite and loss.piece.offset > last]
    if len(later) < _RECOVERED:
        return _K.DIVERGED, (bad[0],)
    if found.skipped_step:
        return _K.COMPLETED, ()
    return _K.UNDETERMINED, (bad[0], later[0])


def _may_be_cause(found: Reading, error: Error) -> bool:
    """Whether an error may have ended its process although buffered losses follow it."""
    is_near = found.progress_after(error.piece) <= _BUFFER_BYTES
    # An exception that a logger wrote was caught.
    return is_near and error.rule.weight is Weight.CAUSE and not error.caught


def _late_errors(found: Reading) -> list[Error]:
    """Return the errors that no finish follows: a run that finished survived the others."""
    weak = _weak_finish(found)
    if weak is not None and not found.continues_after(weak):
        end = min(weak.offset, found.losses[-1].piece.offset) if found.losses else -1
    else:
        end = -1
    if found.finished is not None:
        end = max(end, found.finished.offset)
    done = found.finished is not None and not found.continues_after(found.finished)
    return [
        error
        for error in found.errors
        # An error of the job script after the training finished did not end it.
        if error.piece.offset >= end and not (done and _is_script_error(error))
    ]


def _is_script_error(error: Error) -> bool:
    return error.rule.kind is _K.ENVIRONMENT and error.rule.weight is Weight.SYMPTOM


def find_error(found: Reading) -> Error | None:
    """Return the error that ended a run, None where none did.

    An error that a finish follows was survived.  Of several processes one fails first and takes
    the others with it, so causes come before symptoms, and memory before its consequences.
    """
    late = _late_errors(found)
    ends = [error for error in late if found.progress_after(error.piece) <= 0]
    flushed = [error for error in late if _may_be_cause(found, error)]
    errors = ends or flushed
    if errors and not any(error.rule.weight >= Weight.SCHEDULER for error in errors):
        # One process finished, another failed, and the launcher reports that last.
        errors = [*(error for error in found.errors if _may_be_cause(found, error)), *errors]
    return decide_among(errors)


def decide_among(errors: Sequence[Error]) -> Error | None:
    """Return, of errors with the same cause, the one that names it best."""
    causes = [error for error in errors if error.rule.weight is Weight.CAUSE]
    scheduler = [error for error in errors if error.rule.weight is Weight.SCHEDULER]
    if scheduler:
        causes = [
            cause
            for cause in causes
            if cause.piece.offset < scheduler[0].piece.offset or cause.rule.kind is _K.OOM
        ]
    for kind in _ORDER:
        fitting = [cause for cause in causes if cause.rule.kind is kind]
        if fitting:
            return fitting[-1]
    if scheduler:
        # A plain cancellation is also a consequence of the other ends.
        reasons = (error for error in scheduler if error.rule.kind is not _K.CANCELLED)
        return next(reasons, scheduler[0])
    # A signal says at least who ended the run; the other symptoms are echoes.
    for weight in (Weight.SIGNAL, Weight.SYMPTOM):
        echoes = [error for error in errors if error.rule.weight is weight]
        if echoes:
            return echoes[0]
    return None
