"""Table of small configurations of every family, and the equations that their layers compute."""

from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import torch
from torch import Tensor

from elmanctl.models.config import STUDY as STUDY_VARIANT
from elmanctl.models.elman import StateMatrix
from elmanctl.models.registry import FAMILIES
from tests.models import matrix_equations, vector_equations
from tests.models.layers import randomized

Settings = dict[str, Any]

STUDY: Settings = {"variant": STUDY_VARIANT}

EQUATIONS: Mapping[str, Callable[[Any, Mapping[str, Tensor], Tensor], Tensor]] = {
    "e88": matrix_equations.e88,
    "e90": matrix_equations.e90,
    "e75": matrix_equations.e75,
    "e87": matrix_equations.e87,
    "mom-e88": matrix_equations.mom_e88,
    "mamba2": matrix_equations.mamba2,
    "fla-gdn": matrix_equations.gated_delta_net,
    "mingru": vector_equations.min_rnn,
    "minlstm": vector_equations.min_rnn,
    "gru": vector_equations.gru_lstm,
    "lstm": vector_equations.gru_lstm,
    "e1": vector_equations.elman,
    "e0": vector_equations.elman,
    "e42": vector_equations.elman,
}

BASE: dict[str, Settings] = {
    "e88": {"dim": 12, "depth": 2, "n_heads": 3, "n_state": 4},
    "e90": {"dim": 12, "depth": 2, "n_heads": 3, "k_fast": 4, "k_slow": 8},
    "e75": {"dim": 12, "depth": 2, "n_heads": 3, "n_state": 8},
    "e87": {"dim": 12, "depth": 2, "n_blocks": 5, "top_k": 2, "n_state": 8},
    "mom-e88": {"dim": 12, "depth": 2, "n_heads": 4, "top_k": 2, "n_state": 4},
    "mamba2": {"dim": 12, "depth": 2, "d_state": 5, "head_dim": 8},
    "fla-gdn": {"dim": 12, "depth": 2, "n_heads": 3, "head_dim": 4, "expansion": 1.5},
    "transformer": {"dim": 12, "depth": 2, "n_heads": 3, "head_dim": 8},
    "mingru": {"dim": 12, "depth": 2},
    "minlstm": {"dim": 12, "depth": 2},
    "gru": {"dim": 6, "depth": 2},
    "lstm": {"dim": 6, "depth": 2},
    "e1": {"dim": 8, "depth": 2},
    "e0": {"dim": 8, "depth": 2},
    "e42": {"dim": 8, "depth": 2},
}

_MIN_RNN: dict[str, Settings] = {
    "wide": {"expansion": 1.5},
    "narrow": {"expansion": 0.3},
    "convolution": {"use_conv": True},
    "wide with a short convolution": {"expansion": 2.0, "use_conv": True, "d_conv": 2},
}

