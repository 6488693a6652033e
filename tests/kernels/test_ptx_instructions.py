"""Single instructions against what PTX says of them, written again for one thread."""

import math
import subprocess
from collections.abc import Callable, Sequence
from fractions import Fraction
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import triton
from numpy.typing import NDArray

from tests.kernels.ptx.machine import PtxMachine

Array = NDArray[Any]
LANES = 32
COUNT = 8 * LANES
NAMES = "abcef"
WIDTHS = {"b16": np.uint16, "b32": np.uint32, "b64": np.uint64}
EDGES = (0, 1, 2, 31, 32, 33, 0x7FFFFFFF, 0x80000000, 0x80000001, 0xFFFFFFFF, 0xFFFFFFFE)


def module(code: str, sources: Sequence[str], result: str, name: str = "tested") -> str:
    """A kernel of one warp a program that loads a, b, ... and stores d, an element a thread."""
    names = NAMES[: len(sources)]
    parameters = ",\n".join(
        f".param .u64 .ptr .global .align 1 {name}_{one}" for one in (*names, "d")
    )
    loads = "\n".join(
        f"ld.param.b64 %at, [{name}_{one}];\n"
        f"mad.wide.u32 %at, %i, {int(kind[1:]) // 8}, %at;\n"
        f"ld.global.{kind} {one}, [%at];"
        for one, kind in zip(names, sources, strict=True)
    )
    declared = "\n".join(f".reg .{kind} {one};" for one, kind in zip(names, sources, strict=True))
    return f""".version 8.0
.target sm_90
.address_size 64
.visible .entry {name}({parameters})
.reqntid {LANES}
{{
    .reg .b64 %at;
    .reg .b32 %i;
    .reg .pred p, q;
    .reg .{result} d;
    {declared}
    mov.u32 %i, %ctaid.x;
    shl.b32 %i, %i, 5;
    mov.u32 d_lane, %tid.x;
    add.s32 %i, %i, d_lane;
    {loads}
    {code}
    ld.param.b64 %at, [{name}_d];
    mad.wide.u32 %at, %i, {int(result[1:]) // 8}, %at;
    st.global.{result} [%at], d;
    ret;
}}
""".replace("d_lane", "%lane").replace(".reg .b32 %i;", ".reg .b32 %i, %lane;")


