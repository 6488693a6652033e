"""Shape, dtype and device checks shared by all operations."""

from collections.abc import Iterable
from typing import TYPE_CHECKING

from elmanctl.errors import InvalidConfiguration

# `kernels` imports torch lazily, only when an operation runs.
if TYPE_CHECKING:
    import torch
    from torch import Tensor

    Requirement = tuple[str, Tensor | None, tuple[int, ...], torch.dtype | None]


def check_tensors(name: str, reference: "Tensor", requirements: "Iterable[Requirement]") -> None:
    """Check tensors against the argument `name`, `reference`; raise InvalidConfiguration.

    A requirement is the name of a tensor, the tensor, and its expected shape and dtype; a dtype of
    None means that of `reference`.  All tensors must be on the device of `reference`.  Optional
    tensors that are None are skipped.
    """
    for other, tensor, shape, dtype in requirements:
        if tensor is None:
            continue
        if tuple(tensor.shape) != shape:
            raise InvalidConfiguration(
                f"{other} has shape {list(tensor.shape)}, expected {list(shape)}"
            )
        if tensor.dtype != (dtype or reference.dtype):
            expected = f"expected {dtype}" if dtype else f"{name} is {reference.dtype}"
            raise InvalidConfiguration(f"{other} is {tensor.dtype}, {expected}")
        if tensor.device != reference.device:
            raise InvalidConfiguration(
                f"{other} is on {tensor.device}, {name} is on {reference.device}"
            )
