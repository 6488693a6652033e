"""Parser of levels: the name of a family followed by lettered numbers, as in E75h7n24."""

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

from elmanctl.errors import InvalidConfiguration, NotFound, meant

_PAIR = re.compile(r"([a-z]+)([0-9]*)")
_MAX_SHOWN = 64
# No family supports larger numbers.
_NUMBERS = range(1, 4_097)


@dataclass(frozen=True, slots=True, kw_only=True)
class Grammar:
    """Grammar of a family's levels: a name, then letters with numbers, in the order of `letters`.

    `names` maps each name to the settings that it implies, `letters` each letter to its setting.
    """

    family: str
    names: Mapping[str, Mapping[str, Any]]
    letters: Mapping[str, str] = field(default_factory=dict)

    def describe(self) -> str:
        """Describe the grammar for an error message."""
        if not self.letters:
            return f"{self.family} takes no letters"
        pairs = [f"`{letter}` ({name})" for letter, name in self.letters.items()]
        if len(pairs) == 1:
            return f"{self.family} takes {pairs[0]} with a number"
        return f"{self.family} takes {', '.join(pairs)} in this order, each with a number"

    def spell(self, name: str, numbers: Mapping[str, int]) -> str:
        """Format the level with these settings, under one of the family's names."""
        pairs = [
            f"{letter}{numbers[setting]}"
            for letter, setting in self.letters.items()
            if setting in numbers
        ]
        return name + "".join(pairs)


@dataclass(frozen=True, slots=True, kw_only=True)
class Level:
    """A parsed level: the family, the name used for it, and the settings that the level fixes."""

    family: str
    name: str
    settings: Mapping[str, Any]


def parse_level(text: str, grammars: tuple[Grammar, ...]) -> Level:
    """Parse a level, ignoring case.

    Raises NotFound for an unknown name, InvalidConfiguration for a known name followed by anything
    that its grammar does not allow; the hint is the nearest valid level.
    """
    folded = text.strip().casefold()
    found = _match_name(folded, grammars)
    shown = text if len(text) <= _MAX_SHOWN else f"{text[:_MAX_SHOWN]}..."
    if found is None:
        names = [name for grammar in grammars for name in grammar.names]
        families = ", ".join(grammar.family for grammar in grammars)
        raise NotFound(
            f"there is no model `{shown}`",
            hint=meant(folded[:_MAX_SHOWN], names, f"there are: {families}"),
        )
    grammar, name = found
    numbers = _parse_numbers(shown, folded[len(name) :], name, grammar)
    settings = {**grammar.names[name], **numbers}
    return Level(family=grammar.family, name=name, settings=settings)


def nearest_level(
    level: Level, grammar: Grammar, setting: str, is_possible: Callable[[str], bool]
) -> str | None:
    """Return the level with the number of `setting` changed as little as possible, or None.

    `is_possible` decides whether a level is valid; on a tie the smaller number wins.
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


def _match_name(folded: str, grammars: tuple[Grammar, ...]) -> tuple[Grammar, str] | None:
    """Return the longest name that the level begins with, and its grammar.

    A name must be followed by a letter: `e880` and `e9` are not levels of e88 and e90.
    """
    matches = [
        (grammar, name)
        for grammar in grammars
        for name in grammar.names
        if folded == name
        or (grammar.letters and folded.startswith(name) and not folded[len(name)].isdigit())
    ]
    return max(matches, key=lambda pair: len(pair[1]), default=None)


def _parse_numbers(text: str, suffix: str, name: str, grammar: Grammar) -> dict[str, int]:
    numbers: dict[str, int] = {}
    order = list(grammar.letters)
    for letter, digits in _split_pairs(suffix):
        error = _pair_error(letter, digits, order, numbers, grammar)
        if error:
            near = _nearest_spelling(suffix, name, grammar)
            raise InvalidConfiguration(
                f"level `{text}`: {error}; {grammar.describe()}",
                hint=f"did you mean `{near}`?",
            )
        numbers[grammar.letters[letter]] = int(digits)
    return numbers


def _split_pairs(suffix: str) -> list[tuple[str, str]]:
    """Split into letters and the digits after them; any other character is a letter of its own."""
    pairs: list[tuple[str, str]] = []
    position = 0
    while position < len(suffix):
        match = _PAIR.match(suffix, position)
        pairs.append((match[1], match[2]) if match else (suffix[position], ""))
        position = match.end() if match else position + 1
    return pairs


def _pair_error(
    letter: str, digits: str, order: list[str], numbers: Mapping[str, int], grammar: Grammar
) -> str | None:
    if letter not in grammar.letters:
        return f"unknown letter in `{(letter + digits)[:_MAX_SHOWN]}`"
    if not digits:
        return f"`{letter}` has no number"
    if digits.startswith("0") or len(digits) > 6:
        return f"`{digits[:_MAX_SHOWN]}` is not a valid number for `{letter}`"
    if grammar.letters[letter] in numbers:
        return f"`{letter}` is repeated"
    later = [grammar.letters[other] for other in order[order.index(letter) :]]
    if any(setting in numbers for setting in later):
        return f"`{letter}{digits}` is out of order"
    return None


def _nearest_spelling(suffix: str, name: str, grammar: Grammar) -> str:
    """Return a valid level with the numbers of a malformed one, under their letters if valid."""
    numbers: dict[str, int] = {}
    unassigned: list[int] = []
    for letter, digits in _split_pairs(suffix):
        if not digits or int(digits[:6]) == 0:
            continue
        setting = grammar.letters.get(letter)
        if setting is None or setting in numbers:
            unassigned.append(int(digits[:6]))
        else:
            numbers[setting] = int(digits[:6])
    free = [setting for setting in grammar.letters.values() if setting not in numbers]
    numbers |= dict(zip(free, unassigned, strict=False))
    return grammar.spell(name, numbers)
