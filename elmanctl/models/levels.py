"""Levels: a family's name, and numbers that belong to it, as in E75h7n24."""

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

from elmanctl.errors import InvalidConfiguration, NotFound, nearest

_PAIR = re.compile(r"([a-z]+)([0-9]*)")
_TOO_LONG = 64
# No family takes a larger one.
_NUMBERS = range(1, 4_097)


@dataclass(frozen=True, slots=True, kw_only=True)
class Grammar:
    """How levels of one family are spelled: a name, then letters with numbers in this order.

    `names` maps each name to the settings that it stands for.
    """

    family: str
    names: Mapping[str, Mapping[str, Any]]
    letters: Mapping[str, str] = field(default_factory=dict)

    def describe(self) -> str:
        """Return the rule in words."""
        if not self.letters:
            return f"{self.family} stands alone"
        pairs = [f"`{letter}` ({name})" for letter, name in self.letters.items()]
        if len(pairs) == 1:
            return f"{self.family} takes {pairs[0]} with a number"
        return f"{self.family} takes {', '.join(pairs)} in this order, each with a number"

    def spell(self, name: str, numbers: Mapping[str, int]) -> str:
        """Return the level of these settings, under one of the family's names."""
        pairs = [
            f"{letter}{numbers[setting]}"
            for letter, setting in self.letters.items()
            if setting in numbers
        ]
        return name + "".join(pairs)


@dataclass(frozen=True, slots=True, kw_only=True)
class Level:
    """A parsed level: the family, the name used for it, and the settings that both fix."""

    family: str
    name: str
    settings: Mapping[str, Any]


def parse_level(text: str, grammars: tuple[Grammar, ...]) -> Level:
    """Return what a level says, whatever the case of its letters.

    Raises NotFound for a name that no family has, InvalidConfiguration for a known name that is
    followed by something else than its grammar allows; the hint is the nearest level there is.
    """
    folded = text.strip().casefold()
    found = _family_of(folded, grammars)
    shown = text if len(text) <= _TOO_LONG else f"{text[:_TOO_LONG]}..."
    if found is None:
        names = [name for grammar in grammars for name in grammar.names]
        near = nearest(folded[:_TOO_LONG], names)
        families = ", ".join(grammar.family for grammar in grammars)
        raise NotFound(
            f"there is no model `{shown}`",
            hint=f"did you mean `{near}`?" if near else f"there are: {families}",
        )
    grammar, name = found
    numbers = _numbers(shown, folded[len(name) :], name, grammar)
    settings = {**grammar.names[name], **numbers}
    return Level(family=grammar.family, name=name, settings=settings)


def nearest_level(
    level: Level, grammar: Grammar, setting: str, is_possible: Callable[[str], bool]
) -> str | None:
    """Return the level with one number changed by the least that makes it possible, or None.

    `setting` is the one whose number may change; of two equally near the smaller is returned.
    """
    numbers = {
        known: level.settings[known]
        for known in grammar.letters.values()
        if known in level.settings
    }
    for other in sorted(_NUMBERS, key=lambda other: abs(other - numbers[setting])):
        spelled = grammar.spell(level.name, {**numbers, setting: other})
        if is_possible(spelled):
            return spelled
    return None


def _family_of(folded: str, grammars: tuple[Grammar, ...]) -> tuple[Grammar, str] | None:
    """The family with the longest name that the level begins with, and that name.

    What follows a name is a letter: `e880` and `e9` are not levels of e88 and e90.
    """
    fitting = [
        (grammar, name)
        for grammar in grammars
        for name in grammar.names
        if folded == name
        or (grammar.letters and folded.startswith(name) and not folded[len(name)].isdigit())
    ]
    return max(fitting, key=lambda pair: len(pair[1]), default=None)


def _numbers(text: str, rest: str, name: str, grammar: Grammar) -> dict[str, int]:
    numbers: dict[str, int] = {}
    order = list(grammar.letters)
    for letter, digits in _pairs(rest):
        wrong = _fault(letter, digits, order, numbers, grammar)
        if wrong:
            near = _nearest_spelling(rest, name, grammar)
            raise InvalidConfiguration(
                f"level `{text}`: {wrong}; {grammar.describe()}",
                hint=f"did you mean `{near}`?",
            )
        numbers[grammar.letters[letter]] = int(digits)
    return numbers


def _pairs(rest: str) -> list[tuple[str, str]]:
    """Letters with the digits that follow; what is neither stands as a letter without digits."""
    pairs: list[tuple[str, str]] = []
    at = 0
    while at < len(rest):
        match = _PAIR.match(rest, at)
        pairs.append((match[1], match[2]) if match else (rest[at], ""))
        at = match.end() if match else at + 1
    return pairs


def _fault(
    letter: str, digits: str, order: list[str], numbers: Mapping[str, int], grammar: Grammar
) -> str | None:
    if letter not in grammar.letters:
        return f"`{(letter + digits)[:_TOO_LONG]}` says nothing"
    if not digits:
        return f"`{letter}` has no number"
    if digits.startswith("0") or len(digits) > 6:
        return f"`{digits[:_TOO_LONG]}` is no number for `{letter}`"
    if grammar.letters[letter] in numbers:
        return f"`{letter}` stands twice"
    later = [grammar.letters[other] for other in order[order.index(letter) :]]
    if any(setting in numbers for setting in later):
        return f"`{letter}{digits}` stands too late"
    return None


def _nearest_spelling(rest: str, name: str, grammar: Grammar) -> str:
    """The level that keeps the numbers of a malformed one, under their own letters if they can."""
    numbers: dict[str, int] = {}
    homeless: list[int] = []
    for letter, digits in _pairs(rest):
        if not digits or int(digits[:6]) == 0:
            continue
        setting = grammar.letters.get(letter)
        if setting is None or setting in numbers:
            homeless.append(int(digits[:6]))
        else:
            numbers[setting] = int(digits[:6])
    free = [setting for setting in grammar.letters.values() if setting not in numbers]
    numbers |= dict(zip(free, homeless, strict=False))
    return grammar.spell(name, numbers)