SWITCHES: dict[str, dict[str, Settings]] = {
    "e88": {
        "wide values": {"expansion": 1.5},
        "no gate": {"use_gate": False},
        "sigmoid gate": {"gate_activation": "sigmoid"},
        "simple decay": {"decay": "simple"},
        "no decay": {"decay": "none"},
        "constant decay": {"decay": "constant"},
        "linear state": {"linear_state": True},
        "write gate": {"write_gate": True},
        "convolution": {"use_conv": True},
        "short convolution": {"use_conv": True, "d_conv": 2},
        "output norm": {"output_norm": True},
        "value residual": {"value_residual": True},
        "tied keys and values": {"tie_kv": True},
        "heads weighted": {"head_mix": "weighted_sum"},
        "heads weighted by the input": {"head_mix": "input_weighted"},
        "heads added": {"head_mix": "sum"},
        "heads with a matrix each": {"head_mix": "per_head"},
        "tied with convolution": {"tie_kv": True, "use_conv": True, "value_residual": True},
        "all additions": {
            "expansion": 1.5,
            "write_gate": True,
            "use_conv": True,
            "output_norm": True,
            "value_residual": True,
            "head_mix": "input_weighted",
        },
    },
    "e90": {
        "wide values": {"expansion": 1.5},
        "few values": {"expansion": 0.25},
        "fast state the wider": {"k_fast": 12},
        "equal states": {"k_fast": 8},
        "no gate": {"use_gate": False},
        "sigmoid gate": {"gate_activation": "sigmoid"},
        "study, values truncated": {**STUDY, "expansion": 1.2},
    },
    "e75": {
        "narrow": {"expansion": 0.5},
        "wide": {"expansion": 1.3},
        "convolution": {"use_conv": True},
        "short convolution": {"use_conv": True, "d_conv": 2},
        "post-convolution": {"post_conv": True},
        "short post-convolution": {"post_conv": True, "d_conv": 3},
    },
    "e87": {
        "wide": {"expansion": 1.3},
        "convolution": {"use_conv": True},
        "short convolution": {"use_conv": True, "d_conv": 2},
        "one selected": {"top_k": 1},
        "all selected": {"top_k": 5},
    },
    "mom-e88": {
        "one selected": {"top_k": 1},
        "all selected": {"top_k": 4},
        "wide values": {"expansion": 1.5},
        "no gate": {"use_gate": False},
        "sigmoid gate": {"gate_activation": "sigmoid"},
    },
    "mamba2": {
        "narrow": {"dim": 16, "expand": 1},
        "wide": {"expand": 4, "head_dim": 16},
        "one head": {"dim": 8, "head_dim": 16},
        "short convolution": {"d_conv": 2},
        "long convolution": {"d_conv": 7},
        "one key": {"d_state": 1},
    },
    "fla-gdn": {
        "other width than dim": {"n_heads": 2, "head_dim": 5, "expansion": 2.0},
        "one head": {"n_heads": 1, "head_dim": 0},
        "narrow values": {"expansion": 0.25},
        "no convolution": {"use_conv": False},
        "long convolution": {"d_conv": 6},
        "study": {**STUDY, "expansion": 2.0},
    },
    "mingru": _MIN_RNN,
    "minlstm": _MIN_RNN,
    "gru": {
        "wide": {"expansion": 1.5},
        "reset before": {"reset_after": False},
        "wide, reset before": {"reset_after": False, "expansion": 1.5},
    },
    "lstm": {
        "wide": {"expansion": 1.5},
        "one bias": {"two_biases": False},
        "wide, one bias": {"two_biases": False, "expansion": 1.5},
    },
    "e1": {
        "free": {"spectral_norm": False},
        "wide": {"expansion": 1.5},
        "convolution": {"use_conv": True},
        "short convolution": {"use_conv": True, "d_conv": 2},
    },
    "e0": {
        "normalized": {"spectral_norm": True},
        "wide": {"expansion": 1.5},
        "convolution": {"use_conv": True, "d_conv": 3},
    },
    "e42": {"wide": {"expansion": 1.5}, "smaller radius": {"spectral_radius": 0.7}},
}

# Families whose study layer computes something else with the same settings.
_WITH_STUDY_EQUATIONS = ("e87", "mom-e88")


class Case(NamedTuple):
    """A family and the settings that differ from its base."""

    family: str
    settings: Settings


def cases(*families: str) -> dict[str, Case]:
    """Return the cases of some families by name, such as `e1` or `e1, wide`."""
    found = {}
    for family in families:
        found[family] = Case(family, {})
        for switch, settings in SWITCHES[family].items():
            found[f"{family}, {switch}"] = Case(family, settings)
        if family in _WITH_STUDY_EQUATIONS:
            for name, case in list(found.items()):
                if case.family == family:
                    found[f"{name}, study"] = Case(family, {**case.settings, **STUDY})
    return found


def make_config(family: str, **changes: Any) -> Any:
    """Return the base configuration of a family with some changes."""
    return FAMILIES[family].load_config().decode({**BASE[family], **changes})


def new_layer(family: str, backend: str = "torch", **changes: Any) -> Any:
    """Return a layer as it is initialized."""
    return FAMILIES[family].load_layer()(make_config(family, **changes), backend)


def make_layer(family: str, **changes: Any) -> Any:
    """Return a layer in float64 with random parameters, spectral norms being exact."""
    layer = randomized(new_layer(family, **changes))
    for module in layer.modules():
        if isinstance(module, StateMatrix) and module.norm is not None:
            module.iterate(5000)
    return layer


def equations(family: str, config: Any, layer: Any, x: Tensor) -> Tensor:
    """Compute the output [B, T, dim] of a layer from its equations, one sequence at a time."""
    weights = dict(layer.named_parameters())
    return torch.stack([EQUATIONS[family](config, weights, sequence) for sequence in x])
