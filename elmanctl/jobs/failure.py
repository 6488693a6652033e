"""Classification of the exception that ended a worker.

It is read like a log that prints it, by the same rules; but the worker knows more: the base classes
of the exception, and the errno of a failed call, whatever the message.  Only names and texts count,
so that torch need not be importable: a machine without it must not look like a bug in the model.
"""

import traceback
from collections.abc import Iterator
from pathlib import Path

from elmanctl.errors import ElmanError
from elmanctl.ledger.records import VerdictKind
from elmanctl.verdicts.logs.classifier import decide_among
from elmanctl.verdicts.logs.reading import OUTLASTING, Error, read_parts

# An error message may be a page long; the evidence keeps its beginning.
TEXT_LIMIT = 2000

# Of a longer message, so much is read at either end.
_READ_LIMIT = 100_000

_HEAD = "Traceback (most recent call last):\n"


def classify_exception(exc: BaseException) -> tuple[VerdictKind, str]:
    """Return the kind of failure that an exception means, and its text as evidence.

    The first line of the text is a summary.  The exception and its causes decide together; one that
    was being handled meanwhile counts only for lack of memory or disk space, which make anything
    fail.
    """
    found: list[tuple[Error, BaseException]] = []
    for link, is_cause in chain(exc):
        error = _error_of(link)
        if error is not None and (is_cause or error.rule.kind in OUTLASTING):
            found.append((error, link))
    # Of several equal ones the last decides, as it is the last that a log prints.
    decisive = decide_among([error for error, _ in reversed(found)])
    if decisive is None or decisive.rule.kind is VerdictKind.PYTHON_ERROR:
        return VerdictKind.PYTHON_ERROR, _text(exc, with_frame=True)
    link = next(link for error, link in found if error is decisive)
    return decisive.rule.kind, _text(link)


def _error_of(exc: BaseException) -> Error | None:
    """Return the error in one exception alone, without its chain."""
    printed = "".join(traceback.format_exception_only(exc))
    decisive = _read(printed)
    if decisive is not None and decisive.rule.kind is not VerdictKind.PYTHON_ERROR:
        return decisive
    message = message_of(exc)
    for line in (_with_number(exc), *(f"{_name(base)}: {message}" for base in _bases(exc))):
        better = _read(line)
        if better is not None and better.rule.kind is not VerdictKind.PYTHON_ERROR:
            return better
    return decisive


def _read(printed: str) -> Error | None:
    if len(printed) > 2 * _READ_LIMIT:
        printed = f"{printed[:_READ_LIMIT]}\n{printed[-_READ_LIMIT:]}"
    return decide_among(read_parts([(1, _HEAD + printed)]).errors)


def _with_number(exc: BaseException) -> str:
    number = exc.errno if isinstance(exc, OSError) else None
    return "" if number is None else f"OSError: [Errno {number}] {message_of(exc)}"


def _bases(exc: BaseException) -> list[type]:
    """Return the base classes of an exception below Exception."""
    *bases, _, _ = type(exc).__mro__[1:] if isinstance(exc, Exception) else (object, object)
    return bases


def _name(kind: type) -> str:
    plain = kind.__module__ in ("builtins", "__main__")
    return kind.__qualname__ if plain else f"{kind.__module__}.{kind.__qualname__}"


def message_of(exc: BaseException) -> str:
    """Return the message of an exception, even if its class fails to make one."""
    try:
        return str(exc).strip()
    except Exception as broken:
        return f"its text cannot be had: {type(broken).__name__}"


def chain(exc: BaseException) -> Iterator[tuple[BaseException, bool]]:
    """Yield an exception and its chain, each with whether it is a cause.

    Otherwise it was being handled when the one before was raised.  The members of a group are
    causes.
    """
    seen: set[int] = set()
    waiting: list[tuple[BaseException, bool]] = [(exc, True)]
    while waiting:
        link, is_cause = waiting.pop(0)
        if id(link) in seen:
            continue
        seen.add(id(link))
        yield link, is_cause
        if isinstance(link, BaseExceptionGroup):
            waiting += [(held, is_cause) for held in link.exceptions]
        if link.__cause__ is not None:
            waiting.append((link.__cause__, is_cause))
        elif link.__context__ is not None and not link.__suppress_context__:
            waiting.append((link.__context__, False))


def _text(exc: BaseException, *, with_frame: bool = False) -> str:
    first, *rest = message_of(exc).splitlines() or [""]
    name = type(exc).__name__
    summary = f"{name}: {first}" if first else name
    if with_frame and (place := _innermost_frame(exc)):
        summary = f"{summary} ({place})"
    if isinstance(exc, ElmanError) and exc.hint:
        rest = [*rest, f"hint: {exc.hint}"]
    return "\n".join([summary, *rest])[:TEXT_LIMIT]


def frame_of(exc: BaseException, root: Path) -> tuple[str, int] | None:
    """Return file and line of the innermost frame in `root`, or else of the innermost frame.

    Files in `root` are named relative to it.
    """
    places = [
        (Path(frame.filename), frame.lineno)
        for frame in traceback.extract_tb(exc.__traceback__)
        if frame.lineno is not None
    ]
    for path, line in reversed(places):
        if path.is_relative_to(root):
            return str(path.relative_to(root)), line
    return (str(places[-1][0]), places[-1][1]) if places else None


def _innermost_frame(exc: BaseException) -> str | None:
    frames = traceback.extract_tb(exc.__traceback__)
    if not frames:
        return None
    frame = frames[-1]
    return f"{Path(frame.filename).name} line {frame.lineno}, in {frame.name}"
