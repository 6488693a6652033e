"""Instructions that move, choose and compare."""

from collections.abc import Callable

import numpy as np

from tests.kernels.ptx.faults import Unsupported
from tests.kernels.ptx.floats import half_reader
from tests.kernels.ptx.parse import Instruction, Operand, Pair
from tests.kernels.ptx.rounding import Array, flush
from tests.kernels.ptx.threads import (
    TYPES,
    Mask,
    Modifiers,
    Read,
    Step,
    Threads,
    Write,
    apply,
    dtype_of,
)

Function = Callable[..., Array]


def move(instruction: Instruction, threads: Threads) -> Step:
    """mov, which also takes a word apart and puts one together."""
    modifiers = Modifiers(instruction)
    dtype = dtype_of(modifiers.word())
    modifiers.end()
    result, source = instruction.operands
    if isinstance(result, tuple):
        return _take_apart(result, threads.reader(source, dtype), dtype.itemsize, threads)
    if isinstance(source, tuple):
        return _put_together(source, threads.writer(result, dtype), dtype.itemsize, threads)
    return apply(lambda x: x, [threads.reader(source, dtype)], threads.writer(result, dtype))


def _take_apart(results: tuple[Operand, ...], read: Read, size: int, threads: Threads) -> Step:
    part = np.dtype(f"u{size // len(results)}")
    writes = [threads.writer(one, part) for one in results]

    def step(mask: Mask) -> None:
        parts = read().reshape(-1, 1).view(part)
        for i, write in enumerate(writes):
            write(np.ascontiguousarray(parts[:, i]), mask)

    return step


def _put_together(sources: tuple[Operand, ...], write: Write, size: int, threads: Threads) -> Step:
    part = np.dtype(f"u{size // len(sources)}")
    reads = [threads.reader(one, part) for one in sources]

    def step(mask: Mask) -> None:
        parts = np.stack([read() for read in reads], axis=1)
        write(parts.view(f"u{size}")[:, 0], mask)

    return step


def select(instruction: Instruction, threads: Threads) -> Step:
    """selp: the first source where the predicate is true, the second elsewhere."""
    modifiers = Modifiers(instruction)
    dtype = dtype_of(modifiers.word())
    modifiers.end()
    result, yes, no, predicate = instruction.operands
    reads = [
        threads.reader(predicate, TYPES["pred"]),
        threads.reader(yes, dtype),
        threads.reader(no, dtype),
    ]
    return apply(np.where, reads, threads.writer(result, dtype))


def _ordered_not_equal(a: Array, b: Array) -> Array:
    return (a < b) | (a > b)


_COMPARISONS: dict[str, Function] = {
    "eq": np.equal,
    "ne": np.not_equal,
    "lt": np.less,
    "le": np.less_equal,
    "gt": np.greater,
    "ge": np.greater_equal,
    "lo": np.less,
    "ls": np.less_equal,
    "hi": np.greater,
    "hs": np.greater_equal,
}
# With a NaN the plain comparisons are false, and those that end in u are true.
_FLOAT_COMPARISONS: dict[str, Function] = {
    "eq": np.equal,
    "ne": _ordered_not_equal,
    "lt": np.less,
    "le": np.less_equal,
    "gt": np.greater,
    "ge": np.greater_equal,
    "equ": lambda a, b: ~_ordered_not_equal(a, b),
    "neu": np.not_equal,
    "ltu": lambda a, b: ~np.greater_equal(a, b),
    "leu": lambda a, b: ~np.greater(a, b),
    "gtu": lambda a, b: ~np.less_equal(a, b),
    "geu": lambda a, b: ~np.less(a, b),
    "num": lambda a, b: ~(np.isnan(a) | np.isnan(b)),
    "nan": lambda a, b: np.isnan(a) | np.isnan(b),
}
_JOINTS: dict[str, Function] = {
    "and": np.logical_and,
    "or": np.logical_or,
    "xor": np.logical_xor,
}


def compare(instruction: Instruction, threads: Threads) -> Step:
    """setp, alone or joined with another predicate.

    A second destination gets the opposite, or of pairs what the upper halves compare to.
    """
    modifiers = Modifiers(instruction)
    relation = modifiers.word()
    joint = modifiers.one_of(*_JOINTS)
    ftz = modifiers.take("ftz")
    kind = modifiers.word()
    modifiers.end()
    result, a, b, *joined = instruction.operands
    is_pair = kind in ("f16x2", "bf16x2")
    is_half = is_pair or kind in ("f16", "bf16")
    is_float = is_half or kind in ("f32", "f64")
    table = _FLOAT_COMPARISONS if is_float else _COMPARISONS
    if relation not in table or bool(joined) != (joint is not None):
        raise Unsupported(f"the comparison {relation} of {kind}")
    function = table[relation]
    if is_half:
        reads = [half_reader(threads, one, kind) for one in (a, b)]
    else:
        reads = [threads.reader(one, dtype_of(kind)) for one in (a, b)]
    if ftz:
        plain = function
        function = lambda a, b: plain(flush(a), flush(b))  # noqa: E731
    if joint is not None:
        join, alone = _JOINTS[joint], function
        reads.append(threads.reader(joined[0], TYPES["pred"]))
        function = lambda a, b, p: join(alone(a, b), p)  # noqa: E731
    if isinstance(result, Pair):
        if joint is not None:
            raise Unsupported("setp with two destinations and a third source")
        first, second = (
            threads.writer(one, TYPES["pred"]) for one in (result.first, result.second)
        )

        def write_both(value: Array, mask: Mask) -> None:
            first(value[0] if is_pair else value, mask)
            second(value[1] if is_pair else ~value, mask)

        return apply(function, reads, write_both)
    if is_pair:
        raise Unsupported("setp of pairs with one destination")
    return apply(function, reads, threads.writer(result, TYPES["pred"]))


def convert_address(instruction: Instruction, threads: Threads) -> Step:
    """cvta for global memory, whose generic addresses are its own."""
    modifiers = Modifiers(instruction)
    modifiers.take("to")
    if not modifiers.take("global") or not modifiers.take("u64"):
        raise Unsupported("cvta of another space than global")
    modifiers.end()
    result, source = instruction.operands
    dtype = TYPES["u64"]
    return apply(lambda x: x, [threads.reader(source, dtype)], threads.writer(result, dtype))
