"""Mappings that share keys: they read as the dictionaries they were made of, in less memory."""

import copy
import json
import pickle
import tracemalloc

import pytest
from hypothesis import given
from hypothesis import strategies as st

from elmanctl.ledger.shared_keys import SharedKeys

OBJECTS = st.dictionaries(st.text(max_size=4), st.none() | st.integers() | st.text(max_size=4))


@given(OBJECTS, OBJECTS)
def test_reads_as_the_dictionary_it_was_made_of(
    one: dict[str, object], two: dict[str, object]
) -> None:
    shared = SharedKeys(one)
    assert list(shared.items()) == list(one.items())
    assert shared == one and one == shared
    assert (shared == SharedKeys(two)) == (one == two)
    assert json.dumps(dict(shared)) == json.dumps(one)
    assert copy.deepcopy(shared) == pickle.loads(pickle.dumps(shared)) == one


def test_key_that_is_missing_is_a_key_error() -> None:
    shared = SharedKeys({"dim": 64})
    with pytest.raises(KeyError):
        shared["depth"]
    assert shared.get("depth") is None and "depth" not in shared


def test_a_thousand_with_the_same_keys_take_half_the_memory() -> None:
    texts = [json.dumps({f"key_{key}": f"value of {key}" for key in range(21)})] * 1000

    def held_bytes(make: type) -> int:
        tracemalloc.start()
        kept = [make(json.loads(text)) for text in texts]
        held = tracemalloc.get_traced_memory()[0]
        tracemalloc.stop()
        assert len(kept) == len(texts)
        return held

    assert held_bytes(SharedKeys) < held_bytes(dict) / 2
