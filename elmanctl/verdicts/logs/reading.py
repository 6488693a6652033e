"""Reading of a log: the errors, losses and other signs that the rules find line by line; pure."""

import re
from collections import deque
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from functools import lru_cache
from typing import NamedTuple

from elmanctl.ledger.records import VerdictKind
from elmanctl.verdicts.logs import rules as log_rules
from elmanctl.verdicts.logs.keywords import keys_in, lines_with_keywords
from elmanctl.verdicts.logs.rules import ERROR_KEYS
from elmanctl.verdicts.logs.runs import Runs, is_alone
from elmanctl.verdicts.logs.signs import SIGN_KEYS, Signs, read_signs, shape_of
from elmanctl.verdicts.text_rule import TextRule, Weight

# A line may be a whole file; only its beginning and its end are read.
_PIECE_HEAD, _PIECE_TAIL = 1500, 500

# A summary after a finish may print so many losses.
_SUMMARIES = 2

# Conditions that last, and make later things fail even if the exception was handled.
OUTLASTING = (VerdictKind.DISK_FULL, VerdictKind.OOM)

# So many lines of a message are read like its first one, if that names no cause.
_MESSAGE_LINES = 12

# Counters that are kept: enough for the last states of all that a log counts.
_COUNTERS = 400
_BOUNDS = 20

_STATE = re.compile(r"[^\r]+")
_ESCAPE = re.compile(r"\x1b\[[0-9;?]*[ -/]*[@-~]|\x1b\][^\x07\x1b]*(?:\x07|\x1b\\)|\x1b.")
_CONTROL = re.compile(r"[\x00-\x08\x0b-\x1f\x7f]")
# Prefixes of a line: the rank or task that prints it, and when.
_PRINTED_BY = re.compile(
    r"^(?:\[(?:rank|default|Rank )\d+\]:?[ ]?|\d+:[ ](?=\S|  )"
    r"|\[?\d{4}-\d\d-\d\d[T ]\d\d:\d\d:\d\d(?:[.,]\d{1,9})?(?:Z|[+-]\d\d:?\d\d)?\]?:?(?:[ ]|$))+"
)
_NAN_COUNT = re.compile(r"(?i)\b(?:nan|inf|non-?finite)[ _]\w+\W{1,6}[1-9]")
# The margin of an exception group.
_GROUP = re.compile(r"^\s+\| ")


class Piece(NamedTuple):
    """One line, or one state of a progress bar; `number` counts the lines of the file."""

    number: int
    offset: int
    text: str


@dataclass(frozen=True, slots=True)
class Error:
    """A piece that reports an error; `caught` when a logger wrote it."""

    piece: Piece
    rule: TextRule
    caught: bool = False


class Loss(NamedTuple):
    """A piece that prints training losses; `of_step` if it counts steps or epochs, too."""

    piece: Piece
    finite: bool
    of_step: bool
    of_bar: bool = False


@dataclass(slots=True)
class Reading:
    """All that was found in a log."""

    last: Piece | None = None
    errors: list[Error] = field(default_factory=list)
    losses: list[Loss] = field(default_factory=list)
    measures: list[Loss] = field(default_factory=list)
    bad_gradients: list[bool] = field(default_factory=list)
    counters: deque[Piece] = field(default_factory=lambda: deque(maxlen=_COUNTERS))
    bounds: list[Piece] = field(default_factory=list)
    finished: Piece | None = None
    ended_well: Piece | None = None
    begun: Piece | None = None
    cut_traceback: Piece | None = None
    refused: Piece | None = None
    several: Piece | None = None
    reopened: Piece | None = None
    skipped_step: bool = False
    runs: Runs = field(default_factory=Runs)

    def progress_after(self, piece: Piece) -> int:
        """Return the distance from a piece to the last printed loss, in characters."""
        if not self.losses or self._closes(piece):
            return 0
        return self.losses[-1].piece.offset - piece.offset

    def _closes(self, piece: Piece) -> bool:
        """Whether all losses after a piece are those of a bar that repeats its last state."""
        *others, last = self.losses
        return last.of_bar and (not others or others[-1].piece.offset <= piece.offset)

    def continues_after(self, piece: Piece) -> bool:
        """Whether training continues after a piece; a summary may print the loss once more."""
        later = 0
        for loss in reversed(self.losses):
            if loss.piece.offset <= piece.offset:
                break
            if loss.of_step and not self._closes(piece):
                return True
            later += 1
        return later > _SUMMARIES


