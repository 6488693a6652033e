"""Small E88 layers that differ in one setting."""

from functools import partial
from typing import Any

import torch

from elmanctl.models.e88 import E88Layer
from tests.models import cases

SWITCHES = {"plain": {}, **cases.SWITCHES["e88"]}

make_config = partial(cases.make_config, "e88")
make_layer = partial(cases.make_layer, "e88")


def layer_with_the_weights_of(base: E88Layer, **changes: Any) -> E88Layer:
    """Return another layer with the weights of `base`, as far as both have them."""
    torch.manual_seed(1)
    layer = E88Layer(make_config(**changes), "torch").double()
    given = dict(base.named_parameters())
    with torch.no_grad():
        for name, parameter in layer.named_parameters():
            if name in given:
                shared = tuple(map(slice, map(min, parameter.shape, given[name].shape)))
                parameter[shared] = given[name][shared]
    return layer
