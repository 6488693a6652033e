"""Instructions that convert: between integers, floating-point numbers, and both."""

from collections.abc import Callable
from typing import Any

import numpy as np

from tests.kernels.ptx.faults import Unsupported
from tests.kernels.ptx.floats import half_reader, half_writer, pack
from tests.kernels.ptx.parse import Instruction, Negated
from tests.kernels.ptx.rounding import Array, flush, to_half, to_tf32
from tests.kernels.ptx.threads import TYPES, Modifiers, Step, Threads, apply, dtype_of

Function = Callable[..., Array]

_TO_INTEGER: dict[str, Function] = {
    "rni": np.rint,
    "rzi": np.trunc,
    "rmi": np.floor,
    "rpi": np.ceil,
}


def convert(instruction: Instruction, threads: Threads) -> Step:
    """The step of a cvt."""
    modifiers = Modifiers(instruction)
    rounding = modifiers.one_of("rn", "rna", *_TO_INTEGER)
    ftz, relu = modifiers.take("ftz"), modifiers.take("relu")
    saturates = modifiers.take("sat")
    to, of = modifiers.word(), modifiers.word()
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
        read = threads.reader(sources[0], dtype_of(of))
    if to in halves:
        write = half_writer(threads, result, to)
    else:
        write = threads.writer(result, dtype_of(to))
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
        if to not in ("f16", "bf16"):
            return lambda x: x.astype(TYPES[to])
        if TYPES[of].itemsize == 8:
            raise Unsupported(f"cvt to {to} from {of}, which float64 does not hold")
        return lambda x: x.astype(np.float64)
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


def _float_to_integer(rounded: Function, dtype: np.dtype[Any]) -> Function:
    limits = np.iinfo(dtype)
    # 2^31 and 2^63 are floating-point numbers, the largest integers need not be.
    beyond = float(limits.max) + 1 if dtype.itemsize < 8 else float(limits.max)

    def function(x: Array) -> Array:
        whole = rounded(x.astype(np.float64))
        inside = np.where((whole > limits.min) & (whole < beyond), whole, 0).astype(dtype)
        inside = np.where(whole >= beyond, dtype.type(limits.max), inside)
        return np.where(whole <= limits.min, dtype.type(limits.min), inside)

    return function


def _between_integers(to: np.dtype[Any], of: np.dtype[Any], saturates: bool) -> Function:
    if not saturates:
        return lambda x: x.astype(to)
    low = max(np.iinfo(to).min, np.iinfo(of).min)
    high = min(np.iinfo(to).max, np.iinfo(of).max)
    return lambda x: np.clip(x, of.type(low), of.type(high)).astype(to)