@dataclass(slots=True)
class _Traceback:
    """The traceback that is being read.

    Its chain of exceptions begins at the error with index `chain`; another exception `follows`.
    The next `message` lines may belong to the message of the last exception.
    """

    head: Piece | None = None
    caught: bool = False
    ignored: bool = False
    chain: int = 0
    message: int = 0
    follows: bool = False


def read_parts(parts: Iterable[tuple[int, str]]) -> Reading:
    """Return what the rules find in the parts of a log, each with the number of its first line."""
    found = Reading()
    traceback = _Traceback()
    offset = 0
    for first_line, text in parts:
        for piece, previous in _pieces(text, first_line, offset, traceback):
            _read_piece(found, piece, previous, traceback)
        offset += len(text) + 1
        found.last = _last_piece(text, first_line) or found.last
    if traceback.head is not None and not traceback.ignored:
        found.cut_traceback = traceback.head
    found.losses = found.losses or found.measures
    return found


def _pieces(
    text: str, first_line: int, offset: int, traceback: _Traceback
) -> Iterator[tuple[Piece, str]]:
    """Yield the pieces that are worth reading, each with the line before it."""
    # splitlines would also split where no editor counts a line, e.g. at a form feed.
    lines = text.split("\n")
    at = offset
    index = 0
    for candidate in (*lines_with_keywords(text, lines), len(lines)):
        # Any line after the head of a traceback may end it.
        while index < candidate and traceback.head is not None:
            yield from _states(lines, index, first_line, at)
            at += len(lines[index]) + 1
            index += 1
        at += sum(map(len, lines[index:candidate])) + candidate - index
        index = max(index, candidate)
        if index < len(lines) and index == candidate:
            yield from _states(lines, index, first_line, at)
            at += len(lines[index]) + 1
            index += 1


def _states(lines: list[str], index: int, first_line: int, at: int) -> Iterator[tuple[Piece, str]]:
    line = lines[index]
    previous = lines[index - 1] if index else ""
    if "\r" not in line:
        text = clean(line)
        if text and not text.isspace():
            yield Piece(first_line + index, at, text), previous
        return
    for state in _STATE.finditer(line):
        text = clean(state[0])
        if text and not text.isspace():
            yield Piece(first_line + index, at + state.start(), text), previous


def _last_piece(text: str, first_line: int) -> Piece | None:
    """Return the last line, or state of a bar, that is not empty."""
    end = len(text)
    while end > 0:
        start = max(text.rfind("\n", 0, end), text.rfind("\r", 0, end)) + 1
        shown = clean(text[start:end])
        if shown and not shown.isspace():
            return Piece(first_line + text.count("\n", 0, start), start, shown)
        end = len(text[: max(0, start - 1)].rstrip()) if start else 0
    return None


