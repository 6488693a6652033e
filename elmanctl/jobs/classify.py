"""From the text of a log alone to a verdict; pure.

A log is less than what the worker and the scheduler say, so it is asked last.  What it does not
say clearly is `undetermined`, and only a training loss printed as not finite is `diverged`.
"""

import re
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field

from elmanctl.jobs import log_rules
from elmanctl.jobs.log_rules import Rule, Weight
from elmanctl.jobs.log_signs import read_signs
from elmanctl.ledger.records import Evidence, EvidenceSource, Verdict, VerdictKind

_QUOTE_LIMIT = 400
# A line may be a whole file; what it says is at its ends.
_PIECE_HEAD, _PIECE_TAIL = 3000, 1000

# Python flushes at most a buffer of stdout after it has written a traceback to stderr.
_BUFFER_BYTES = 10_000

# So many losses after the last bad one say that the run got over it.
_RECOVERED = 2

# As many losses may follow a finish, for its summary.
_SUMMARIES = 2

_ESCAPE = re.compile(r"\x1b\[[0-9;?]*[ -/]*[@-~]|\x1b\][^\x07\x1b]*(?:\x07|\x1b\\)|\x1b.")
_CONTROL = re.compile(r"[\x00-\x08\x0b-\x1f\x7f]")
_RANK = re.compile(r"^(?:\[(?:rank|default|Rank )\d+\]:?[ ]?|\d+:[ ](?=\S|  ))+")
# The margin of an exception group.
_GROUP = re.compile(r"^\s+\| ")

_ORDER = (
    VerdictKind.DISK_FULL,
    VerdictKind.OOM,
    VerdictKind.ENVIRONMENT,
    VerdictKind.LOST,
    VerdictKind.INVALID,
    VerdictKind.CUDA_ERROR,
    VerdictKind.PYTHON_ERROR,
)


@dataclass(frozen=True, slots=True)
class Piece:
    """One line, or one state of a progress bar; `number` counts the lines of the file."""

    number: int
    offset: int
    text: str


@dataclass(frozen=True, slots=True)
class Error:
    """A piece that tells of an error."""

    piece: Piece
    rule: Rule


@dataclass(frozen=True, slots=True)
class Loss:
    """A piece that prints training losses; `of_step` where it counts steps or epochs too."""

    piece: Piece
    finite: bool
    of_step: bool


@dataclass(slots=True)
class Reading:
    """All that was found in a log."""

    last: Piece | None = None
    errors: list[Error] = field(default_factory=list)
    losses: list[Loss] = field(default_factory=list)
    bad_gradients: list[bool] = field(default_factory=list)
    finished: Piece | None = None
    begun: Piece | None = None
    cut_traceback: Piece | None = None
    refused: Piece | None = None
    several: Piece | None = None
    reopened: Piece | None = None
    skipped_step: bool = False

    def progress_after(self, piece: Piece) -> int:
        """Return how far beyond a piece the last printed loss stands, in characters."""
        return self.losses[-1].piece.offset - piece.offset if self.losses else 0

    def goes_on_after(self, piece: Piece) -> bool:
        """Whether training goes on after a piece; a summary may print the loss once more."""
        later = [loss for loss in self.losses if loss.piece.offset > piece.offset]
        return len(later) > _SUMMARIES or any(loss.of_step for loss in later)


def classify_log(text: str) -> Verdict:
    """Return what the text of a training log says of its end, with the lines quoted."""
    # Not splitlines: it also parts lines where no editor counts one, e.g. at a form feed.
    return classify_lines(enumerate(text.split("\n"), start=1))


def classify_lines(lines: Iterable[tuple[int, str]]) -> Verdict:
    """Return the verdict on lines with their numbers in the file."""
    found = read_lines(lines)
    if found.last is None:
        return Verdict(
            kind=VerdictKind.LOST,
            evidence=(Evidence(source=EvidenceSource.LOG, text="the log is empty"),),
        )
    kind, pieces = _decide(found)
    return Verdict(kind=kind, evidence=tuple(quote(piece) for piece in pieces))


def quote(piece: Piece, file: str | None = None) -> Evidence:
    """Return a piece of a log as evidence."""
    text = piece.text.strip()[:_QUOTE_LIMIT]
    return Evidence(source=EvidenceSource.LOG, text=text, file=file, line=piece.number)


def read_lines(lines: Iterable[tuple[int, str]]) -> Reading:
    """Return what the rules find in numbered lines."""
    found = Reading()
    traceback: Piece | None = None
    ignored = False
    for piece in _pieces(lines):
        text = piece.text
        found.last = piece
        if log_rules.IGNORED.match(text):
            ignored = True
        if log_rules.TRACEBACK.search(text):
            traceback = piece
            continue
        inside = traceback is not None and text[0].isspace()
        ends = traceback is not None and not inside and bool(log_rules.EXCEPTION.match(text))
        if inside:
            continue
        if traceback is not None and not ends and not ignored:
            found.cut_traceback = found.cut_traceback or traceback
        traceback = None
        if ends and ignored:
            ignored = False
            continue
        _read_piece(found, piece, ends_traceback=ends)
    if traceback is not None and not ignored:
        found.cut_traceback = traceback
    return found


