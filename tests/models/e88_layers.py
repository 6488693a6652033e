"""Small E88 layers, and one setting after the other that makes them different."""

from typing import Any

import torch

from elmanctl.models.configs.e88 import E88Config
from elmanctl.models.e88 import E88Layer
from tests.models.layers import randomized

BASE: dict[str, Any] = {"dim": 12, "depth": 2, "n_heads": 3, "n_state": 4}

SWITCHES: dict[str, dict[str, Any]] = {
    "plain": {},
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
}


def make_config(**changes: Any) -> E88Config:
    return E88Config.decode({**BASE, **changes})


def make_layer(**changes: Any) -> Any:
    return randomized(E88Layer(make_config(**changes), "torch"))


def layer_with_the_weights_of(base: E88Layer, **changes: Any) -> E88Layer:
    """Another layer, whose weights are those of `base` as far as both have them."""
    torch.manual_seed(1)
    layer = E88Layer(make_config(**changes), "torch").double()
    given = dict(base.named_parameters())
    with torch.no_grad():
        for name, parameter in layer.named_parameters():
            if name in given:
                shared = tuple(map(slice, map(min, parameter.shape, given[name].shape)))
                parameter[shared] = given[name][shared]
    return layer
