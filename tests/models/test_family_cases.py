"""Checks that hold for the layers of several families, over the table of their cases."""

import math
import re
from collections.abc import Mapping
from functools import partial

import pytest
import torch

from elmanctl.errors import InvalidConfiguration
from elmanctl.models.config import VARIANTS
from tests.models.cases import (
    EQUATIONS,
    STUDY,
    Settings,
    cases,
    equations,
    make_config,
    make_layer,
    new_layer,
)
from tests.models.layers import (
    assert_autocast_trains,
    assert_every_parameter_is_counted_and_moved,
    build_model,
    count,
    is_reached,
    randomized,
    state_in_bfloat16,
)

CASES = cases(*EQUATIONS)


def each_case(*families: str) -> pytest.MarkDecorator:
    return pytest.mark.parametrize("case", cases(*families))


# One longer than two chunks of the scan.
LENGTHS = {"mingru": 70, "minlstm": 70}


@pytest.mark.parametrize("case", CASES)
def test_layer_computes_its_equations_and_their_gradients(case: str) -> None:
    family, settings = CASES[case]
    config, layer = make_config(family, **settings), make_layer(family, **settings).eval()
    x = torch.randn(2, LENGTHS.get(family, 19), config.dim, dtype=torch.float64)
    x.requires_grad_()
    y, _ = layer(x)
    truth = equations(family, config, layer, x)
    torch.testing.assert_close(y, truth, rtol=1e-9, atol=1e-10)
    weights = torch.randn_like(y)
    names, parameters = zip(*layer.named_parameters(), strict=True)
    found, expected = (
        torch.autograd.grad((out * weights).sum(), (x, *parameters)) for out in (y, truth)
    )
    for name, ours, theirs in zip(("x", *names), found, expected, strict=True):
        assert ours.abs().max() > 0, name
        torch.testing.assert_close(
            ours, theirs, rtol=1e-8, atol=1e-9, msg=partial("{}: {}".format, name)
        )


@each_case("e75", "e87", "e88", "e90", "fla-gdn", "mamba2", "e1", "e0", "e42")
def test_every_parameter_is_counted_and_has_a_gradient(case: str) -> None:
    family, settings = CASES[case]
    assert_every_parameter_is_counted_and_moved(make_config(family, **settings))


@each_case("mom-e88")
def test_count_is_that_of_the_built_model(case: str) -> None:
    config = make_config(CASES[case].family, **CASES[case].settings)
    assert count(config) == sum(p.numel() for p in build_model(config, seed=0).parameters())


@each_case("e75", "e87", "e88", "e90", "mom-e88", "fla-gdn", "mingru", "minlstm")
def test_weights_in_bfloat16_run_and_keep_their_state_in_float32(case: str) -> None:
    state = state_in_bfloat16(new_layer(CASES[case].family, **CASES[case].settings))
    parts = {"memory": state} if isinstance(state, torch.Tensor) else state._asdict()
    tail = parts.pop("conv_tail", None)
    assert tail is None or tail.dtype == torch.bfloat16
    assert parts and {part.dtype for part in parts.values()} == {torch.float32}


@each_case("e88", "e90", "mom-e88", "mingru", "minlstm")
def test_autocast_trains_every_case(case: str) -> None:
    family, settings = CASES[case]
    is_random = {"router_noise": 0.0} if family == "mom-e88" else {}
    assert_autocast_trains(make_config(family, **settings, **is_random))