def _read_piece(found: Reading, piece: Piece, previous: str, traceback: _Traceback) -> None:
    text = piece.text
    if log_rules.IGNORED.match(text):
        traceback.ignored = True
    if log_rules.TRACEBACK.search(text):
        traceback.head = piece
        traceback.message = 0
        traceback.caught = bool(log_rules.LOGGED.match(clean(previous)))
        if not traceback.follows:
            traceback.chain = len(found.errors)
        traceback.follows = False
        return
    head = traceback.head
    if head is not None and text[0].isspace():
        return
    ends = head is not None and bool(log_rules.EXCEPTION.match(text))
    if head is not None and not ends and not traceback.ignored:
        found.cut_traceback = found.cut_traceback or head
    traceback.head = None
    if ends and traceback.ignored:
        traceback.ignored = False
        return
    superseded = log_rules.SUPERSEDED.match(text) is not None
    if superseded or log_rules.CAUSED.match(text):
        traceback.follows = True
        if superseded:
            chain = found.errors[traceback.chain :]
            found.errors[traceback.chain :] = [e for e in chain if e.rule.kind in OUTLASTING]
        return
    shape = shape_of(text)
    signs = _signs(shape)
    if ends or signs.error_keys:
        rule = log_rules.read_error(text, signs.error_keys, ends_traceback=ends)
        if rule is None and traceback.message > 0:
            rule = log_rules.read_message(text, signs.error_keys)
        if rule is not None:
            found.errors.append(Error(piece, rule, caught=ends and traceback.caught))
            is_death = ends and not traceback.caught and rule.weight is Weight.CAUSE
            if is_death and found.runs.dies_again():
                found.several = found.several or piece
            found.runs.end()
        if ends:
            traceback.message = 0 if rule is None or _names_a_cause(rule) else _MESSAGE_LINES
    traceback.message -= 1
    if signs.signs is not None:
        _note_runs(found, piece, shape, signs.signs)
        _note(found, piece, signs.signs)


def _names_a_cause(rule: TextRule) -> bool:
    return rule.weight is not Weight.SYMPTOM and rule.kind is not VerdictKind.PYTHON_ERROR


class _Shape(NamedTuple):
    error_keys: tuple[str, ...]
    signs: Signs | None


# Most lines of a log differ only in their numbers.
@lru_cache(maxsize=4096)
def _signs(shape: str) -> _Shape:
    keys = keys_in(shape.lower())
    return _Shape(
        error_keys=tuple(key for key in keys if key in ERROR_KEYS),
        signs=None if SIGN_KEYS.isdisjoint(keys) else read_signs(shape, keys),
    )


def _note_runs(found: Reading, piece: Piece, shape: str, signs: Signs) -> None:
    """Note what a line says of runs, and whether it belongs to another than the first."""
    runs = found.runs
    runs.in_parts |= signs.parts
    several = signs.several_runs and not is_alone(piece.text)
    if signs.announced:
        several |= runs.announces_another(piece.text, has_trained=bool(found.losses))
    if signs.finished:
        runs.end()
    elif signs.begun and not signs.step and signs.loss is None:
        runs.head(shape)
    if signs.loss is not None and signs.step:
        several |= runs.begins_again(piece.text)
    if several:
        found.several = found.several or piece


def _note(found: Reading, piece: Piece, signs: Signs) -> None:
    """Note what a line says besides errors."""
    if signs.finished:
        found.finished = piece
    elif found.finished is not None and signs.counted:
        found.reopened = piece
    if signs.ended_well:
        found.ended_well = piece
    if signs.loss is None and signs.nan_count and _NAN_COUNT.search(piece.text):
        found.losses.append(Loss(piece, finite=False, of_step=True))
    if signs.measure is not None:
        found.measures.append(Loss(piece, signs.measure, signs.step, signs.bar))
    if signs.loss is not None:
        if found.reopened is not None and signs.step:
            # Another model trains in the same file.
            found.several = found.several or found.reopened
        found.losses.append(Loss(piece, signs.loss, signs.step, signs.bar))
        if signs.gradient is not None:
            found.bad_gradients.append(not signs.gradient)
    if signs.refused:
        found.refused = found.refused or piece
    if signs.begun:
        found.begun = found.begun or piece
    if signs.counter:
        found.counters.append(piece)
    # `num_updates=20` beside a loss is a count, not a bound.
    if signs.bound and signs.loss is None and len(found.bounds) < _BOUNDS:
        found.bounds.append(piece)
    found.skipped_step |= signs.skipped_step


def clean(text: str) -> str:
    """Return a line without colours, control characters, and prefixes of rank and time."""
    if len(text) > _PIECE_HEAD + _PIECE_TAIL:
        text = f"{text[:_PIECE_HEAD]} ... {text[-_PIECE_TAIL:]}"
    if not text.isprintable():
        text = _CONTROL.sub("", _ESCAPE.sub("", text))
    return _GROUP.sub("", _PRINTED_BY.sub("", text, count=1), count=1).rstrip()
