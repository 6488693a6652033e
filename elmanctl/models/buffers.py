"""Buffers of a module at one moment, to be put back: those that a forward pass moves."""

from torch import Tensor, nn


class Buffers:
    """The buffers of a module and of all within it; layers replace theirs, never in place."""

    def __init__(self, module: nn.Module) -> None:
        self._held: list[tuple[nn.Module, str, Tensor]] = [
            (part, name, buffer)
            for part in module.modules()
            for name, buffer in part.named_buffers(recurse=False)
        ]

    def restore(self) -> None:
        """Put these buffers back."""
        for part, name, buffer in self._held:
            setattr(part, name, buffer)