def _read_piece(found: Reading, piece: Piece, *, ends_traceback: bool) -> None:
    text = piece.text
    if log_rules.SUPERSEDED.match(text):
        if found.errors and found.errors[-1].rule.kind not in _ORDER[:2]:
            found.errors.pop()
        return
    signs = read_signs(text)
    if signs.may_be_error or ends_traceback:
        rule = log_rules.read_error(text, ends_traceback=ends_traceback)
        if rule is not None:
            found.errors.append(Error(piece, rule))
    if signs.several_runs:
        found.several = found.several or piece
    if signs.finished:
        found.finished = piece
    elif found.finished is not None and signs.counted:
        found.reopened = piece
    if signs.loss is not None:
        if found.reopened is not None and signs.step:
            # Another model trains in the same file.
            found.several = found.several or found.reopened
        found.losses.append(Loss(piece, signs.loss, signs.step))
        if signs.gradient is not None:
            found.bad_gradients.append(not signs.gradient)
    if signs.refused:
        found.refused = found.refused or piece
    if signs.begun:
        found.begun = found.begun or piece
    found.skipped_step |= signs.skipped_step


def _pieces(lines: Iterable[tuple[int, str]]) -> Iterator[Piece]:
    offset = 0
    for number, line in lines:
        for part in line.split("\r"):
            text = clean(part)
            if text and not text.isspace():
                yield Piece(number, offset, text)
            offset += len(part) + 1


def clean(text: str) -> str:
    """Return a line without colours, control characters and the label of its process."""
    if len(text) > _PIECE_HEAD + _PIECE_TAIL:
        text = f"{text[:_PIECE_HEAD]} ... {text[-_PIECE_TAIL:]}"
    if not text.isprintable():
        text = _CONTROL.sub("", _ESCAPE.sub("", text))
    return _GROUP.sub("", _RANK.sub("", text, count=1), count=1).rstrip()


def _decide(found: Reading) -> tuple[VerdictKind, tuple[Piece, ...]]:
    assert found.last is not None
    if found.several is not None:
        return VerdictKind.UNDETERMINED, (found.several,)
    error = find_error(found)
    bad = [loss.piece for loss in found.losses if not loss.finite]
    if error is not None and not (bad and _yields_to_losses(error)):
        return error.rule.kind, (error.piece,)
    if bad:
        after = (error.piece,) if error is not None else ()
        kind, pieces = _of_bad_losses(found, bad)
        if kind is not VerdictKind.COMPLETED:
            return kind, (*pieces, *after)
        if error is not None:
            return error.rule.kind, after
    if found.finished is not None and not found.goes_on_after(found.finished):
        if len(found.bad_gradients) > _RECOVERED and all(found.bad_gradients[-_RECOVERED - 1 :]):
            return VerdictKind.UNDETERMINED, (found.losses[-1].piece, found.finished)
        return VerdictKind.COMPLETED, (found.finished,)
    if found.cut_traceback is not None:
        return VerdictKind.LOST, (found.cut_traceback, found.last)
    if found.losses or found.begun is not None:
        return VerdictKind.LOST, (found.last,)
    return VerdictKind.UNDETERMINED, (found.last,)


def _yields_to_losses(error: Error) -> bool:
    """Whether a run with bad losses may have ended so because of them, or whatever it did."""
    if error.rule.weight in (Weight.SIGNAL, Weight.SCHEDULER, Weight.SYMPTOM):
        return True
    of_python = error.rule.kind is VerdictKind.PYTHON_ERROR
    return of_python and log_rules.is_of_numbers(error.piece.text)


def _of_bad_losses(found: Reading, bad: Sequence[Piece]) -> tuple[VerdictKind, tuple[Piece, ...]]:
    """Return what losses that are not finite mean; `completed` is: nothing."""
    if found.refused is not None:
        return VerdictKind.INVALID, (found.refused, bad[0])
    last = bad[-1].offset
    later = [loss.piece for loss in found.losses if loss.finite and loss.piece.offset > last]
    if len(later) < _RECOVERED:
        return VerdictKind.DIVERGED, (bad[0],)
    if found.skipped_step:
        return VerdictKind.COMPLETED, ()
    return VerdictKind.UNDETERMINED, (bad[0], later[0])


def _may_be_cause(found: Reading, error: Error) -> bool:
    """Whether an error may have ended its process, though buffered losses follow it."""
    is_near = found.progress_after(error.piece) <= _BUFFER_BYTES
    return is_near and error.rule.weight is Weight.CAUSE


def find_error(found: Reading) -> Error | None:
    """Return the error that ended a run, None where none did.

    What is followed by a finish was survived.  Of several processes one fails first and the
    others fail for it, hence causes before symptoms, and memory before what follows from it.
    """
    end = found.finished.offset if found.finished is not None else -1
    late = [error for error in found.errors if error.piece.offset >= end]
    ends = [error for error in late if found.progress_after(error.piece) <= 0]
    flushed = [error for error in late if _may_be_cause(found, error)]
    errors = ends or flushed
    if errors and not any(error.rule.weight >= Weight.SCHEDULER for error in errors):
        # One process ends in peace, another has failed, and the launcher tells so last.
        errors = [*(error for error in found.errors if _may_be_cause(found, error)), *errors]
    causes = [error for error in errors if error.rule.weight is Weight.CAUSE]
    told = [error for error in errors if error.rule.weight is Weight.SCHEDULER]
    if told:
        causes = [
            cause
            for cause in causes
            if cause.piece.offset < told[0].piece.offset or cause.rule.kind is VerdictKind.OOM
        ]
    for kind in _ORDER:
        fitting = [cause for cause in causes if cause.rule.kind is kind]
        if fitting:
            return fitting[-1]
    if told:
        # A plain cancellation also follows from the other endings.
        return next((t for t in told if t.rule.kind is not VerdictKind.CANCELLED), told[0])
    # A signal says at least who ended it; all others of these are echoes.
    for weight in (Weight.SIGNAL, Weight.SYMPTOM):
        echoes = [error for error in errors if error.rule.weight is weight]
        if echoes:
            return echoes[0]
    return None
