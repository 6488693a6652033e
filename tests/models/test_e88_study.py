from typing import Any

import pytest
import torch

from elmanctl.errors import InvalidConfiguration
from elmanctl.models.e88 import E88Layer
from elmanctl.models.params import count_parameters
from elmanctl.models.registry import decode_config
from tests.models.e88_layers import (
    SWITCHES,
    layer_with_the_weights_of,
    make_config,
    make_layer,
)
from tests.models.layers import build_model

STUDY = {"variant": "study-2026-01"}


def study_pair(**changes: Any) -> tuple[E88Layer, E88Layer]:
    """A documented layer, and that of the study with the same weights."""
    documented = make_layer(**changes)
    return documented, layer_with_the_weights_of(documented, **changes, **STUDY)


@pytest.mark.parametrize("switch", SWITCHES)
def test_study_differs_from_the_documented_layer_in_its_faults_alone(switch: str) -> None:
    documented, study = study_pair(**SWITCHES[switch])
    assert documented.config.layer_parameters() == study.config.layer_parameters()
    x = torch.randn(2, 20, 12, dtype=torch.float64)
    is_equal = torch.equal(documented(x)[0], study(x)[0])
    assert is_equal == (switch != "linear state")


def test_study_squashes_a_state_that_is_told_to_be_linear() -> None:
    x = torch.randn(2, 20, 12, dtype=torch.float64)
    squashed = make_layer()
    told_linear = layer_with_the_weights_of(squashed, linear_state=True, **STUDY)
    assert torch.equal(squashed(x)[0], told_linear(x)[0])
    assert squashed.config.layer_flops(64) == told_linear.config.layer_flops(64)
    truly_linear = make_config(linear_state=True)
    assert truly_linear.layer_flops(64) < squashed.config.layer_flops(64)


def test_gate_behind_the_norm_of_the_study_is_silu_whatever_it_is_told() -> None:
    x = torch.randn(2, 20, 12, dtype=torch.float64)
    silu = make_layer(output_norm=True)
    told_sigmoid = {"output_norm": True, "gate_activation": "sigmoid"}
    study = layer_with_the_weights_of(silu, **told_sigmoid, **STUDY)
    documented = layer_with_the_weights_of(silu, **told_sigmoid)
    assert torch.equal(silu(x)[0], study(x)[0])
    assert not torch.allclose(silu(x)[0], documented(x)[0])
    # Without the norm the study's gate is the one that it is told.
    plain, without_norm = study_pair(gate_activation="sigmoid")
    assert torch.equal(plain(x)[0], without_norm(x)[0])


def test_unused_norm_weight_is_counted_and_moves_nothing() -> None:
    plain, changes = make_layer(), {"unused_norm_weight": True, **STUDY}
    study = layer_with_the_weights_of(plain, **changes)
    assert study.config.layer_parameters() == plain.config.layer_parameters() + 4
    assert sum(p.numel() for p in study.parameters()) == study.config.layer_parameters()
    x = torch.randn(2, 20, 12, dtype=torch.float64)
    assert torch.equal(plain(x)[0], study(x)[0])
    model = build_model(make_config(**changes), seed=0)
    model.loss(torch.randint(256, (2, 9))).backward()
    unread = [name for name, p in model.named_parameters() if p.grad is None]
    assert unread == ["layers.0.unused_norm", "layers.1.unused_norm"]


def test_unused_norm_weight_is_refused_where_it_cannot_be() -> None:
    with pytest.raises(InvalidConfiguration, match="only variant `study-2026-01` may have"):
        make_config(unused_norm_weight=True)
    with pytest.raises(InvalidConfiguration, match="`unused_norm_weight` must be false"):
        make_config(unused_norm_weight=True, output_norm=True, **STUDY)


# Sizes that runs of the study printed: an uneven expansion, and early revisions.
PRINTED = [
    (
        {"dim": 1792, "depth": 12, "n_heads": 117, "n_state": 16, "expansion": 1.0385722851353048},
        208_923_128,
    ),
    (
        {"dim": 2176, "depth": 21, "n_heads": 110, "n_state": 32, "expansion": 1.312399714893155},
        960_545_420,
    ),
    (
        {
            **{"dim": 640, "depth": 32, "n_heads": 100, "n_state": 64},
            **{"use_gate": False, "unused_norm_weight": True},
        },
        526_529_408,
    ),
    (
        {
            **{"dim": 768, "depth": 20, "n_heads": 4, "n_state": 64, "expansion": 2.0},
            **{"use_conv": True, "output_norm": True},
        },
        31_816_096,
    ),
]


@pytest.mark.parametrize(("settings", "count"), PRINTED)
def test_count_of_the_study_is_the_one_that_training_printed(
    settings: dict[str, Any], count: int
) -> None:
    assert count_parameters("e88", {**settings, **STUDY}) == count


def test_uneven_values_of_the_study_are_counted_and_refused_by_every_backend() -> None:
    uneven = {"expansion": 1.1}
    with pytest.raises(InvalidConfiguration, match="cannot be divided evenly among 3 heads"):
        make_config(**uneven)
    config = make_config(**uneven, **STUDY)
    assert (config.value_width, config.head_values) == (13, 4)
    for backend in ("auto", "torch"):
        with pytest.raises(
            InvalidConfiguration, match=r"13 values .* evenly among 3 heads"
        ) as caught:
            build_model(config, seed=0, backend=backend)
        assert caught.value.hint == "the nearest valid expansions are 1.0 and 1.25"
    with pytest.raises(InvalidConfiguration, match="0 values"):
        make_config(expansion=0.0, **STUDY)


@pytest.mark.parametrize("family", ["e88", "mom-e88"])
def test_fraction_of_a_value_is_cut_in_the_study_alone(family: str) -> None:
    sizes = {"dim": 16, "depth": 1, "n_heads": 2, "n_state": 8, "expansion": 1.27}
    sizes |= {"top_k": 1} if family == "mom-e88" else {}
    with pytest.raises(InvalidConfiguration, match=r"20\.32 values .* among 2 heads") as caught:
        decode_config(family, sizes)
    assert caught.value.hint == "the nearest valid expansions are 1.25 and 1.375"
    cut: Any = decode_config(family, sizes, "study-2026-01")
    assert cut.head_values == 10
    for expansion in (1.25, 1.375):
        decode_config(family, {**sizes, "expansion": expansion})


@pytest.mark.parametrize("n_state", [24, 48, 96])
def test_every_expansion_that_is_a_fraction_of_the_keys_is_whole(n_state: int) -> None:
    for values in range(1, 2 * n_state + 1):
        sizes = {"dim": 16, "depth": 1, "n_heads": 98, "n_state": n_state}
        config: Any = decode_config("e88", {**sizes, "expansion": values / n_state})
        assert config.head_values == values


def test_tied_values_have_no_convolution_of_their_own() -> None:
    for variant in ({}, STUDY):
        tied, convolved = (
            make_config(tie_kv=True, use_conv=use_conv, **variant) for use_conv in (False, True)
        )
        assert convolved.layer_parameters() - tied.layer_parameters() == 4 * (12 + 12)
