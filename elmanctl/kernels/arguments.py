"""The check that every operation makes of its tensors before it computes."""

from collections.abc import Iterable
from typing import TYPE_CHECKING

from elmanctl.errors import InvalidConfiguration

# As everywhere in `kernels`, torch is imported when something is computed.
if TYPE_CHECKING:
    import torch
    from torch import Tensor

    Demand = tuple[str, Tensor | None, tuple[int, ...], torch.dtype | None]


def check_tensors(name: str, first: "Tensor", demands: "Iterable[Demand]") -> None:
    """Raise InvalidConfiguration for a tensor that does not fit the one called `name`, `first`.

    A demand is the name of a tensor, the tensor itself, and the shape and the dtype it must have;
    None for the dtype stands for that of `first`.  All tensors must be on the device of `first`.
    A tensor that is None was left out by the caller, and nothing is demanded of it.
    """
    for other, tensor, shape, dtype in demands:
        if tensor is None:
            continue
        if tuple(tensor.shape) != shape:
            raise InvalidConfiguration(
                f"{other} has shape {list(tensor.shape)}, expected {list(shape)}"
            )
        if tensor.dtype != (dtype or first.dtype):
            wanted = f"expected {dtype}" if dtype else f"{name} is {first.dtype}"
            raise InvalidConfiguration(f"{other} is {tensor.dtype}, {wanted}")
        if tensor.device != first.device:
            raise InvalidConfiguration(
                f"{other} is on {tensor.device}, {name} is on {first.device}"
            )