# Changes of single settings, each from the base of the family.
CHANGES: Mapping[str, tuple[Settings, ...]] = {
    "e88": ({"dim": 16}, {"depth": 3}, {"n_heads": 4}, {"n_state": 8}),
    "e90": (
        *({"dim": 16}, {"depth": 3}, {"n_heads": 4}, {"k_fast": 12}, {"k_slow": 16}),
        *({"expansion": 0.5}, {"use_gate": False}, {"gate_activation": "sigmoid"}),
    ),
    "e75": (
        *({"dim": 16}, {"depth": 3}, {"n_heads": 4}, {"n_state": 16}),
        *({"expansion": 1.5}, {"use_conv": True}, {"post_conv": True}),
    ),
    "e87": (
        *({"dim": 16}, {"depth": 3}, {"n_blocks": 4}, {"top_k": 3}, {"n_state": 16}),
        *({"expansion": 1.5}, {"use_conv": True}),
    ),
    "mom-e88": (
        *({"dim": 16}, {"depth": 3}, {"n_heads": 5}, {"top_k": 3}, {"n_state": 8}, STUDY),
        *({"expansion": 0.5}, {"use_gate": False}, {"gate_activation": "sigmoid"}),
    ),
    "mamba2": ({"d_state": 6}, {"expand": 4}, {"d_conv": 3}),
    "fla-gdn": (
        *({"dim": 16}, {"depth": 3}, {"n_heads": 4}, {"head_dim": 6}),
        *({"expansion": 2.0}, {"use_conv": False}, {"d_conv": 3}),
    ),
    "transformer": (
        *({"dim": 16}, {"depth": 3}, {"n_heads": 4}),
        *({"head_dim": 16}, {"expansion": 4.0}),
    ),
    "mingru": ({"dim": 16}, {"depth": 3}, {"expansion": 1.5}, {"use_conv": True}),
    "minlstm": ({"dim": 16}, {"depth": 3}, {"expansion": 1.5}, {"use_conv": True}),
    "e1": ({"spectral_norm": False}, {"use_conv": True}, {"expansion": 2.0}),
    "e0": ({"spectral_norm": True}, {"use_conv": True}, {"expansion": 2.0}),
    "e42": ({"spectral_radius": 0.5}, {"expansion": 2.0}),
}

WITHOUT_PARAMETERS = {"gate_activation", "spectral_norm", "spectral_radius", "top_k", "variant"}


@pytest.mark.parametrize(
    ("family", "base", "change"),
    [
        *((family, {}, change) for family, changes in CHANGES.items() for change in changes),
        *(("e87", STUDY, change) for change in CHANGES["e87"]),
        ("mamba2", {"dim": 16}, {"head_dim": 16}),
        ("e1", {"use_conv": True}, {"d_conv": 5}),
        ("e0", {"use_conv": True}, {"d_conv": 5}),
    ],
    ids=str,
)
def test_every_setting_reaches_the_model_and_its_count(
    family: str, base: Settings, change: Settings
) -> None:
    before, after = make_config(family, **base), make_config(family, **base, **change)
    assert is_reached(before, after)
    assert (count(before) == count(after)) == (not change.keys() - WITHOUT_PARAMETERS)


@pytest.mark.parametrize(
    ("family", "switch", "channels"),
    [
        *(("e75", "use_conv", 12), ("e75", "post_conv", 3 * 24), ("e87", "use_conv", 12)),
        *(("e88", "use_conv", 36), ("mingru", "use_conv", 12), ("minlstm", "use_conv", 12)),
    ],
)
def test_width_of_the_convolution_is_counted(family: str, switch: str, channels: int) -> None:
    three, four = (count(make_config(family, **{switch: True}, d_conv=n)) for n in (3, 4))
    assert four - three == 2 * channels


# But for a radius, which the study's model ignores.
SAME_IN_THE_STUDY = cases("e75", "mamba2", "gru", "lstm", "e1", "e0", "e42")
del SAME_IN_THE_STUDY["e42, smaller radius"]


@pytest.mark.parametrize("case", [*SAME_IN_THE_STUDY, "e90"])
def test_both_variants_are_the_same_model(case: str) -> None:
    family, settings = CASES[case]
    tokens, outputs = torch.randint(256, (1, 20)), []
    for variant in VARIANTS:
        torch.manual_seed(5)
        config = make_config(family, **settings, variant=variant)
        outputs.append(randomized(build_model(config, seed=0)).eval()(tokens)[0])
    assert torch.equal(*outputs) and outputs[0].any()


