"""Instructions on integers and bits: wrap-around arithmetic, shifts, fields, permutations."""

from collections.abc import Callable

import numpy as np

from tests.kernels.ptx.faults import PtxFault, Unsupported
from tests.kernels.ptx.parse import Instruction
from tests.kernels.ptx.rounding import Array
from tests.kernels.ptx.threads import TYPES, Mask, Modifiers, Step, Threads, apply, dtype_of

Function = Callable[..., Array]

_WIDER = {"u16": "u32", "s16": "s32", "u32": "u64", "s32": "s64"}


def _low(a: Array, b: Array) -> Array:
    return a * b


def _high(a: Array, b: Array) -> Array:
    """The upper half of the product of two integers."""
    if a.itemsize == 8:
        products = [int(x) * int(y) >> 64 for x, y in zip(a, b, strict=True)]
        return np.array(products, a.dtype)
    wide = np.dtype(f"{a.dtype.kind}{2 * a.itemsize}")
    return (np.multiply(a, b, dtype=wide) >> wide.type(8 * a.itemsize)).astype(a.dtype)


def multiply(instruction: Instruction, threads: Threads) -> Step:
    """mul and mad, of which the lower half, the upper half or both are kept."""
    modifiers = Modifiers(instruction)
    part = modifiers.one_of("lo", "hi", "wide")
    kind = modifiers.word()
    modifiers.end()
    if part is None or (part == "wide" and kind not in _WIDER):
        raise Unsupported("a product of this kind")
    dtype = dtype_of(kind)
    wide = TYPES[_WIDER[kind]] if part == "wide" else dtype
    product: Function = {
        "lo": _low,
        "hi": _high,
        "wide": lambda a, b: np.multiply(a, b, dtype=wide),
    }[part]
    result, a, b, *addend = instruction.operands
    reads = [threads.reader(a, dtype), threads.reader(b, dtype)]
    if instruction.opcode == "mul":
        return apply(product, reads, threads.writer(result, wide))
    reads.append(threads.reader(addend[0], wide))
    return apply(lambda a, b, c: product(a, b) + c, reads, threads.writer(result, wide))


