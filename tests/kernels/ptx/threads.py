"""The threads of a launch: their registers, and how the operands of an instruction are read.

A register is one array with a word of every thread of every program, [programs x threads of one],
and is never changed in place.  A mask says which threads an instruction is for; None is all.
"""

import re
from collections.abc import Callable
from typing import Any

import numpy as np
from numpy.typing import NDArray

from tests.kernels.ptx.faults import Unsupported
from tests.kernels.ptx.memory import SHARED_BASE, GlobalMemory, SharedMemory
from tests.kernels.ptx.parse import Instruction, Kernel, Negated, Operand, Register
from tests.kernels.ptx.races import WARP, Clock

Array = NDArray[Any]
Mask = NDArray[np.bool_] | None
Step = Callable[[Mask], None]
Read = Callable[[], Array]
Write = Callable[[Array, Mask], None]
Builder = Callable[[Instruction, "Threads"], Step]

TYPES = {
    f"{letter}{8 * size}": np.dtype(f"{kind}{size}")
    for letter, kind in (("b", "u"), ("u", "u"), ("s", "i"))
    for size in (1, 2, 4, 8)
} | {"f32": np.dtype("f4"), "f64": np.dtype("f8"), "pred": np.dtype(bool)}

_BOOL = TYPES["pred"]
_WIDTHS = {"pred": np.dtype(bool)} | {f"b{8 * n}": np.dtype(f"u{n}") for n in (1, 2, 4, 8)}
_SYMBOL = re.compile(r"([A-Za-z_$][\w$]*)(?:\s*\+\s*(\d+))?$")


def dtype_of(kind: str) -> np.dtype[Any]:
    """The dtype of a type of PTX, such as s32.

    Raises:
        Unsupported: no register holds it as it is.
    """
    if kind not in TYPES:
        raise Unsupported(f"the type .{kind}")
    return TYPES[kind]


class Modifiers:
    """The words behind the opcode, each taken once; one that is left over is not understood."""

    def __init__(self, instruction: Instruction) -> None:
        self._left = list(instruction.modifiers)

    def take(self, *words: str) -> bool:
        """Whether the next words are these; takes them then."""
        found = tuple(self._left[: len(words)]) == words
        if found:
            del self._left[: len(words)]
        return found

    def one_of(self, *words: str) -> str | None:
        """The next word, if it is one of these."""
        return self._left.pop(0) if self._left and self._left[0] in words else None

    def starting_with(self, *starts: str) -> list[str]:
        """All next words that start so."""
        found = []
        while self._left and self._left[0].startswith(starts):
            found.append(self._left.pop(0))
        return found

    def word(self) -> str:
        """The next word, whatever it is."""
        return self._left.pop(0) if self._left else ""

    def end(self) -> None:
        if self._left:
            raise Unsupported(f"the modifier .{self._left[0]}")


