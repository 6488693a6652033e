"""Keywords of the log rules, and a fast search for the lines that hold one.

Most lines hold none: only the others are read one by one.
"""

import re
from collections.abc import Iterator
from functools import lru_cache

from elmanctl.verdicts.logs.rules import ERROR_KEYS
from elmanctl.verdicts.logs.signs import SIGN_KEYS

KEYS = tuple(sorted(ERROR_KEYS | SIGN_KEYS))

_WORD = re.compile(r"[a-z_]{3,}")
_HEAD = 3
# Keywords that are part of a word, by their first letters, and the others.
_BY_HEAD: dict[str, list[str]] = {}
for _key in KEYS:
    if _WORD.fullmatch(_key):
        _BY_HEAD.setdefault(_key[:_HEAD], []).append(_key)
_OF_SIGNS = tuple(key for key in KEYS if not _WORD.fullmatch(key))

# For shorter texts numpy takes longer to import than it saves.
_SMALL = 200_000

# In the text the digits of a counter, or of a line number, are not yet zeros.
_OF_LETTERS = tuple(key for key in KEYS if key.isascii() and "0" not in key)


def keys_in(lowered: str) -> tuple[str, ...]:
    """Return the keywords in a lower-case line in which every numeral is a 0."""
    found = {key for word in set(_WORD.findall(lowered)) for key in _keys_of_word(word)}
    found.update(key for key in _OF_SIGNS if key in lowered)
    return tuple(sorted(found))


@lru_cache(maxsize=8192)
def _keys_of_word(word: str) -> tuple[str, ...]:
    return tuple(
        key
        for at in range(len(word) - _HEAD + 1)
        for key in _BY_HEAD.get(word[at : at + _HEAD], ())
        if word.startswith(key, at)
    )


def lines_with_keywords(text: str, lines: list[str]) -> Iterator[int]:
    """Yield, in order, the indices of the lines of `text` that may hold a keyword."""
    if len(text) < _SMALL:
        yield from range(len(lines))
        return
    import numpy as np

    # One byte per character, so that positions are the same.
    data = np.frombuffer(text.encode("latin-1", "replace"), dtype=np.uint8)
    data = data + 32 * ((data >= 65) & (data <= 90)).astype(np.uint8)
    pairs = data[:-1].astype(np.uint16) << 8 | data[1:]
    digits = (data >= 48) & (data <= 57)
    # The start of a counter alone on its line; a number before a colon; a non-Latin letter.
    hits = [np.flatnonzero((data[:-1] == ord("[")) & digits[1:])]
    known = digits | (data == ord("?"))
    hits.append(np.flatnonzero(known[:-1] & (data[1:] == ord(":"))))
    hits.append(np.flatnonzero(digits[:-2] & (data[1:-1] == 32) & (data[2:] == ord(":"))))
    hits.append(np.flatnonzero(known[:-1] & (data[1:] == ord("?"))))
    for width in (3, 4):
        heads = {key[:width].encode() for key in _OF_LETTERS if min(4, len(key)) == width}
        codes = np.array([int.from_bytes(head, "big") for head in heads], dtype=np.uint32)
        starts = np.zeros(1 << 16, dtype=bool)
        starts[codes >> (8 * width - 16)] = True
        ends = np.zeros(1 << 16, dtype=bool)
        ends[codes & 0xFFFF] = True
        # The first two and the last two bytes of a head; for three bytes they share one.
        behind = pairs[width - 2 :]
        places = np.flatnonzero(starts[pairs[: len(behind)]] & ends[behind])
        low = behind[places] & (0xFF if width == 3 else 0xFFFF)
        found = pairs[places].astype(np.uint32) << (8 * width - 16) | low
        hits.append(places[np.isin(found, codes)])
    ends_of_lines = np.flatnonzero(data == 10)
    found_lines = np.unique(np.searchsorted(ends_of_lines, np.concatenate(hits)))
    yield from found_lines.tolist()