def execute(code: str, sources: dict[str, Array], result: str) -> Array:
    """What the instructions leave in d for each element of the sources."""
    kinds = [f"b{8 * x.itemsize}" for x in sources.values()]
    count = len(next(iter(sources.values())))
    d = np.zeros(count, WIDTHS[result])
    machine = PtxMachine(module(code, kinds, result), num_warps=1, shared_bytes=0)
    machine.run((count // LANES,), [*(np.ascontiguousarray(x) for x in sources.values()), d])
    return d


def words(seed: int, size_bits: int = 32) -> Array:
    """Edges in every neighbourhood, then anything."""
    rng = np.random.default_rng(seed)
    drawn = rng.integers(0, 1 << size_bits, COUNT, dtype=np.uint64)
    edges = rng.choice(np.array(EDGES, np.uint64), COUNT // 2)
    drawn[: COUNT // 2] = edges if size_bits == 32 else edges | edges[::-1] << np.uint64(32)
    return drawn.astype(WIDTHS[f"b{size_bits}"])


def small(seed: int, most: int = 70) -> Array:
    return np.random.default_rng(seed).integers(0, most, COUNT).astype(np.uint32)


def signed(x: int, size_bits: int = 32) -> int:
    return x - (1 << size_bits) if x >> (size_bits - 1) else x


# Integers.


def field(a: int, b: int, c: int) -> int:
    return (a >> min(b & 255, 64)) & ((1 << (c & 255)) - 1)


def signed_field(a: int, b: int, c: int) -> int:
    """Bit by bit, as the definition of bfe has it."""
    start, length = b & 255, c & 255
    if length == 0:
        return 0
    sign = a >> min(start + length - 1, 31) & 1
    bits = [a >> (start + i) & 1 if i < length and start + i <= 31 else sign for i in range(32)]
    return sum(bit << i for i, bit in enumerate(bits))


def inserted(a: int, b: int, c: int, e: int) -> int:
    """Bit by bit, as the definition of bfi has it."""
    start, length = c & 255, e & 255
    for i in range(length):
        if start + i > 31:
            break
        b = b & ~(1 << start + i) | (a >> i & 1) << start + i if i < 32 else b & ~(1 << start + i)
    return b


def permuted(a: int, b: int, c: int) -> int:
    whole = (b << 32 | a).to_bytes(8, "little")
    chosen = []
    for i in range(4):
        choice = c >> 4 * i & 15
        byte = whole[choice & 7]
        chosen.append((0xFF if byte & 0x80 else 0) if choice & 8 else byte)
    return int.from_bytes(bytes(chosen), "little")


def toward_zero(a: int, b: int) -> int:
    return abs(a) // abs(b) * (1 if (a < 0) == (b < 0) else -1)


def bf16(word: int) -> float:
    """The number whose bits are the lower half of a word."""
    return float(np.array((word & 0xFFFF) << 16, np.uint32).view(np.float32))


WORD, SMALL, LONG = "word", "small", "long"
INTEGERS: dict[str, tuple[str, tuple[str, ...], Callable[..., int]]] = {
    "add.s32 d, a, b;": ("b32", (WORD, WORD), lambda a, b: a + b),
    "sub.s32 d, a, b;": ("b32", (WORD, WORD), lambda a, b: a - b),
    "add.s64 d, a, b;": ("b64", (LONG, LONG), lambda a, b: a + b),
    "neg.s32 d, a;": ("b32", (WORD,), lambda a: -a),
    "abs.s32 d, a;": ("b32", (WORD,), lambda a: abs(signed(a))),
    "min.s32 d, a, b;": ("b32", (WORD, WORD), lambda a, b: min(signed(a), signed(b))),
    "max.u32 d, a, b;": ("b32", (WORD, WORD), max),
    "and.b32 d, a, b;": ("b32", (WORD, WORD), lambda a, b: a & b),
    "or.b32 d, a, 0xFF00;": ("b32", (WORD,), lambda a: a | 0xFF00),
    "xor.b64 d, a, b;": ("b64", (LONG, LONG), lambda a, b: a ^ b),
    "not.b32 d, a;": ("b32", (WORD,), lambda a: ~a),
    "popc.b32 d, a;": ("b32", (WORD,), lambda a: bin(a).count("1")),
    "mul.lo.s32 d, a, b;": ("b32", (WORD, WORD), lambda a, b: a * b),
    "mul.hi.s32 d, a, b;": ("b32", (WORD, WORD), lambda a, b: signed(a) * signed(b) >> 32),
    "mul.hi.u32 d, a, b;": ("b32", (WORD, WORD), lambda a, b: a * b >> 32),
    "mul.hi.u64 d, a, b;": ("b64", (LONG, LONG), lambda a, b: a * b >> 64),
    "mul.hi.s64 d, a, b;": ("b64", (LONG, LONG), lambda a, b: signed(a, 64) * signed(b, 64) >> 64),
    "mul.wide.s32 d, a, b;": ("b64", (WORD, WORD), lambda a, b: signed(a) * signed(b)),
    "mul.wide.u32 d, a, b;": ("b64", (WORD, WORD), lambda a, b: a * b),
    "mad.lo.s32 d, a, b, c;": ("b32", (WORD, WORD, WORD), lambda a, b, c: a * b + c),
    "mad.hi.u32 d, a, b, c;": ("b32", (WORD, WORD, WORD), lambda a, b, c: (a * b >> 32) + c),
    "mad.wide.s32 d, a, -3, b;": ("b64", (WORD, LONG), lambda a, b: signed(a) * -3 + b),
    "div.s32 d, a, 7;": ("b32", (WORD,), lambda a: toward_zero(signed(a), 7)),
    "div.s32 d, a, -7;": ("b32", (WORD,), lambda a: toward_zero(signed(a), -7)),
    "rem.s32 d, a, -7;": ("b32", (WORD,), lambda a: math.trunc(math.fmod(signed(a), 7))),
    "div.u32 d, a, 7;": ("b32", (WORD,), lambda a: a // 7),
    "rem.u32 d, a, 7;": ("b32", (WORD,), lambda a: a % 7),
    "shl.b32 d, a, b;": ("b32", (WORD, SMALL), lambda a, b: a << b),
    "shl.b64 d, a, b;": ("b64", (LONG, SMALL), lambda a, b: a << b),
    "shr.u32 d, a, b;": ("b32", (WORD, SMALL), lambda a, b: a >> b),
    "shr.s32 d, a, b;": ("b32", (WORD, SMALL), lambda a, b: signed(a) >> b),
    "shr.s64 d, a, b;": ("b64", (LONG, SMALL), lambda a, b: signed(a, 64) >> b),
    "shf.l.wrap.b32 d, a, b, c;": (
        "b32",
        (WORD, WORD, SMALL),
        lambda a, b, c: (b << 32 | a) << (c & 31) >> 32,
    ),
    "shf.r.wrap.b32 d, a, b, c;": (
        "b32",
        (WORD, WORD, SMALL),
        lambda a, b, c: (b << 32 | a) >> (c & 31),
    ),
    "shf.l.clamp.b32 d, a, b, c;": (
        "b32",
        (WORD, WORD, SMALL),
        lambda a, b, c: (b << 32 | a) << min(c, 32) >> 32,
    ),
    "shf.r.clamp.b32 d, a, b, c;": (
        "b32",
        (WORD, WORD, SMALL),
        lambda a, b, c: (b << 32 | a) >> min(c, 32),
    ),
    "lop3.b32 d, a, b, c, 0xE8;": (
        "b32",
        (WORD, WORD, WORD),
        lambda a, b, c: a & b | a & c | b & c,
    ),
    "lop3.b32 d, a, b, c, 0x78;": ("b32", (WORD, WORD, WORD), lambda a, b, c: a ^ (b & c)),
    "prmt.b32 d, a, b, c;": ("b32", (WORD, WORD, WORD), permuted),
    "prmt.b32 d, a, 0, 0x1044;": ("b32", (WORD,), lambda a: permuted(a, 0, 0x1044)),
    "bfe.u32 d, a, b, c;": ("b32", (WORD, SMALL, SMALL), field),
    "bfe.s32 d, a, b, c;": ("b32", (WORD, SMALL, SMALL), signed_field),
    "bfe.u64 d, a, b, c;": ("b64", (LONG, SMALL, SMALL), field),
    "bfi.b32 d, a, b, c, e;": ("b32", (WORD, WORD, SMALL, SMALL), inserted),
    "cvt.s64.s32 d, a;": ("b64", (WORD,), signed),
    "cvt.u64.u32 d, a;": ("b64", (WORD,), lambda a: a),
    "cvt.u32.u64 d, a;": ("b32", (LONG,), lambda a: a),
    "cvt.s32.s8 d, a;": ("b32", (WORD,), lambda a: signed(a & 255, 8)),
    "cvt.s32.s16 d, a;": ("b32", (WORD,), lambda a: signed(a & 0xFFFF, 16)),
    "cvt.u16.u32 d, a;": ("b16", (WORD,), lambda a: a),
    "cvt.sat.s8.s32 d, a;": ("b32", (WORD,), lambda a: max(-128, min(127, signed(a)))),
    "cvt.sat.u16.s32 d, a;": ("b16", (WORD,), lambda a: max(0, min(0xFFFF, signed(a)))),
    "setp.lt.s32 p, a, b; selp.b32 d, a, b, p;": (
        "b32",
        (WORD, WORD),
        lambda a, b: min(signed(a), signed(b)),
    ),
    "setp.ge.u32 p, a, b; @p mov.b32 d, 1; @!p mov.b32 d, 2;": (
        "b32",
        (WORD, WORD),
        lambda a, b: 1 if a >= b else 2,
    ),
    "setp.eq.s32 q, b, 0; setp.lt.and.s32 p, a, b, !q; selp.b32 d, 1, 0, p;": (
        "b32",
        (WORD, WORD),
        lambda a, b: int(signed(a) < signed(b) and b != 0),
    ),
    "setp.gt.u32 p|q, a, b; selp.b32 d, 1, 0, q;": ("b32", (WORD, WORD), lambda a, b: int(a <= b)),
    "setp.ge.bf16x2 p|q, a, b; selp.b32 d, 1, 0, p; @q add.u32 d, d, 2;": (
        "b32",
        (WORD, WORD),
        lambda a, b: (bf16(a) >= bf16(b)) + 2 * (bf16(a >> 16) >= bf16(b >> 16)),
    ),
    "setp.gt.u32 p, a, b; not.pred q, p; xor.pred p, p, q; selp.b32 d, 1, 0, p;": (
        "b32",
        (WORD, WORD),
        lambda a, b: 1,
    ),
    "{ .reg .b16 %low, a; mov.b32 {%low, a}, b; mov.b32 d, {a, %low}; }": (
        "b32",
        (WORD, WORD),
        lambda a, b: b >> 16 | b << 16,
    ),
    "mov.b64 d, {a, b};": ("b64", (WORD, WORD), lambda a, b: b << 32 | a),
    "{ .reg .b32 %high; mov.b64 {_, %high}, a; mov.b32 d, %high; }": (
        "b32",
        (LONG,),
        lambda a: a >> 32,
    ),
}
MAKERS = {WORD: words, SMALL: small, LONG: lambda seed: words(seed, 64)}


@pytest.mark.parametrize("code", INTEGERS)
def test_instruction_on_integers_does_what_its_definition_says(code: str) -> None:
    result, kinds, truth = INTEGERS[code]
    sources = {
        name: MAKERS[kind](i) for i, (name, kind) in enumerate(zip("abcef", kinds, strict=False))
    }
    d = execute(code, sources, result)
    size_bits = 8 * d.itemsize
    expected = [
        truth(*(int(x) for x in row)) % (1 << size_bits)
        for row in zip(*sources.values(), strict=True)
    ]
    np.testing.assert_array_equal(d, np.array(expected, d.dtype))


def test_instructions_of_these_tests_are_ptx(tmp_path: Path) -> None:
    """ptxas reads them, so what the machine is asked here could be asked of a GPU."""
    head, text = "", []
    for i, (code, (result, kinds, _)) in enumerate(INTEGERS.items()):
        widths = ["b64" if kind == LONG else "b32" for kind in kinds]
        whole = module(code, widths, result, name=f"tested_{i}")
        head, _, body = whole.partition(".visible")
        text.append(".visible" + body)
    for i, (code, (result, kinds, _)) in enumerate(FLOATS.items()):
        widths = ["b16" if kind in HALF_BITS else "b32" for kind in kinds]
        whole = module(code, widths, "b16" if result in HALF_BITS else "b32", name=f"float_{i}")
        text.append(".visible" + whole.partition(".visible")[2])
    source = tmp_path / "tested.ptx"
    source.write_text(head + "\n".join(text))
    ptxas = Path(triton.__file__).parent / "backends/nvidia/bin/ptxas"
    subprocess.run([ptxas, "--gpu-name=sm_90", source, "-o", tmp_path / "tested.cubin"], check=True)


# Floating-point numbers.

# Bits behind the point, and the exponent of the smallest normal number.
FORMATS = {"f32": (23, -126), "bf16": (7, -126), "f16": (10, -14)}
HALF_BITS = ("bf16", "f16")


def nearest(x: Fraction, kind: str) -> float:
    """The number of a format that is nearest to x; of two the one whose last bit is 0."""
    if x == 0:
        return 0.0
    digits, least = FORMATS[kind]
    exponent = math.floor(math.log2(abs(x))) if abs(x) > Fraction(1, 1 << 900) else -900
    while Fraction(2) ** (exponent + 1) <= abs(x):
        exponent += 1
    while Fraction(2) ** exponent > abs(x):
        exponent -= 1
    unit = Fraction(2) ** (max(exponent, least) - digits)
    return float(round(x / unit) * unit)  # round is to even


def hard_floats(seed: int, kind: str) -> Array:
    """Numbers of few bits, whose sums and products fall half way, of nearby and far exponents."""
    rng = np.random.default_rng(seed)
    digits, least = FORMATS[kind]
    whole = rng.integers(-(1 << digits), 1 << digits, COUNT).astype(np.float64)
    whole[::3] = rng.choice([1, -1, 3, (1 << digits) - 1, (1 << digits) + 1], len(whole[::3]))
    span = 6 if kind == "f16" else 40
    scale = rng.integers(-span, span, COUNT)
    scale[::5] = rng.integers(-2, 2, len(scale[::5]))
    x = whole * 2.0**-digits * 2.0**scale
    if kind != "f16":
        x[::17] *= 2.0 ** (least / 2)  # products below the smallest normal number
    return x


def bits(x: Array, kind: str) -> Array:
    """Float64 that a format holds, as the format's bits."""
    if kind == "bf16":
        return (x.astype(np.float32).view(np.uint32) >> 16).astype(np.uint16)
    return x.astype({"f32": np.float32, "f16": np.float16}[kind]).view(
        f"u{2 if kind == 'f16' else 4}"
    )


FLOATS: dict[str, tuple[str, tuple[str, ...], Callable[..., Fraction]]] = {
    "fma.rn.f32 d, a, b, c;": ("f32", ("f32",) * 3, lambda a, b, c: a * b + c),
    "add.f32 d, a, b;": ("f32", ("f32",) * 2, lambda a, b: a + b),
    "sub.f32 d, a, b;": ("f32", ("f32",) * 2, lambda a, b: a - b),
    "mul.f32 d, a, b;": ("f32", ("f32",) * 2, lambda a, b: a * b),
    "div.rn.f32 d, a, 0f40400000;": ("f32", ("f32",), lambda a: a / 3),
    "fma.rn.bf16 d, a, b, c;": ("bf16", ("bf16",) * 3, lambda a, b, c: a * b + c),
    "fma.rn.f16 d, a, b, c;": ("f16", ("f16",) * 3, lambda a, b, c: a * b + c),
    "add.f16 d, a, b;": ("f16", ("f16",) * 2, lambda a, b: a + b),
    "mul.bf16 d, a, b;": ("bf16", ("bf16",) * 2, lambda a, b: a * b),
    "cvt.rn.bf16.f32 d, a;": ("bf16", ("f32",), lambda a: a),
    "cvt.rn.f16.f32 d, a;": ("f16", ("f32",), lambda a: a),
    "cvt.f32.bf16 d, a;": ("f32", ("bf16",), lambda a: a),
    "cvt.f32.f16 d, a;": ("f32", ("f16",), lambda a: a),
}


@pytest.mark.parametrize("code", FLOATS)
@pytest.mark.parametrize("seed", range(4))
def test_instruction_on_floats_rounds_once_and_to_even(code: str, seed: int) -> None:
    result, kinds, truth = FLOATS[code]
    values = [
        np.array([nearest(Fraction(x), kind) for x in hard_floats(10 * seed + i, "f32")])
        if code.startswith("cvt.rn")
        else hard_floats(10 * seed + i, kind)
        for i, kind in enumerate(kinds)
    ]
    if result == "f16":
        values = [np.clip(x, -60.0, 60.0) for x in values]
        values = [
            np.array([nearest(Fraction(y), kind) for y in x])
            for x, kind in zip(values, kinds, strict=True)
        ]
    sources = {name: bits(x, k) for name, x, k in zip("abc", values, kinds, strict=False)}
    d = execute(code, sources, "b32" if result == "f32" else "b16")
    expected = [
        nearest(truth(*(Fraction(float(x)) for x in row)), result)
        for row in zip(*values, strict=True)
    ]
    # A zero has the sign that its rule gives it; the exact sum has none.
    d[(d << 1) == 0] = 0
    np.testing.assert_array_equal(d, bits(np.array(expected), result))
