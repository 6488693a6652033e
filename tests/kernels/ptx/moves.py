"""Instructions that move, choose, compare and convert."""

from collections.abc import Callable

import numpy as np

from tests.kernels.ptx.faults import Unsupported
from tests.kernels.ptx.floats import half_reader, half_writer, pack
from tests.kernels.ptx.parse import Instruction, Negated, Operand, Pair
from tests.kernels.ptx.rounding import Array, flush, to_half, to_tf32
from tests.kernels.ptx.threads import TYPES, Mask, Modifiers, Read, Step, Threads, Write, apply

Function = Callable[..., Array]


def move(instruction: Instruction, threads: Threads) -> Step:
    """mov, which also takes a word apart and puts one together."""
    modifiers = Modifiers(instruction)
    kind = modifiers.type()
    modifiers.end()
    dtype = TYPES[kind]
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
    dtype = TYPES[modifiers.type()]
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
    """setp, alone or joined with another predicate; a second destination gets the opposite."""
    modifiers = Modifiers(instruction)
    relation = modifiers.type()
    joint = modifiers.one_of(*_JOINTS)
    ftz = modifiers.take("ftz")
    kind = modifiers.type()
    modifiers.end()
    result, a, b, *joined = instruction.operands
    is_half = kind in ("f16", "bf16")
    is_float = is_half or kind in ("f32", "f64")
    table = _FLOAT_COMPARISONS if is_float else _COMPARISONS
    if relation not in table or bool(joined) != (joint is not None):
        raise Unsupported(f"the comparison {relation} of {kind}")
    function = table[relation]
    if is_half:
        reads = [half_reader(threads, one, kind) for one in (a, b)]
    else:
        reads = [threads.reader(one, TYPES[kind]) for one in (a, b)]
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
            first(value, mask)
            second(~value, mask)

        return apply(function, reads, write_both)
    return apply(function, reads, threads.writer(result, TYPES["pred"]))


_TO_INTEGER: dict[str, Function] = {
    "rni": np.rint,
    "rzi": np.trunc,
    "rmi": np.floor,
    "rpi": np.ceil,
}


def convert(instruction: Instruction, threads: Threads) -> Step:
    """cvt between integers, floating-point numbers, and both."""
    modifiers = Modifiers(instruction)
    rounding = modifiers.one_of("rn", "rna", *_TO_INTEGER)
    ftz, relu = modifiers.take("ftz"), modifiers.take("relu")
    saturates = modifiers.take("sat")
    to, of = modifiers.type(), modifiers.type()
    modifiers.end()
    result, *sources = instruction.operands
    if any(isinstance(one, Negated) for one in sources):
        raise Unsupported("cvt of a predicate")
    if to in ("f16x2", "bf16x2"):
        if of != "f32" or rounding != "rn" or saturates:
            raise Unsupported(f"cvt to {to} from {of}")
        return _convert_pair(instruction, threads, to.removesuffix("x2"), relu)
    if to == "tf32":
        if of != "f32" or rounding != "rna" or relu or saturates:
            raise Unsupported(f"cvt to tf32 from {of}")
        write = threads.writer(result, TYPES["b32"])
        return apply(to_tf32, [threads.reader(sources[0], TYPES["f32"])], write)
    function = _conversion(to, of, rounding, saturates)
    halves = ("f16", "bf16")
    if of in halves:
        read = half_reader(threads, sources[0], of)
    else:
        read = threads.reader(sources[0], TYPES[of])
    write = half_writer(threads, result, to) if to in halves else threads.writer(result, TYPES[to])
    steps = [flush] if ftz and of == "f32" else []
    steps.append(function)
    steps += [flush] if ftz and to == "f32" else []
    steps += [lambda x: np.maximum(x, 0)] if relu else []
    return apply(_chain(steps), [read], write)


def _chain(functions: list[Function]) -> Function:
    if len(functions) == 1:
        return functions[0]

    def chained(x: Array) -> Array:
        for function in functions:
            x = function(x)
        return x

    return chained


def _convert_pair(instruction: Instruction, threads: Threads, kind: str, relu: bool) -> Step:
    """Two float32 into one word, the first of them into its upper half."""
    result, *sources = instruction.operands
    high, low = (threads.reader(one, TYPES["f32"]) for one in sources)

    def function(high: Array, low: Array) -> Array:
        both = np.stack([low, high]).astype(np.float64)
        return pack(to_half(np.maximum(both, 0) if relu else both, kind))

    return apply(function, [high, low], threads.writer(result, TYPES["b32"]))


def _conversion(to: str, of: str, rounding: str | None, saturates: bool) -> Function:
    """The function of arrays; f16 and bf16 are float64 on both sides."""
    from_float, to_float = "f" in of, "f" in to
    if from_float and to_float:
        return _between_floats(to, of, rounding, saturates)
    if from_float:
        if rounding is None or rounding == "rn":
            raise Unsupported(f"cvt to {to} from {of} without a way of rounding")
        return _float_to_integer(_TO_INTEGER[rounding], TYPES[to])
    if to_float:
        if rounding != "rn" or saturates:
            raise Unsupported(f"cvt to {to} from {of}")
        if to in ("f16", "bf16"):
            return lambda x: x.astype(np.float64)
        return lambda x: x.astype(TYPES[to])
    return _between_integers(TYPES[to], TYPES[of], saturates)


def _between_floats(to: str, of: str, rounding: str | None, saturates: bool) -> Function:
    steps: list[Function] = []
    if rounding in _TO_INTEGER:
        if to != of:
            raise Unsupported(f"cvt.{rounding} to {to} from {of}")
        steps.append(_TO_INTEGER[rounding])
    elif rounding == "rna":
        raise Unsupported("rounding halves away from zero")
    if to == "f32" and of != "f32":
        steps.append(lambda x: x.astype(np.float32))
    elif to in ("f64", "f16", "bf16"):
        steps.append(lambda x: x.astype(np.float64))
    if saturates:
        steps.append(lambda x: np.fmin(np.fmax(x, 0), 1))
    return _chain(steps or [lambda x: x])


def _float_to_integer(rounded: Function, dtype: np.dtype[np.generic]) -> Function:
    limits = np.iinfo(dtype)
    # 2^31 and 2^63 are floating-point numbers, the largest integers need not be.
    beyond = float(limits.max) + 1 if dtype.itemsize < 8 else float(limits.max)

    def function(x: Array) -> Array:
        whole = rounded(x.astype(np.float64))
        inside = np.where((whole > limits.min) & (whole < beyond), whole, 0).astype(dtype)
        inside = np.where(whole >= beyond, dtype.type(limits.max), inside)
        return np.where(whole <= limits.min, dtype.type(limits.min), inside)

    return function


def _between_integers(
    to: np.dtype[np.generic], of: np.dtype[np.generic], saturates: bool
) -> Function:
    if not saturates:
        return lambda x: x.astype(to)
    low = max(np.iinfo(to).min, np.iinfo(of).min)
    high = min(np.iinfo(to).max, np.iinfo(of).max)
    return lambda x: np.clip(x, of.type(low), of.type(high)).astype(to)


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