def divide(instruction: Instruction, threads: Threads) -> Step:
    """div and rem, towards zero.

    Raises, in the step:
        PtxFault: a thread divides by zero, of which PTX leaves the result open.
    """
    modifiers = Modifiers(instruction)
    dtype = dtype_of(modifiers.word())
    modifiers.end()
    result, a, b = instruction.operands
    dividend, divisor = threads.reader(a, dtype), threads.reader(b, dtype)
    write = threads.writer(result, dtype)
    wants_rest = instruction.opcode == "rem"

    def step(mask: Mask) -> None:
        x, y = dividend(), divisor()
        if not (y if mask is None else y[mask]).all():
            raise PtxFault("a division by zero")
        rest = np.fmod(x, np.where(y == 0, 1, y).astype(dtype))
        write(rest if wants_rest else (x - rest) // np.where(y == 0, 1, y).astype(dtype), mask)

    return step


def _shift_left(x: Array, by: Array) -> Array:
    bits = 8 * x.itemsize
    shifted = x << np.minimum(by, bits - 1).astype(x.dtype)
    return np.where(by < bits, shifted, x.dtype.type(0))


def _shift_right(x: Array, by: Array) -> Array:
    bits = 8 * x.itemsize
    shifted = x >> np.minimum(by, bits - 1).astype(x.dtype)
    return shifted if x.dtype.kind == "i" else np.where(by < bits, shifted, x.dtype.type(0))


def shift(instruction: Instruction, threads: Threads) -> Step:
    modifiers = Modifiers(instruction)
    dtype = dtype_of(modifiers.word())
    modifiers.end()
    result, x, by = instruction.operands
    function = _shift_left if instruction.opcode == "shl" else _shift_right
    reads = [threads.reader(x, dtype), threads.reader(by, TYPES["u32"])]
    return apply(function, reads, threads.writer(result, dtype))


def funnel(instruction: Instruction, threads: Threads) -> Step:
    """shf: a part of 32 bits of the two words `{b, a}`."""
    modifiers = Modifiers(instruction)
    direction, mode = modifiers.one_of("l", "r"), modifiers.one_of("wrap", "clamp")
    if not modifiers.take("b32") or direction is None or mode is None:
        raise Unsupported("shf in this form")
    modifiers.end()

    def function(low: Array, high: Array, by: Array) -> Array:
        wide = high.astype(np.uint64) << np.uint64(32) | low
        by = by & np.uint32(31) if mode == "wrap" else np.minimum(by, 32).astype(np.uint32)
        # By 64 at most: 32 of the shift to the left, and the 32 that bring the upper word down.
        right = by if direction == "r" else 32 - by
        return (wide >> right.astype(np.uint64)).astype(np.uint32)

    return _on_words(function, instruction, threads)


def _on_words(function: Function, instruction: Instruction, threads: Threads) -> Step:
    result, *sources = instruction.operands
    reads = [threads.reader(one, TYPES["b32"]) for one in sources]
    return apply(function, reads, threads.writer(result, TYPES["b32"]))


def _sum_of_minterms(table: int, a: Array, b: Array, c: Array) -> Array:
    """The bits for which the truth table of three inputs has a one."""
    result = np.zeros_like(a)
    for row in range(8):
        if table >> row & 1:
            term = (a if row & 4 else ~a) & (b if row & 2 else ~b) & (c if row & 1 else ~c)
            result |= term
    return result


def lookup(instruction: Instruction, threads: Threads) -> Step:
    """lop3.b32 with its truth table as the last operand."""
    modifiers = Modifiers(instruction)
    if not modifiers.take("b32") or not isinstance(instruction.operands[-1], str):
        raise Unsupported("lop3 in this form")
    modifiers.end()
    table = int(instruction.operands[-1], 0)
    result, *sources = instruction.operands[:-1]
    reads = [threads.reader(one, TYPES["b32"]) for one in sources]
    write = threads.writer(result, TYPES["b32"])
    return apply(lambda a, b, c: _sum_of_minterms(table, a, b, c), reads, write)


def permute(instruction: Instruction, threads: Threads) -> Step:
    """prmt.b32: any four of the eight bytes `{b, a}`, or their signs."""
    modifiers = Modifiers(instruction)
    if not modifiers.take("b32"):
        raise Unsupported("prmt in this form")
    modifiers.end()
    nibbles = np.arange(0, 16, 4, dtype=np.uint32)

    def function(a: Array, b: Array, selector: Array) -> Array:
        bytes_ = np.stack([a, b], axis=1).view(np.uint8)  # [threads, 8]
        choice = (selector[:, None] >> nibbles) & np.uint32(15)
        chosen = np.take_along_axis(bytes_, (choice & 7).astype(np.intp), axis=1)
        signs = np.where(chosen & 0x80, 0xFF, 0).astype(np.uint8)
        return np.where(choice & 8, signs, chosen).view(np.uint32)[:, 0]

    return _on_words(function, instruction, threads)


def _ones(count: Array) -> Array:
    """So many low bits set, of 64."""
    most = np.minimum(count, 63).astype(np.uint64)
    return np.where(count < 64, (np.uint64(1) << most) - np.uint64(1), np.uint64(2**64 - 1))


def extract(instruction: Instruction, threads: Threads) -> Step:
    """bfe: a field of bits, of which the highest is repeated if it is signed."""
    modifiers = Modifiers(instruction)
    dtype = dtype_of(modifiers.word())
    modifiers.end()
    unsigned, bits = np.dtype(f"u{dtype.itemsize}"), 8 * dtype.itemsize

    def function(x: Array, start: Array, length: Array) -> Array:
        start, length = start & np.uint32(255), length & np.uint32(255)
        field = _shift_right(x.astype(np.uint64), start) & _ones(length)
        if dtype.kind == "i":
            # Beyond the word its sign goes on.
            top = np.minimum(start + np.maximum(length, 1) - 1, bits - 1)
            negative = (length > 0) & (_shift_right(x.astype(np.uint64), top) & 1).astype(bool)
            known = np.clip(bits - start.astype(np.int64), 0, length)
            field = np.where(negative, field | ~_ones(known), field)
        return field.astype(unsigned).view(dtype)

    result, x, start, length = instruction.operands
    u32 = TYPES["u32"]
    reads = [threads.reader(x, unsigned), threads.reader(start, u32), threads.reader(length, u32)]
    return apply(function, reads, threads.writer(result, dtype))


def insert(instruction: Instruction, threads: Threads) -> Step:
    """bfi: the low bits of the first source in place of a field of the second."""
    modifiers = Modifiers(instruction)
    dtype = dtype_of(modifiers.word())
    modifiers.end()

    def function(x: Array, into: Array, start: Array, length: Array) -> Array:
        start, length = start & np.uint32(255), length & np.uint32(255)
        field = _shift_left(_ones(length), start)
        shifted = _shift_left(x.astype(np.uint64), start)
        return (shifted & field | into.astype(np.uint64) & ~field).astype(dtype)

    result, x, into, start, length = instruction.operands
    reads = [
        threads.reader(one, kind)
        for one, kind in ((x, dtype), (into, dtype), (start, TYPES["u32"]), (length, TYPES["u32"]))
    ]
    return apply(function, reads, threads.writer(result, dtype))


def _negate(x: Array) -> Array:
    return (-x.view(f"u{x.itemsize}")).view(x.dtype)


def _count_ones(x: Array) -> Array:
    return np.unpackbits(x.view(np.uint8).reshape(len(x), -1), axis=1).sum(axis=1, dtype=np.uint32)


_SIMPLE: dict[str, Function] = {
    "add": np.add,
    "sub": np.subtract,
    "min": np.minimum,
    "max": np.maximum,
    "neg": _negate,
    "abs": np.abs,
    "and": np.bitwise_and,
    "or": np.bitwise_or,
    "xor": np.bitwise_xor,
    "not": np.invert,
}
SIMPLE_OPCODES = tuple(_SIMPLE)


def simple(instruction: Instruction, threads: Threads) -> Step:
    """What numpy does as PTX does it; bits of predicates too."""
    modifiers = Modifiers(instruction)
    dtype = dtype_of(modifiers.word())
    modifiers.end()
    result, *sources = instruction.operands
    reads = [threads.reader(one, dtype) for one in sources]
    return apply(_SIMPLE[instruction.opcode], reads, threads.writer(result, dtype))


def count_ones(instruction: Instruction, threads: Threads) -> Step:
    modifiers = Modifiers(instruction)
    dtype = dtype_of(modifiers.word())
    modifiers.end()
    result, source = instruction.operands
    write = threads.writer(result, TYPES["u32"])
    return apply(_count_ones, [threads.reader(source, dtype)], write)
