"""What a family says of its backends' sizes is what its checks accept."""

import re
from dataclasses import fields
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from elmanctl.errors import InvalidConfiguration
from elmanctl.models.config import format_sizes
from elmanctl.models.registry import FAMILIES, decode_config
from tests.models.samples import SMALL

SIZED = ("n_state", "k_fast", "k_slow", "head_dim")
IMPLEMENTATIONS = [(name, b) for name, family in FAMILIES.items() for b in family.backends]


def spelled_out(words: str) -> set[int]:
    """Return every number that a list of sizes stands for."""
    pattern = r"(\d+) to (\d+) in steps of (\d+)"
    ranges = re.findall(pattern, words)
    single = re.findall(r"\d+", re.sub(pattern, "", words))
    return {int(n) for n in single}.union(
        *(range(int(low), int(high) + 1, int(step)) for low, high, step in ranges)
    )


def is_computed(family: str, backend: str, **changes: Any) -> bool:
    settings = {name: value for name, value in SMALL[family].items() if name != "lr"}
    try:
        decode_config(family, {**settings, **changes}).check_backend(backend)
    except InvalidConfiguration:
        return False
    return True


@given(st.sets(st.integers(1, 60)))
def test_sizes_in_words_are_all_sizes_and_no_others(sizes: set[int]) -> None:
    assert spelled_out(format_sizes(sizes)) == sizes


@pytest.mark.parametrize(
    ("sizes", "words"),
    [
        ((), ""),
        ((128,), "128"),
        ((8, 16), "8, 16"),
        ((4, 8, 12, 20), "4 to 12 in steps of 4, 20"),
        ((8, 16, 32, 64), "8, 16, 32, 64"),
        ((4, 8, 10, 16), "4, 8, 10, 16"),
    ],
)
def test_equal_steps_are_drawn_together(sizes: tuple[int, ...], words: str) -> None:
    assert format_sizes(sizes) == words


@pytest.mark.parametrize(("family", "backend"), IMPLEMENTATIONS)
def test_sizes_that_are_told_are_those_that_are_computed(family: str, backend: str) -> None:
    config_class = FAMILIES[family].load_config()
    limits, _, _ = config_class.backend_limits(backend).partition("; ")
    named = [field.name for field in fields(config_class) if f"`{field.name}`" in limits]
    sized = set(named) & set(SIZED)
    for name in sized:
        # A width that every size divides; of E90's states one is moved, beside a size that all do.
        beside = {"dim": 64 * 3 * 5, **dict.fromkeys(sized, 16)}
        computed = {
            size for size in range(1, 140) if is_computed(family, backend, **{**beside, name: size})
        }
        assert computed == spelled_out(limits)
    assert bool(limits) == bool(named) or (family, backend) == ("fla-gdn", "fla")


@pytest.mark.parametrize(
    ("family", "sizes"),
    [
        ("e88", {"n_state": 16}),
        ("e90", {"k_fast": 16, "k_slow": 16}),
        ("mom-e88", {"n_state": 16}),
    ],
)
def test_values_that_are_told_are_those_that_are_computed(
    family: str, sizes: dict[str, int]
) -> None:
    limits = FAMILIES[family].load_config().backend_limits("triton")
    _, _, values = limits.partition("; ")
    computed = {
        number
        for number in range(1, 140)
        if is_computed(family, "triton", **sizes, expansion=number / 16)
    }
    assert computed == spelled_out(values)
    assert is_computed(family, "torch", **sizes, expansion=17 / 16)


@pytest.mark.parametrize("family", ["gru", "lstm"])
def test_cells_that_cudnn_is_said_to_compute_are_those_it_does(family: str) -> None:
    limits = FAMILIES[family].load_config().backend_limits("cudnn")
    name = limits.removesuffix(" true").strip("`")
    assert is_computed(family, "cudnn", **{name: True})
    assert not is_computed(family, "cudnn", **{name: False})
    assert is_computed(family, "torch", **{name: False})


def test_sizes_that_fla_is_said_to_compute_are_those_it_does() -> None:
    limits = FAMILIES["fla-gdn"].load_config().backend_limits("fla")
    assert limits == "even keys and values per head, at most 256 keys"
    assert is_computed("fla-gdn", "fla", head_dim=256)
    assert not is_computed("fla-gdn", "fla", head_dim=258)
    assert not is_computed("fla-gdn", "fla", head_dim=15)
    assert is_computed("fla-gdn", "torch", head_dim=258)
