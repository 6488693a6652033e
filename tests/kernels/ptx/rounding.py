"""Rounding as the instructions define it: once, to nearest even, whatever width it was computed in.

A sum of float64 that was rounded *to odd* (truncated, and the last bit set where something was cut
off) can be rounded again to 24 bits or fewer as if it were exact.
"""

from typing import Any

import numpy as np
from numpy.typing import NDArray

Array = NDArray[Any]

# Of a float64 the bits that a float32 lacks, and the one case in which rounding twice goes wrong.
_CUT = np.uint64((1 << 29) - 1)
_HALF_WAY = np.uint64(1 << 28)
_TINY = np.float32(2.0**-126)


def multiply_add(a: Array, b: Array, c: Array) -> Array:
    """`a b + c` of float32, rounded once."""
    product = np.multiply(a, b, dtype=np.float64)  # exact: 24 + 24 bits
    total = product + c
    result = total.astype(np.float32)
    half_way = (total.view(np.uint64) & _CUT) == _HALF_WAY
    subnormal = (np.abs(result) < _TINY) & (total != 0)
    if (half_way | subnormal).any():
        result = add_to_odd(product, c.astype(np.float64)).astype(np.float32)
    return result


def add_to_odd(a: Array, b: Array) -> Array:
    """`a + b` of float64, rounded to odd."""
    total = a + b
    rest = total - a
    error = (a - (total - rest)) + (b - rest)
    bits = total.view(np.int64)
    inexact = np.isfinite(total) & (error != 0) & (bits & 1 == 0)
    away = np.where((error > 0) == (total > 0), 1, -1)
    return (bits + inexact * away).view(np.float64)


def narrow_to_odd(x: Array) -> Array:
    """A float64 as a float32, rounded to odd."""
    near = x.astype(np.float32)
    error = x - near
    bits = near.view(np.int32)
    inexact = np.isfinite(near) & (error != 0) & (bits & 1 == 0)
    away = np.where((error > 0) == (near > 0), np.int32(1), np.int32(-1))
    # Where it became zero, the smallest float32 of the sign of x.
    tiny = np.copysign(np.float32(2.0**-149), x.astype(np.float32))
    return np.where(inexact & (near == 0), tiny, (bits + inexact * away).view(np.float32))


def to_bf16(x: Array) -> Array:
    """The bits of float32 as bf16; any NaN becomes 0x7FFF."""
    bits = x.view(np.uint32)
    rounded = (bits + np.uint32(0x7FFF) + ((bits >> np.uint32(16)) & np.uint32(1))) >> np.uint32(16)
    return np.where(np.isnan(x), np.uint32(0x7FFF), rounded).astype(np.uint16)


def from_bf16(bits: Array) -> Array:
    return (bits.astype(np.uint32) << np.uint32(16)).view(np.float32)


def to_half(x: Array, kind: str) -> Array:
    """The bits of float64, itself exact or rounded to odd, as `f16` or `bf16`."""
    if kind == "f16":
        return x.astype(np.float16).view(np.uint16)
    return to_bf16(narrow_to_odd(x))


def from_half(bits: Array, kind: str) -> Array:
    """The bits of `f16` or `bf16` as float32."""
    return from_bf16(bits) if kind == "bf16" else bits.view(np.float16).astype(np.float32)


def to_tf32(x: Array) -> Array:
    """The bits of float32 rounded to 10 bits behind the point, halves away from zero."""
    bits = x.view(np.uint32)
    rounded = (bits + np.uint32(0x1000)) & np.uint32(0xFFFFE000)
    return np.where(np.isfinite(x), rounded, bits)


def flush(x: Array) -> Array:
    """Subnormal float32 as zeros of their sign, which is what `.ftz` does."""
    return np.where(np.abs(x) < _TINY, np.copysign(np.float32(0), x), x)
