"""Random generators of a training: their states at one moment, to be set again."""

from collections.abc import Mapping

import torch
from torch import Tensor


class Generators:
    """The states of torch's generators, of the CPU and of the device if that is another.

    Without `states` they are those of now.
    """

    def __init__(self, device: torch.device, states: Mapping[str, Tensor] | None = None) -> None:
        self._device = device
        if states is None:
            states = {"cpu": torch.get_rng_state()}
            if device.type == "cuda":
                states["cuda"] = torch.cuda.get_rng_state(device)
        self.states: Mapping[str, Tensor] = states

    def restore(self) -> None:
        """Set the generators to these states; one of another device is left as it is."""
        torch.set_rng_state(self.states["cpu"])
        if self._device.type == "cuda" and "cuda" in self.states:
            torch.cuda.set_rng_state(self.states["cuda"], self._device)
