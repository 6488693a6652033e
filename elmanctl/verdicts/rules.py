"""What a rule is: words that tell of a kind of end; pure."""

import re
from collections.abc import Collection, Sequence
from dataclasses import dataclass
from enum import IntEnum

from elmanctl.ledger.records import VerdictKind


class Weight(IntEnum):
    """How near to the cause a line is."""

    SYMPTOM = 0
    SIGNAL = 1
    SCHEDULER = 2
    CAUSE = 3


@dataclass(frozen=True, slots=True)
class Rule:
    """A text that tells of a kind of end.

    `keys` are lower-case substrings, one of which stands in every line that fits; of `patterns`,
    each is looked for behind the one before.
    """

    keys: tuple[str, ...]
    patterns: tuple[re.Pattern[str], ...]
    kind: VerdictKind
    weight: Weight = Weight.CAUSE

    def fits(self, line: str) -> bool:
        """Whether a line tells so."""
        start = 0
        for pattern in self.patterns:
            # Not from `start` on: `^` and `\\b` look at what is before.
            found = pattern.search(line) if start == 0 else pattern.search(line, start)
            if found is None:
                return False
            start = found.end()
        return True


def rule(
    keys: str, pattern: str, kind: VerdictKind, weight: Weight = Weight.CAUSE, then: str = ""
) -> Rule:
    """Return a rule; `keys` are parted by spaces, `then` stands behind `pattern`."""
    patterns = [re.compile(pattern)] + ([re.compile(then)] if then else [])
    return Rule(tuple(keys.split()), tuple(patterns), kind, weight)


class Table:
    """Rules in their order, of which the first that fits decides."""

    def __init__(self, rules: Sequence[Rule]) -> None:
        self._rules = tuple(rules)
        self._by_key: dict[str, list[int]] = {}
        for place, one in enumerate(self._rules):
            for key in one.keys:
                self._by_key.setdefault(key, []).append(place)

    def first_fitting(self, line: str, keys: Collection[str]) -> Rule | None:
        """Return the first rule that fits a line which holds these keys in lower case."""
        places = {place for key in keys for place in self._by_key.get(key, ())}
        for place in sorted(places):
            if self._rules[place].fits(line):
                return self._rules[place]
        return None
