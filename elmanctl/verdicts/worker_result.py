"""Verdict of a worker's own result, and the check that the result belongs to the attempt; pure."""

import re
import sys
from collections.abc import Mapping
from dataclasses import replace

from elmanctl.ledger.records import (
    Cause,
    Confidence,
    Evidence,
    EvidenceSource,
    Verdict,
    VerdictKind,
)
from elmanctl.verdicts.causes import find_cause, find_neighbour
from elmanctl.verdicts.evidence import context, scheduler_quote
from elmanctl.verdicts.job_end import named_kind
from elmanctl.verdicts.log_tail import LogTail
from elmanctl.verdicts.logs.classifier import QUOTE_LIMIT
from elmanctl.verdicts.observation import Observation, is_self_sufficient

_K = VerdictKind

# Room for the messages of a traceback, not for a whole log.
_QUOTES_KEPT = 20
_TEXT_LIMIT = 4000
_SHOWN_VALUE = 100

_MODULES = re.compile(r"^(?:\w+\.)+")


def find_mismatch(
    result: Mapping[str, object], *, evaluation: str, attempt: int, parameters: int
) -> str | None:
    """Return what shows that a result is another attempt's, None when nothing does.

    Workers of elmanctl 0.1 wrote the count of parameters alone.
    """
    expected: tuple[tuple[str, object], ...] = (
        ("evaluation", evaluation),
        ("attempt", attempt),
        ("parameters_expected", parameters),
        ("parameters", parameters),
    )
    for key, wanted in expected:
        if key in result and result[key] != wanted:
            found = repr(result[key])[:_SHOWN_VALUE]
            return f"the result is of {key} {found}, not {wanted!r}"
    return None


def result_verdict(seen: Observation, result: Mapping[str, object]) -> Verdict:
    """Return the verdict that the worker wrote, with where the log prints its error.

    Where the scheduler names another cause, both are quoted and neither is certain.
    """
    written = result.get("verdict")
    if not isinstance(written, Mapping) or str(written.get("kind")) not in set(_K):
        return _unusable(seen, "the worker's result holds no verdict")
    kind = _K(str(written["kind"]))
    if kind is _K.COMPLETED and not _is_loss(result.get("loss")):
        return _unusable(seen, "the worker says completed and gives no finite loss")
    if kind is _K.STOPPED and not seen.stop_requested:
        return _unusable(seen, "the worker says stopped, and was not asked to stop")
    evidence = _written_evidence(written.get("evidence"), kind, seen.result_file)
    texts = tuple(quote.text for quote in evidence)
    cause = find_cause(kind, texts)
    neighbours = [neighbour for text in texts if (neighbour := find_neighbour(text))]
    if cause is Cause.NEIGHBOUR:
        evidence.append(replace(evidence[0], text=str(neighbours[0])))
    if not is_self_sufficient(result):
        evidence += _in_log(seen.log, evidence[0].text)
    named = None if seen.report is None else named_kind(seen.report)
    confidence = Confidence.CERTAIN
    if named not in (None, kind):
        confidence = Confidence.LIKELY
        evidence += filter(None, [scheduler_quote(seen)])
    if kind is _K.UNDETERMINED:
        confidence = Confidence.UNCLEAR
    return Verdict(kind=kind, evidence=tuple(evidence), confidence=confidence, cause=cause)


def _unusable(seen: Observation, text: str) -> Verdict:
    return Verdict(
        kind=_K.UNDETERMINED,
        evidence=(_quote({"text": text}, seen.result_file), *context(seen)),
        confidence=Confidence.UNCLEAR,
    )


def _written_evidence(written: object, kind: VerdictKind, file: str | None) -> list[Evidence]:
    listed = written[:_QUOTES_KEPT] if isinstance(written, list) else []
    quotes = [quote for quote in listed if isinstance(quote, Mapping) and "text" in quote]
    return [_quote(quote, file) for quote in quotes or [{"text": f"the worker says {kind}"}]]


def _quote(quote: Mapping[str, object], file: str | None) -> Evidence:
    """Return the worker's evidence; the place it names is more precise than its result file."""
    named, line = quote.get("file"), quote.get("line")
    return Evidence(
        source=EvidenceSource.RESULT,
        text=str(quote.get("text"))[:_TEXT_LIMIT],
        file=named[:QUOTE_LIMIT] if isinstance(named, str) else file,
        line=line if type(line) is int else None,
    )


def _in_log(log: LogTail | None, text: str) -> list[Evidence]:
    """Return where a log prints the exception that the worker wrote down."""
    # The worker appends to the first line where the exception was raised.
    first = text.partition("\n")[0].partition(" (")[0].strip()
    if log is None or not first:
        return []
    for number, printed in reversed(list(enumerate(log.lines, log.first_line))):
        line = printed.strip()
        # Python prints it with the name of its module.
        if _MODULES.sub("", line, count=1).startswith(first):
            shown = line[:QUOTE_LIMIT]
            return [Evidence(source=EvidenceSource.LOG, text=shown, file=log.file, line=number)]
    return []


def _is_loss(value: object) -> bool:
    if isinstance(value, bool) or not isinstance(value, int | float):
        return False
    # False for NaN too.
    return abs(value) <= sys.float_info.max
