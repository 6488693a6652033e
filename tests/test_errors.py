"""Errors: their exit codes, and the nearest of known names."""

from collections.abc import Iterator

import pytest

from elmanctl import errors
from elmanctl.errors import ElmanError, Faults, InvalidConfiguration, UsageError, nearest


def _all(kind: type[ElmanError]) -> Iterator[type[ElmanError]]:
    for child in kind.__subclasses__():
        yield child
        yield from _all(child)


def test_every_error_has_the_exit_code_that_the_tree_at_the_top_says() -> None:
    text = errors.__doc__ or ""
    told: dict[str, int] = {}
    for line in text.splitlines():
        words = line.replace("│", " ").replace("├──", " ").replace("└──", " ").split()
        if words and words[0].isidentifier() and hasattr(errors, words[0]):
            # What stands under LedgerError ends as it does.
            told[words[0]] = int(words[2]) if words[1:2] == ["exit"] else 1
    kinds = {kind for kind in _all(ElmanError) if kind.__module__ == errors.__name__}
    kinds.add(ElmanError)
    assert told == {kind.__name__: kind.exit_code for kind in kinds}


def test_message_and_hint_are_kept() -> None:
    error = ElmanError("no `sbatch` here", hint="add `--local`")
    assert (str(error), error.message, error.hint) == (
        "no `sbatch` here",
        "no `sbatch` here",
        "add `--local`",
    )
    assert ElmanError("x").hint is None


@pytest.mark.parametrize(
    ("name", "found"),
    [
        ("populaton", "population"),
        ("POPULATION", "population"),
        ("h100", "H100"),
        ("zzz", None),
        ("", None),
    ],
)
def test_nearest_name_is_found_whatever_its_case(name: str, found: str | None) -> None:
    assert nearest(name, ["population", "partition", "H100"]) == found


def test_several_faults_are_one_error_of_the_first_class_and_one_is_itself() -> None:
    alone = InvalidConfiguration("a is wrong", hint="leave a out")
    faults = Faults()
    faults.raise_any()
    with faults:
        raise alone
    with pytest.raises(InvalidConfiguration) as told:
        faults.raise_any()
    assert told.value is alone
    for words in ("b is wrong", "b is wrong", "c is wrong"):
        with faults:
            raise UsageError(words, hint="leave it out")
    with pytest.raises(InvalidConfiguration) as told:
        faults.raise_any()
    assert told.value.message == "a is wrong; b is wrong; c is wrong"
    assert told.value.hint == "leave a out; leave it out"
    again = Faults()
    again.add(told.value)
    again.add(UsageError("d is wrong"))
    with pytest.raises(
        InvalidConfiguration, match="a is wrong; b is wrong; c is wrong; d is wrong"
    ):
        again.raise_any()
    with pytest.raises(ValueError, match="no error of ours"), Faults():
        raise ValueError("no error of ours")
