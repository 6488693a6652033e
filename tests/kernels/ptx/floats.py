"""Instructions on floating-point numbers: f32 as the hardware rounds it, f16 and bf16, some of f64.

What PTX calls approximate is computed in float64 and rounded: the value that the hardware's is near
to.  A launch may perturb it, to see what the hardware's error would do.

Products and sums that PTX leaves apart are rounded apart here; the assembler may fuse some of them.
"""

from collections.abc import Callable

import numpy as np

from tests.kernels.ptx.faults import Unsupported
from tests.kernels.ptx.parse import Instruction, Operand
from tests.kernels.ptx.rounding import (
    Array,
    add_to_odd,
    flush,
    from_half,
    multiply_add,
    to_half,
)
from tests.kernels.ptx.threads import TYPES, Modifiers, Read, Step, Threads, Write, apply, dtype_of

Function = Callable[..., Array]


def _largest(a: Array, b: Array) -> Array:
    return _extremum(np.fmax, np.bitwise_and, a, b)


def _smallest(a: Array, b: Array) -> Array:
    return _extremum(np.fmin, np.bitwise_or, a, b)


def _extremum(choose: Function, join_signs: Function, a: Array, b: Array) -> Array:
    """The number, if one is NaN; +0 is greater than -0."""
    bits = f"u{a.itemsize}"
    equal = join_signs(a.view(bits), b.view(bits)).view(a.dtype)
    return np.where(a == b, equal, choose(a, b))


_ONE_WAY: dict[str, Function] = {
    "neg": np.negative,
    "abs": np.abs,
    "min": _smallest,
    "max": _largest,
    "copysign": lambda sign, value: np.copysign(value, sign),
}
_EXACT: dict[str, dict[str, Function]] = {
    "f32": _ONE_WAY
    | {
        "add": np.add,
        "sub": np.subtract,
        "mul": np.multiply,
        "div": np.divide,
        "fma": multiply_add,
        "mad": multiply_add,
        "sqrt": np.sqrt,
        "rcp": np.reciprocal,
    },
    "f64": _ONE_WAY
    | {"add": np.add, "sub": np.subtract, "mul": np.multiply, "div": np.divide, "sqrt": np.sqrt},
    # On float64 that holds numbers of 8 or 11 bits: what is not exact is rounded to odd.
    "half": _ONE_WAY
    | {
        "add": add_to_odd,
        "sub": lambda a, b: add_to_odd(a, -b),
        "mul": np.multiply,
        "fma": lambda a, b, c: add_to_odd(a * b, c),
    },
}
_APPROXIMATE: dict[str, Function] = {
    "ex2": np.exp2,
    "lg2": np.log2,
    "rcp": np.reciprocal,
    "sqrt": np.sqrt,
    "rsqrt": lambda x: 1 / np.sqrt(x),
    "tanh": np.tanh,
    "sin": np.sin,
    "cos": np.cos,
    "div": np.divide,
}
_HALVES = ("f16", "bf16", "f16x2", "bf16x2")
OPCODES = ("fma", "sqrt", "rcp", "rsqrt", "ex2", "lg2", "sin", "cos", "tanh", "copysign")


def is_float(instruction: Instruction) -> bool:
    """Whether an opcode that integers have too is meant for floating-point numbers."""
    return instruction.modifiers[-1] in ("f32", "f64", *_HALVES)


def build(instruction: Instruction, threads: Threads) -> Step:
    """The step of an arithmetic instruction."""
    modifiers = Modifiers(instruction)
    is_approximate = modifiers.one_of("approx", "full") is not None
    modifiers.take("rn")
    ftz = modifiers.take("ftz")
    propagates_nan = modifiers.take("NaN")
    saturates = modifiers.take("sat")
    relu = modifiers.take("relu")
    kind = modifiers.word()
    modifiers.end()
    function = _function(instruction.opcode, kind, is_approximate, threads)
    if propagates_nan:
        function = {"min": np.minimum, "max": np.maximum}[instruction.opcode]
    if saturates:
        function = _then(function, lambda x: np.fmin(np.fmax(x, 0), 1))
    if relu:
        function = _then(function, lambda x: np.maximum(x, 0))
    result, *sources = instruction.operands
    if kind in _HALVES:
        reads, write = [half_reader(threads, one, kind) for one in sources], None
        return apply(function, reads, half_writer(threads, result, kind))
    dtype = dtype_of(kind)
    reads = [threads.reader(one, dtype) for one in sources]
    write = threads.writer(result, dtype)
    if ftz:
        reads = [_flushed(read) for read in reads]
        function = _then(function, flush)
    return apply(function, reads, write)


def _function(opcode: str, kind: str, is_approximate: bool, threads: Threads) -> Function:
    if not is_approximate:
        table = _EXACT.get("half" if kind in _HALVES else kind, {})
        if opcode not in table:
            raise Unsupported(f"{opcode} of {kind}")
        return table[opcode]
    if opcode not in _APPROXIMATE or kind not in ("f32", *_HALVES):
        raise Unsupported(f"{opcode}.approx of {kind}")
    exact, perturb = _APPROXIMATE[opcode], threads.perturb

    def approximate(*values: Array) -> Array:
        result = exact(*[x.astype(np.float64) for x in values])
        if perturb is not None:
            result = perturb(opcode, result)
        return result if kind in _HALVES else result.astype(np.float32)

    return approximate


def _then(function: Function, after: Function) -> Function:
    return lambda *values: after(function(*values))


def _flushed(read: Read) -> Read:
    return lambda: flush(read())


def half_reader(threads: Threads, operand: Operand, kind: str) -> Read:
    """Values of f16 or bf16 as float64; of a pair [2, threads], the lower half first."""
    if not kind.endswith("x2"):
        read = threads.reader(operand, TYPES["b16"])
        return lambda: from_half(read(), kind).astype(np.float64)
    read, kind = threads.reader(operand, TYPES["b32"]), kind.removesuffix("x2")
    return lambda: from_half(unpack(read()), kind).astype(np.float64)


def half_writer(threads: Threads, operand: Operand, kind: str) -> Write:
    """Takes float64, exact or rounded to odd, as what `half_reader` reads."""
    if not kind.endswith("x2"):
        write = threads.writer(operand, TYPES["b16"])
        return lambda value, mask: write(to_half(value, kind), mask)
    write, kind = threads.writer(operand, TYPES["b32"]), kind.removesuffix("x2")
    return lambda value, mask: write(pack(to_half(value, kind)), mask)


def unpack(words: Array) -> Array:
    """Words of 32 bits as [2, threads] of 16, the lower half first."""
    return np.stack([words.astype(np.uint16), (words >> np.uint32(16)).astype(np.uint16)])


def pack(halves: Array) -> Array:
    return halves[0].astype(np.uint32) | halves[1].astype(np.uint32) << np.uint32(16)
