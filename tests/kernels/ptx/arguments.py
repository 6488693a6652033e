"""The arguments of a launch: arrays laid into global memory, numbers as the bytes of parameters."""

from collections.abc import Collection, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from tests.kernels.ptx.memory import Buffer
from tests.kernels.ptx.parse import Parameter
from tests.kernels.ptx.threads import TYPES

Place = tuple[int, int]  # the number of a buffer, and an offset in it


class Arguments:
    """Arrays and tensors with the buffers that they are views of, each buffer once."""

    def __init__(self, arguments: Sequence[Any], poisoned: Collection[int] = ()) -> None:
        self.arguments = arguments
        self.buffers: list[Buffer] = []
        self._numbers: dict[int, int] = {}
        self.places: dict[int, Place] = {}
        for i, one in enumerate(arguments):
            if not isinstance(one, (int, float)):
                self.places[i] = self._lay(i, one)
        for i in poisoned:
            self._pierce(i)

    def parameters(
        self, declared: Sequence[Parameter], addresses: dict[int, int]
    ) -> dict[str, bytes]:
        """The bytes of each parameter; null for the scratch memory that Triton adds at the end.

        Raises:
            ValueError: there are fewer parameters than arguments, or more numbers than arguments.
        """
        missing = declared[len(self.arguments) :]
        if len(declared) < len(self.arguments) or not all(one.is_pointer for one in missing):
            names = ", ".join(f"{one.name} ({one.type})" for one in declared)
            raise ValueError(f"{len(self.arguments)} arguments for the parameters {names}")
        values = [addresses.get(i, one) for i, one in enumerate(self.arguments)]
        values += [0] * len(missing)
        return {
            one.name: _encode(value, TYPES[one.type])
            for one, value in zip(declared, values, strict=True)
        }

    def _lay(self, i: int, argument: Any) -> Place:
        base, offset = _bytes_of(argument)
        start = base.__array_interface__["data"][0]
        if start not in self._numbers:
            self._numbers[start] = len(self.buffers)
            self.buffers.append(Buffer(f"argument {i}", base))
        return self._numbers[start], offset

    def _pierce(self, i: int) -> None:
        """Mark the elements of an argument as never written."""
        number, offset = self.places[i]
        buffer, (shape, strides, size) = self.buffers[number], _layout(self.arguments[i])
        if buffer.holes is None:
            buffer.holes = np.zeros(len(buffer.bytes), bool)
        np.lib.stride_tricks.as_strided(
            buffer.holes[offset:], (*shape, size), (*strides, 1)
        )[...] = True  # fmt: skip


def _encode(value: float, dtype: np.dtype[Any]) -> bytes:
    if isinstance(value, int) and dtype.kind != "f":
        return (value % (1 << 8 * dtype.itemsize)).to_bytes(dtype.itemsize, "little")
    return np.array([value], dtype).tobytes()


def _is_tensor(argument: Any) -> bool:
    return hasattr(argument, "untyped_storage")


def _layout(argument: Any) -> tuple[tuple[int, ...], tuple[int, ...], int]:
    """Shape, strides in bytes, size of an element in bytes."""
    if _is_tensor(argument):
        size = argument.element_size()
        return tuple(argument.shape), tuple(size * x for x in argument.stride()), size
    return argument.shape, argument.strides, argument.itemsize


def _bytes_of(argument: Any) -> tuple[NDArray[np.uint8], int]:
    """All the bytes of the buffer that an array or a tensor is a view of, and where it begins."""
    if _is_tensor(argument):
        import torch

        if argument.device.type != "cpu":
            raise ValueError("a tensor that is not on the CPU")
        whole = torch.empty(0, dtype=torch.uint8).set_(argument.untyped_storage())
        return whole.numpy(), argument.storage_offset() * argument.element_size()
    owner = argument
    while isinstance(owner.base, np.ndarray):
        owner = owner.base
    if not owner.flags.c_contiguous:
        raise ValueError("an array that is not a view of contiguous memory")
    start = argument.__array_interface__["data"][0] - owner.__array_interface__["data"][0]
    return owner.reshape(-1).view(np.uint8), start
