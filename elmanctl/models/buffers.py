"""Buffers of modules at one moment, to be put back: those that a forward pass moves."""

from collections.abc import Iterable

from torch import Tensor, nn


class Buffers:
    """The buffers of these modules, without those within them; layers replace theirs."""

    def __init__(self, modules: Iterable[nn.Module]) -> None:
        self._held: list[tuple[nn.Module, str, Tensor]] = [
            (module, name, buffer)
            for module in modules
            for name, buffer in module._buffers.items()
            if buffer is not None
        ]

    def restore(self) -> None:
        """Put these buffers back."""
        for module, name, buffer in self._held:
            setattr(module, name, buffer)


def holders(module: nn.Module) -> list[nn.Module]:
    """Return those of a module and all within it that have buffers."""
    return [part for part in module.modules() if part._buffers]
