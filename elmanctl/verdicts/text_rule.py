"""Text rules: patterns that recognize a kind of failure by one line of text; pure."""

import re
from collections.abc import Collection, Sequence
from dataclasses import dataclass
from enum import IntEnum

from elmanctl.ledger.records import VerdictKind


class Weight(IntEnum):
    """How close a line is to the root cause."""

    SYMPTOM = 0
    SIGNAL = 1
    SCHEDULER = 2
    CAUSE = 3


@dataclass(frozen=True, slots=True)
class TextRule:
    """A text that indicates a kind of failure.

    Every matching line holds one of the lower-case substrings `keys`.  Of `patterns`, each one is
    searched for after the match of the one before.
    """

    keys: tuple[str, ...]
    patterns: tuple[re.Pattern[str], ...]
    kind: VerdictKind
    weight: Weight = Weight.CAUSE

    def matches(self, line: str) -> bool:
        """Whether a line matches."""
        start = 0
        for pattern in self.patterns:
            # Without `start` where it is 0: `^` and `\\b` look at what is before it.
            found = pattern.search(line) if start == 0 else pattern.search(line, start)
            if found is None:
                return False
            start = found.end()
        return True


def rule(
    keys: str, pattern: str, kind: VerdictKind, weight: Weight = Weight.CAUSE, then: str = ""
) -> TextRule:
    """Return a rule; `keys` are separated by spaces, `then` must follow `pattern`."""
    patterns = [re.compile(pattern)] + ([re.compile(then)] if then else [])
    return TextRule(tuple(keys.split()), tuple(patterns), kind, weight)


class RuleTable:
    """Rules in order of precedence, indexed by their keys."""

    def __init__(self, rules: Sequence[TextRule]) -> None:
        self._rules = tuple(rules)
        self._by_key: dict[str, list[int]] = {}
        for place, one in enumerate(self._rules):
            for key in one.keys:
                self._by_key.setdefault(key, []).append(place)

    def first_match(self, line: str, keys: Collection[str]) -> TextRule | None:
        """Return the first rule that matches a line; `keys` are those that the line holds."""
        places = {place for key in keys for place in self._by_key.get(key, ())}
        for place in sorted(places):
            if self._rules[place].matches(line):
                return self._rules[place]
        return None
