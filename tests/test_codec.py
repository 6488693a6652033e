"""The codec: records survive it, and what does not fit their type is refused by its path."""

import json
from collections.abc import Mapping
from dataclasses import dataclass
from enum import StrEnum
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from elmanctl.codec import decode, encode, json_field
from elmanctl.errors import InvalidConfiguration, LedgerCorrupt


class Colour(StrEnum):
    RED = "red"
    BLUE = "blue"


@dataclass(frozen=True, slots=True, kw_only=True)
class Leaf:
    text: str
    line: int | None = json_field(default=None, omit=True)


@dataclass(frozen=True, slots=True, kw_only=True)
class Tree:
    name: str
    size: float
    amount: int | float
    flag: bool = json_field(default=True, omit=True)
    colour: Colour
    leaves: tuple[Leaf, ...] = ()
    pair: tuple[str, float]
    sizes: Mapping[str, int]
    plain: Mapping[str, object]
    height: float = json_field(within="plain")
    loss: float | None
    loose: Mapping[str, object] = json_field(default_factory=dict, omit=True, make=dict)


def names() -> st.SearchStrategy[str]:
    return st.text(max_size=5)


def numbers() -> st.SearchStrategy[float]:
    return st.floats(allow_nan=False, allow_infinity=False)


plain = st.dictionaries(names(), st.none() | st.booleans() | st.integers() | numbers() | names())
leaves = st.builds(Leaf, text=names(), line=st.none() | st.integers())
trees = st.builds(
    Tree,
    name=names(),
    size=numbers(),
    amount=st.integers() | numbers(),
    flag=st.booleans(),
    colour=st.sampled_from(Colour),
    leaves=st.lists(leaves).map(tuple),
    pair=st.tuples(names(), numbers()),
    sizes=st.dictionaries(names(), st.integers()),
    plain=plain,
    height=numbers(),
    loss=st.none() | numbers(),
    loose=plain,
)


@given(trees)
def test_records_survive_and_encode_to_the_same_bytes(tree: Tree) -> None:
    text = json.dumps(encode(tree))
    read = decode(Tree, json.loads(text), "tree", LedgerCorrupt)
    assert read == tree
    assert json.dumps(encode(read)) == text


@given(trees)
def test_records_survive_without_the_names_of_their_fields(tree: Tree) -> None:
    short = json.loads(json.dumps(encode({7: tree}, named=False)))
    assert short["7"][0] == tree.name
    assert decode(dict[int, Tree], short, "trees", LedgerCorrupt, named=False) == {7: tree}


@pytest.mark.parametrize(
    ("data", "message"),
    [
        ([["x"]], r"`leaves\[0\]` must be an array of 2, not \['x'\]"),
        ([["x", "y"]], r"`leaves\[0\]\[1\]` must be a whole number, not 'y'"),
    ],
)
def test_values_without_names_are_refused_by_their_place(data: object, message: str) -> None:
    with pytest.raises(LedgerCorrupt, match=message):
        decode(tuple[Leaf, ...], data, "leaves", LedgerCorrupt, named=False)


def test_only_null_is_of_the_type_none() -> None:
    assert decode(dict[str, None], {"a": None}, "names", LedgerCorrupt) == {"a": None}
    with pytest.raises(LedgerCorrupt, match=r"`names\.a` must be null, not 0"):
        decode(dict[str, None], {"a": 0}, "names", LedgerCorrupt)


GOOD: Mapping[str, Any] = {
    "name": "x",
    "size": 1,
    "amount": 2,
    "colour": "red",
    "leaves": [{"text": "a"}, {"text": "b", "line": 3}],
    "pair": ["a", 1.5],
    "sizes": {"log": 4},
    "plain": {"any": [1, {"thing": None}], "height": 0.5},
    "loss": None,
}


def test_keys_stand_in_the_order_of_the_fields_without_what_is_left_out() -> None:
    tree = decode(Tree, GOOD, "tree", LedgerCorrupt)
    assert list(encode(tree)) == list(GOOD)
    assert encode(tree)["leaves"] == GOOD["leaves"]
    assert (tree.size, type(tree.size), type(tree.amount)) == (1.0, float, int)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"name": 3}, "`tree.name` must be a text, not 3"),
        ({"size": True}, "`tree.size` must be a number, not True"),
        ({"size": 10**400}, "`tree.size` is too large: 1000"),
        ({"amount": "1"}, "`tree.amount` must be a whole number or a number, not '1'"),
        ({"flag": 1}, "`tree.flag` must be true or false, not 1"),
        ({"flag": None}, "`tree.flag` must be true or false, not None"),
        ({"colour": "green"}, "`tree.colour` is 'green', not one of red, blue"),
        ({"colour": []}, "`tree.colour` must be a text, not []"),
        ({"leaves": {}}, "`tree.leaves` must be an array, not {}"),
        ({"leaves": [{"text": "a"}, 3]}, "`tree.leaves[1]` must be an object, not 3"),
        ({"leaves": [{"line": 1}]}, "`tree.leaves[0].text` is missing"),
        ({"leaves": [{"text": "a", "line": 1.0}]}, "`tree.leaves[0].line` must be a whole number"),
        ({"leaves": [{"text": "a", "lines": 1}]}, "`tree.leaves[0].lines` is not a known key"),
        ({"pair": ["a"]}, "`tree.pair` must be an array of 2, not ['a']"),
        ({"pair": ["a", None]}, "`tree.pair[1]` must be a number, not None"),
        ({"sizes": {"log": "4"}}, "`tree.sizes.log` must be a whole number, not '4'"),
        ({"plain": []}, "`tree.plain` must be an object, not []"),
        ({"plain": {}}, "`tree.plain.height` is missing"),
        ({"plain": {"height": None}}, "`tree.plain.height` must be a number, not None"),
        ({"height": 0.5}, "`tree.height` is not a known key"),
        ({"owner": 1}, "`tree.owner` is not a known key"),
        ({"name": "y" * 99}, None),
    ],
)
def test_what_does_not_fit_is_refused_by_its_path(
    change: Mapping[str, object], message: str | None
) -> None:
    if message is None:
        decode(Tree, {**GOOD, **change}, "tree", LedgerCorrupt)
        return
    with pytest.raises(LedgerCorrupt) as caught:
        decode(Tree, {**GOOD, **change}, "tree", LedgerCorrupt)
    assert caught.value.message.startswith(message)


@pytest.mark.parametrize("key", sorted(GOOD))
def test_key_that_is_never_left_out_must_be_there(key: str) -> None:
    data = {name: value for name, value in GOOD.items() if name != key}
    with pytest.raises(InvalidConfiguration, match=rf"`spec\.{key}` is missing"):
        decode(Tree, data, "spec", InvalidConfiguration)


def test_what_is_no_object_at_all_is_refused() -> None:
    with pytest.raises(LedgerCorrupt, match=r"`leaf` must be an object, not \[\]"):
        decode(Leaf, [], "leaf", LedgerCorrupt)
