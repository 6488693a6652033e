from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from elmanctl.errors import ElmanError, InvalidConfiguration, NotFound
from elmanctl.models.levels import Grammar
from elmanctl.models.registry import FAMILIES, decode_config, find_family, parse_level

SMALL: dict[str, Any] = {"dim": 64, "depth": 2}
TOO_LONG = 300

GRAMMARS = [family.grammar for family in FAMILIES.values()]
NAMED = [(grammar, name) for grammar in GRAMMARS for name in grammar.names]


@st.composite
def drawn_levels(draw: st.DrawFn) -> tuple[Grammar, str, dict[str, int]]:
    """A family, one of its names, and numbers for some of its letters."""
    grammar, name = draw(st.sampled_from(NAMED))
    optional = {setting: st.integers(1, 999_999) for setting in grammar.letters.values()}
    return grammar, name, draw(st.fixed_dictionaries({}, optional=optional))


@given(level=drawn_levels(), shouted=st.lists(st.booleans(), min_size=64, max_size=64))
def test_level_that_is_spelled_parses_to_what_was_spelled(
    level: tuple[Grammar, str, dict[str, int]], shouted: list[bool]
) -> None:
    grammar, name, numbers = level
    spelled = grammar.spell(name, numbers)
    mixed = "".join(
        letter.upper() if shout else letter for letter, shout in zip(spelled, shouted, strict=False)
    )
    parsed = parse_level(f" {mixed} ")
    assert (parsed.family, parsed.name) == (grammar.family, name)
    assert parsed.settings == {**grammar.names[name], **numbers}


def test_names_of_families_are_theirs_alone() -> None:
    names = [name for _, name in NAMED]
    assert len(set(names)) == len(names)
    assert all(find_family(name).name == grammar.family for grammar, name in NAMED)


@settings(max_examples=300)
@given(
    text=st.one_of(
        st.text(max_size=30),
        st.text(alphabet="e857ph n0134kbxEHN-", max_size=20),
        st.builds("{}{}".format, st.sampled_from([name for _, name in NAMED]), st.text()),
    )
)
def test_text_is_a_level_or_is_refused_with_one_that_is(text: str) -> None:
    try:
        parse_level(text)
    except ElmanError as exc:
        assert isinstance(exc, NotFound | InvalidConfiguration)
        assert exc.hint
        if exc.hint.startswith(("did you mean", "this is a level of")):
            parse_level(exc.hint.split("`")[1])
        else:
            assert all(family in exc.hint for family in FAMILIES)


@pytest.mark.parametrize(
    ("level", "fault", "nearest"),
    [
        ("E75h7x24", "unknown letter in `x24`", "e75h7n24"),
        ("E88h", "`h` has no number", "e88"),
        ("E88n32h4", "`h4` is out of order", "e88h4n32"),
        ("e88h4h5", "`h` is repeated", "e88h4n5"),
        ("e88h04", "`04` is not a valid number for `h`", "e88h4"),
        ("e88h0", "`0` is not a valid number for `h`", "e88"),
        ("e88h1234567", "`1234567` is not a valid number for `h`", "e88h123456"),
        ("e88 h4", "unknown letter in ` `", "e88h4"),
        ("e88h4-", "unknown letter in `-`", "e88h4"),
        ("e88h\uff14", "`h` has no number", "e88"),
        ("e75pch4k8", "unknown letter in `k8`", "e75pch4n8"),
        ("87b4k2m48", "unknown letter in `m48`", "87b4k2n48"),
        ("mom-e88h4x5x6", "unknown letter in `x5`", "mom-e88h4k5n6"),
    ],
)
def test_malformed_level_names_its_fault_and_the_nearest(
    level: str, fault: str, nearest: str
) -> None:
    with pytest.raises(InvalidConfiguration) as caught:
        parse_level(level)
    assert f"level `{level}`: {fault}; " in caught.value.message
    assert "in this order, each with a number" in caught.value.message
    assert caught.value.hint == f"did you mean `{nearest}`?"


@pytest.mark.parametrize(
    ("level", "nearest"),
    [
        ("e880", "e88"),
        ("e8x", "e88"),
        ("mamba", "mamba2"),
        ("mamba2h4", "mamba2"),
        ("gru2", "gru"),
        ("transfomer", "transformer"),
        ("\u00e988", "e88"),
        ("e 88", "e88"),
    ],
)
def test_unknown_name_has_a_nearest(level: str, nearest: str) -> None:
    with pytest.raises(NotFound) as caught:
        parse_level(level)
    assert caught.value.message == f"there is no model `{level}`"
    assert caught.value.hint == f"did you mean `{nearest}`?"


@pytest.mark.parametrize("level", ["", "   ", "xyz", "\U0001f99c"])
def test_name_like_no_other_is_told_all_families(level: str) -> None:
    with pytest.raises(NotFound) as caught:
        parse_level(level)
    assert caught.value.hint == f"there are: {', '.join(FAMILIES)}"


@pytest.mark.parametrize("level", ["x" * 10**5, "e88" + "h" * 10**5, "e88h" + "1" * 10**5])
def test_very_long_level_is_not_repeated_in_full(level: str) -> None:
    with pytest.raises(ElmanError) as caught:
        parse_level(level)
    assert len(caught.value.message) < TOO_LONG
    assert len(caught.value.hint or "") < TOO_LONG


def test_level_fixes_what_it_says() -> None:
    config = decode_config("E75PCh7n24", SMALL)
    assert config == decode_config("e75", {**SMALL, "n_heads": 7, "n_state": 24, "post_conv": True})
    assert decode_config("E75h7n24", {**SMALL, "n_state": 24}).encode()["n_state"] == 24


@pytest.mark.parametrize(
    ("level", "setting", "told", "said"),
    [
        ("E75h7n24", "n_state", 32, 24),
        ("e88h4n8", "n_heads", 5, 4),
        ("e75pch4n8", "post_conv", False, True),
    ],
)
def test_setting_that_contradicts_the_level_is_refused(
    level: str, setting: str, told: object, said: object
) -> None:
    with pytest.raises(InvalidConfiguration) as caught:
        decode_config(level, {**SMALL, setting: told})
    assert caught.value.message == f"`{setting}` is {told}, but level `{level}` says {said}"
    assert (caught.value.hint or "").startswith("leave one of them out: e")


@pytest.mark.parametrize(
    ("level", "nearest"),
    [
        ("E75h7n30", "e75h7n32"),
        ("e75h7n28", "e75h7n24"),
        ("e75h7n500", "e75h7n64"),
        ("E75PCh7n31", "e75pch7n32"),
        ("e75h9999n32", "e75h4096n32"),
        ("e88h4n7", "e88h4n8"),
        ("e87b2k4n16", "e87b2k2n16"),
    ],
)
def test_level_with_a_number_that_cannot_be_names_the_nearest_that_can(
    level: str, nearest: str
) -> None:
    with pytest.raises(InvalidConfiguration) as caught:
        decode_config(level, SMALL)
    assert (caught.value.hint or "").endswith(f"the nearest level is `{nearest}`")
    assert decode_config(nearest, SMALL).depth == 2


def test_fault_outside_the_level_is_told_without_another_level() -> None:
    for level, data in {"e75h7n30": {"depth": 2}, "e75h7n32": {**SMALL, "colour": 1}}.items():
        with pytest.raises(InvalidConfiguration) as caught:
            decode_config(level, data)
        assert "nearest level" not in (caught.value.hint or "")
