"""Signature of a failure: its kind and the first line of its evidence, without particulars."""

import re
from functools import lru_cache

from elmanctl.ledger.records import EvidenceSource, Verdict

_LENGTH = 200

# Particulars that differ between occurrences of the same failure, in order of replacement.
_PARTICULARS = (
    (re.compile(r"(?:file://)?(?:~|\.{1,2})?(?:/[\w.+@%=:,-]+)+/?"), "<path>"),
    (re.compile(r"\b[A-Za-z]:\\\S+"), "<path>"),
    (re.compile(r"\b0[xX][0-9a-fA-F]+\b"), "<hex>"),
    (re.compile(r"\b[0-9a-fA-F]{8}(?:-[0-9a-fA-F]{4}){3}-[0-9a-fA-F]{12}\b"), "<id>"),
    # Digests and tokens: long, and with a digit, which words made of a to f lack.
    (re.compile(r"\b(?=[a-f]*[0-9])[0-9a-f]{7,}\b"), "<hex>"),
    (re.compile(r"[-+]?\d+(?:\.\d+)?(?:[eE][-+]?\d+)?"), "#"),
    (re.compile(r"\s+"), " "),
)


@lru_cache(maxsize=4096)
def signature(verdict: Verdict) -> str:
    """Return the kind of a verdict and its first evidence, without numbers, paths and ids.

    The controller's own remarks are the same for many failures, so observations come before them.
    """
    seen = [quote for quote in verdict.evidence if quote.source is not EvidenceSource.CONTROLLER]
    quotes = seen or list(verdict.evidence)
    lines = quotes[0].text.strip().splitlines() if quotes else []
    return f"{verdict.kind}: {normalised(lines[0])}" if lines else verdict.kind.value


def normalised(text: str) -> str:
    """Return a text with a mark in place of every path, address, id and number."""
    for pattern, mark in _PARTICULARS:
        text = pattern.sub(mark, text)
    return text.strip()[:_LENGTH]