class Threads:
    """All threads of all programs of one launch."""

    def __init__(
        self,
        kernel: Kernel,
        grid: tuple[int, int, int],
        threads: int,
        memory: tuple[GlobalMemory, SharedMemory],
        clock: Clock,
        parameters: dict[str, bytes],
        perturb: Callable[[str, Array], Array] | None = None,
    ) -> None:
        programs = int(np.prod(grid))
        self.count = programs * threads
        self.ids = np.arange(self.count)
        self.lane = self.ids % WARP
        self.threads, self.clock, self.parameters = threads, clock, parameters
        self.global_memory, self.shared_memory = memory
        self.perturb = perturb
        self._symbols = kernel.shared_symbols
        self.special = self._special_registers(grid, threads)
        # All bits set, NaN or a far address, so that a register that was never set is seen.
        self.registers: list[Array] = [
            np.full(self.count, np.iinfo(f"u{_WIDTHS[one.type].itemsize}").max).astype(
                _WIDTHS[one.type]
            )
            for one in kernel.registers
        ]

    def _special_registers(self, grid: tuple[int, int, int], threads: int) -> dict[str, Array]:
        program, thread = self.ids // threads, self.ids % threads
        columns, rows, _ = grid
        values = {
            "%tid.x": thread,
            "%tid.y": 0,
            "%tid.z": 0,
            "%ntid.x": threads,
            "%ntid.y": 1,
            "%ntid.z": 1,
            "%ctaid.x": program % columns,
            "%ctaid.y": program // columns % rows,
            "%ctaid.z": program // columns // rows,
            "%nctaid.x": grid[0],
            "%nctaid.y": grid[1],
            "%nctaid.z": grid[2],
            "%laneid": self.lane,
            "%warpid": thread // WARP,
        }
        return {name: np.full(self.count, x).astype(np.uint32) for name, x in values.items()}

    def reader(self, operand: Operand, dtype: np.dtype[Any]) -> Read:
        """What gives the operand's value, as `dtype`, each time it is called."""
        if isinstance(operand, Register):
            return self._register_reader(operand, dtype)
        if isinstance(operand, Negated):
            read = self._register_reader(operand.register, dtype)
            return lambda: ~read()
        if not isinstance(operand, str):
            raise Unsupported(f"the operand {operand} in this place")
        value = self._named(operand, dtype)
        if value is None:
            value = np.full(self.count, literal(operand, dtype))
        return lambda: value

    def _named(self, name: str, dtype: np.dtype[Any]) -> Array | None:
        if name in self.special:
            return self.special[name].astype(dtype)
        if (match := _SYMBOL.match(name)) and match[1] in self._symbols:
            return np.full(self.count, self.symbol(match[1]) + int(match[2] or 0)).astype(dtype)
        return None

    def symbol(self, name: str) -> int:
        """The address of a variable; the only one that Triton has is its shared memory."""
        if name not in self._symbols:
            raise Unsupported(f"the variable {name}")
        return SHARED_BASE

    def _register_reader(self, register: Register, dtype: np.dtype[Any]) -> Read:
        registers, index, width = self.registers, register.index, _WIDTHS[register.type]
        if dtype == width:
            return lambda: registers[index]
        if (dtype == _BOOL) != (width == _BOOL) or dtype.itemsize > width.itemsize:
            raise Unsupported(f"a register {register.type} read as {dtype}")
        if dtype.itemsize == width.itemsize:
            return lambda: registers[index].view(dtype)
        narrow = np.dtype(f"u{dtype.itemsize}")
        return lambda: registers[index].astype(narrow).view(dtype)

    def writer(self, operand: Operand, dtype: np.dtype[Any]) -> Write:
        """What takes values of `dtype` into the operand; narrow integers are extended."""
        if operand == "_":
            return lambda value, mask: None
        if not isinstance(operand, Register):
            raise Unsupported(f"the destination {operand}")
        registers, index, width = self.registers, operand.index, _WIDTHS[operand.type]
        if (dtype == _BOOL) != (width == _BOOL) or dtype.itemsize > width.itemsize:
            raise Unsupported(f"a register {operand.type} written as {dtype}")
        if dtype.itemsize < width.itemsize and dtype.kind == "f":
            raise Unsupported(f"a register {operand.type} written as {dtype}")
        extended = np.dtype(f"{dtype.kind}{width.itemsize}") if width != _BOOL else width

        def write(value: Array, mask: Mask) -> None:
            bits = value.astype(extended, copy=False).view(width)
            registers[index] = bits if mask is None else np.where(mask, bits, registers[index])

        def write_as_is(value: Array, mask: Mask) -> None:
            bits = value.view(width)
            registers[index] = bits if mask is None else np.where(mask, bits, registers[index])

        return write_as_is if dtype.itemsize == width.itemsize else write

    def active(self, mask: Mask) -> NDArray[np.int64]:
        """The numbers of the threads that a mask is for."""
        return self.ids if mask is None else self.ids[mask]

    def spread(self, values: Array, mask: Mask) -> Array:
        """Values of the active threads as values of all; those of the others mean nothing."""
        if mask is None:
            return values
        spread = np.zeros((self.count, *values.shape[1:]), values.dtype)
        spread[mask] = values
        return spread


def literal(text: str, dtype: np.dtype[Any]) -> Any:
    """A number of the text, such as 7, -1, 0x1F, 0.5, or 0f3F800000 by its bits."""
    if match := re.fullmatch(r"0[fF]([0-9a-fA-F]{8})|0[dD]([0-9a-fA-F]{16})", text):
        bits = np.uint32(int(match[1], 16)) if match[1] else np.uint64(int(match[2], 16))
        if bits.itemsize != dtype.itemsize:
            raise Unsupported(f"the number {text} as {dtype}")
        return bits.view(dtype)
    try:
        number = int(text.removesuffix("U"), 0)
    except ValueError:
        number = None
    if number is None and dtype.kind == "f" and re.fullmatch(r"-?\d+\.\d*(e[+-]?\d+)?", text):
        return dtype.type(float(text))
    if number is None or dtype.kind == "f":
        raise Unsupported(f"the number {text} as {dtype}")
    if dtype == _BOOL:
        return np.bool_(number != 0)
    size_bits = 8 * dtype.itemsize
    return np.array(number % (1 << size_bits), f"u{dtype.itemsize}").view(dtype)[()]


def apply(function: Callable[..., Array], reads: list[Read], write: Write) -> Step:
    """The step that reads, computes and writes."""
    if len(reads) == 1:
        (first,) = reads
        return lambda mask: write(function(first()), mask)
    if len(reads) == 2:
        first, second = reads
        return lambda mask: write(function(first(), second()), mask)
    if len(reads) == 3:
        first, second, third = reads
        return lambda mask: write(function(first(), second(), third()), mask)
    return lambda mask: write(function(*[read() for read in reads]), mask)
