"""The estimate of activations against what autograd saves on the torch path."""

from typing import Any

import pytest

from elmanctl.models.config import STUDY, FamilyConfig
from elmanctl.models.memory import activation_bytes, recomputed_bytes, training_memory_bytes
from elmanctl.models.registry import FAMILIES, decode_config
from tests.models.layers import build_model, saved_bytes
from tests.models.samples import small_config

BATCH, LENGTH = 4, 128

CONFIGURATIONS: dict[str, list[dict[str, Any]]] = {
    "e88": [
        {"n_heads": 8, "n_state": 16},
        {"n_heads": 4, "n_state": 32, "use_conv": True},
        {"n_heads": 4, "n_state": 64, "output_norm": True, "value_residual": True},
        {"n_heads": 8, "n_state": 32, "expansion": 2.0, "head_mix": "input_weighted"},
        {"n_heads": 4, "n_state": 32, "use_gate": False, "tie_kv": True, "decay": "constant"},
    ],
    "e90": [
        {"n_heads": 8, "k_fast": 8, "k_slow": 16},
        {"n_heads": 4, "k_fast": 16, "k_slow": 48, "use_gate": False},
    ],
    "e75": [
        {"n_heads": 4, "n_state": 32},
        {"n_heads": 8, "n_state": 16, "expansion": 2.0, "use_conv": True},
        {"n_heads": 4, "n_state": 64, "post_conv": True},
    ],
    "e87": [
        {"n_blocks": 4, "top_k": 2, "n_state": 32},
        {"n_blocks": 8, "top_k": 2, "n_state": 24, "use_conv": True},
        {"n_blocks": 8, "top_k": 2, "n_state": 32, "variant": STUDY},
    ],
    "mom-e88": [
        {"n_heads": 8, "top_k": 2, "n_state": 16},
        {"n_heads": 16, "top_k": 4, "n_state": 32, "use_gate": False},
        {"n_heads": 16, "top_k": 4, "n_state": 32, "variant": STUDY},
    ],
    "mamba2": [{}, {"d_state": 128, "head_dim": 32}, {"d_state": 16, "head_dim": 16, "expand": 1}],
    "fla-gdn": [
        {},
        {"n_heads": 8},
        {"n_heads": 2, "expansion": 1.0, "use_conv": False},
        {"variant": STUDY},
    ],
    "transformer": [
        {},
        {"n_heads": 4, "dropout": 0.1},
        {"n_heads": 8, "head_dim": 32, "expansion": 4.0},
        {"variant": STUDY},
    ],
    "mingru": [{}, {"expansion": 2.0, "use_conv": True}],
    "minlstm": [{}, {"expansion": 2.0, "use_conv": True}],
    "gru": [{}, {"expansion": 2.0}, {"reset_after": False}],
    "lstm": [{}, {"expansion": 2.0}, {"two_biases": False}],
    "e1": [{}, {"expansion": 2.0, "use_conv": True}],
    "e0": [{}, {"expansion": 2.0, "use_conv": True}],
    "e42": [{}, {"expansion": 2.0}],
}

CASES = [
    pytest.param(family, {"dim": dim, **settings}, id=f"{family}-{number}-dim{dim}")
    for family, many in CONFIGURATIONS.items()
    for number, settings in enumerate(many)
    # One size more for the first of each shows how the estimate grows with the width.
    for dim in ((128, 256) if number == 0 else (128,))
]


def test_every_family_has_configurations_to_compare() -> None:
    assert set(CONFIGURATIONS) == set(FAMILIES)


@pytest.mark.parametrize(("family", "settings"), CASES)
def test_estimate_is_within_a_factor_of_two_of_what_autograd_saves(
    family: str, settings: dict[str, Any]
) -> None:
    one, two = (decode_config(family, {**settings, "depth": depth}) for depth in (1, 2))
    saved_by_one, saved_by_two = (
        saved_bytes(build_model(config, seed=0, backend="torch"), BATCH, LENGTH)
        for config in (one, two)
    )
    of_the_whole = activation_bytes(two, LENGTH) / saved_by_two
    # The difference is a layer alone, without the head and the loss.
    estimated = activation_bytes(two, LENGTH) - activation_bytes(one, LENGTH)
    of_a_layer = estimated / (saved_by_two - saved_by_one)
    assert 0.5 < of_a_layer < 2
    assert 0.5 < of_the_whole < 2


@pytest.mark.parametrize("family", FAMILIES)
def test_estimate_of_recomputation_is_the_stream_the_head_and_one_layer(family: str) -> None:
    settings = {"dim": 128, **CONFIGURATIONS[family][0], "depth": 6}
    config = decode_config(family, settings)
    model = build_model(config, seed=0, backend="torch")
    model.is_recomputing = True
    kept = saved_bytes(model, BATCH, LENGTH)
    one, two = (
        saved_bytes(
            build_model(decode_config(family, {**settings, "depth": n}), seed=0, backend="torch"),
            BATCH,
            LENGTH,
        )
        for n in (1, 2)
    )
    assert 0.5 < recomputed_bytes(config, LENGTH) / (kept + two - one) < 2
    assert recomputed_bytes(config, LENGTH) < activation_bytes(config, LENGTH)


def test_estimate_is_parameters_and_tokens() -> None:
    config = decode_config("lstm", {"dim": 64, "depth": 3})
    parameters = 256 * 64 + 3 * config.layer_parameters() + config.norm_parameters()
    a_token = activation_bytes(config, 32)
    found = training_memory_bytes(config, micro_batch=5, seq_len=32, precision="fp32")
    assert found == 16 * parameters + 5 * 32 * a_token
    # Weights are copied for autocast; states stay in float32.
    half = training_memory_bytes(config, micro_batch=5, seq_len=32, precision="bf16")
    assert half == found + 2 * parameters


@pytest.mark.parametrize("family", FAMILIES)
def test_activations_are_a_whole_number_and_grow_with_depth(family: str) -> None:
    settings = {"dim": 128, **CONFIGURATIONS[family][0]}
    thin, deep = (decode_config(family, {**settings, "depth": depth}) for depth in (2, 5))
    assert isinstance(thin.layer_activations(512), int)
    each = 4 * (thin.layer_activations(512) + 128)
    assert activation_bytes(deep, 512) - activation_bytes(thin, 512) == 3 * each


def test_family_that_says_nothing_of_its_memory_is_estimated_by_its_matrices() -> None:
    config = small_config("transformer")
    told = FamilyConfig.layer_activations(config, 512)
    assert told == 2 * config.dim + 2 * config.layer_parameters() // config.dim