# Changes that are refused, what the error says, and how its hint reads if it has one.
REFUSALS: Mapping[str, tuple[tuple[Settings, str, str | None], ...]] = {
    "e75": (
        ({"n_state": 12}, "`n_state` is 12", "^nearest: 8 and 16$"),
        ({"n_state": 4}, "`n_state` is 4", "^nearest: 8$"),
        ({"n_state": 63}, "`n_state` is 63", "^nearest: 56 and 64$"),
        ({"n_state": 72}, "`n_state` is 72", "^nearest: 64$"),
        ({"use_conv": True, "post_conv": True}, "exclude each other", None),
        ({"expansion": 2.0, "post_conv": True}, "no inner projection", None),
        ({"expansion": 0.01}, "of dim 12 gives no inner width", None),
    ),
    "e87": (
        ({"n_blocks": 4, "n_state": 0}, "n_state=0 is not supported", None),
        ({"top_k": 6}, "`top_k` is 6, but there are 5 blocks", None),
        ({"n_state": 13}, "nearest supported: 12 and 16", None),
        ({"expansion": 0.01}, "of dim 12 gives no inner width", None),
    ),
    "e90": (
        ({"expansion": 1.1}, "`expansion` 1.1 of `k_fast` 4 gives 4.4", r"are 1\.0 and 1\.25"),
        (
            {"k_fast": 8, "k_slow": 12, "expansion": 1.125},
            *("of `k_slow` 12 gives 13.5", r"are 1\.0 and 1\.25"),
        ),
        ({"expansion": 0.0}, "gives 0 values", r"are 0\.25"),
        ({**STUDY, "expansion": 0.2}, "gives 0.8 values", r"are 0\.25"),
        ({"k_fast": 5}, "`k_fast`: n_state=5 is not supported", None),
        ({"k_slow": 70}, "`k_slow`: n_state=70 is not supported.*64 and 72", None),
        ({"gate_activation": "tanh"}, "`gate_activation` is 'tanh'", None),
    ),
    "mom-e88": tuple(
        ({**change, **variant}, message, hint)
        for variant in ({}, STUDY)
        for change, message, hint in (
            ({"top_k": 5}, "`top_k` is 5, but there are 4 heads", "from 1 to 4"),
            ({"top_k": 0}, "`top_k` is 0", None),
            ({"n_state": 5}, "n_state=5 is not supported", None),
            ({"expansion": 1.1}, r"17(\.6)? values .* divided evenly", r"1\.0 and 1\.25"),
            ({"expansion": 0.0}, "0 values", r"0\.25"),
            ({"balance_weight": 1.5}, "`balance_weight` is 1.5", None),
            ({"router_noise": -0.1}, "`router_noise` is -0.1", None),
        )
    ),
    "mamba2": (
        (
            {"dim": 30, "expand": 1},
            *("not a multiple of `head_dim` 8", "^nearest `dim`: 24 and 32$"),
        ),
        ({"dim": 3}, "inner width 6", "^nearest `dim`: 4$"),
        ({"head_dim": 48}, "`head_dim` is 48", None),
        ({"d_state": 0}, "`d_state` is 0", None),
        ({"d_state": 1025}, "`d_state` is 1025", None),
        ({"expand": 9}, "`expand` is 9", None),
        ({"expand": 1.5}, "`expand` must be a whole number", None),
        ({"d_conv": 1}, "`d_conv` is 1", None),
    ),
    "transformer": (
        ({"head_dim": 24}, "`head_dim`", None),
        ({"head_dim": 7}, "`head_dim`", None),
        ({"n_heads": -1}, "`n_heads`", None),
        ({"expansion": 0.2}, "`expansion`", None),
        ({"expansion": 17.0}, "`expansion`", None),
        ({"dropout": 0.95}, "`dropout`", None),
        ({"dropout": -0.1}, "`dropout`", None),
    ),
    "gru": (({"expansion": 0.1}, "without units", r"0\.167"),),
    "lstm": (({"expansion": 0.1}, "without units", r"0\.167"),),
    "e1": (({"expansion": 0.1}, "without units", None),),
    "e0": (({"expansion": 0.1}, "without units", None),),
    "e42": (
        ({"expansion": 0.1}, "without units", None),
        *(
            ({"spectral_radius": radius}, "spectral_radius", None)
            for radius in (0.0, -0.1, 1.001, math.nan)
        ),
    ),
}


@pytest.mark.parametrize(
    ("family", "change", "message", "hint"),
    [(family, *refusal) for family, refusals in REFUSALS.items() for refusal in refusals],
    ids=str,
)
def test_invalid_settings_are_refused(
    family: str, change: Settings, message: str, hint: str | None
) -> None:
    with pytest.raises(InvalidConfiguration, match=message) as refused:
        make_config(family, **change)
    assert hint is None or re.search(hint, str(refused.value.hint))
