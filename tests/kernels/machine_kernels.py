"""Kernels that the machine is held to: between them they make Triton use most of what it has."""

# ruff: noqa: N803 - what is compiled in has its name in capitals, as in the kernels themselves

import triton
import triton.language as tl
from triton.experimental import gluon
from triton.experimental.gluon import language as gl


@triton.jit
def _fast_tanh(x):
    return tl.inline_asm_elementwise(
        "tanh.approx.f32 $0, $1;", "=f,f", [x], dtype=tl.float32, is_pure=True, pack=1
    )


@triton.jit(do_not_specialize=["n"])
def elementwise(x, y, n, BLOCK: tl.constexpr):
    i = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    a = tl.load(x + i, mask=i < n, other=0.0).to(tl.float32)
    t = _fast_tanh(a)
    s = tl.sigmoid(a) + tl.exp(t) + tl.log(tl.abs(a) + 1) + tl.sqrt(tl.abs(a))
    s += tl.rsqrt(tl.abs(a) + 1) + a / (t + 3) + tl.maximum(a, t) * tl.minimum(a, t)
    tl.store(y + i, s.to(y.dtype.element_ty), mask=i < n)


@triton.jit(do_not_specialize=["m", "steps"])
def carried(x, state, largest, m, steps, M: tl.constexpr, N: tl.constexpr):
    """A state [M, N] through all steps of x [steps, M, N], with sums over both axes."""
    r = tl.arange(0, M)[:, None]
    c = tl.arange(0, N)[None, :]
    acc = tl.zeros((M, N), tl.float32)
    for t in range(steps):
        a = tl.load(x + t * M * N + r * N + c, mask=r < m, other=0.0).to(tl.float32)
        acc = acc * 0.5 + tl.sum(a, 1)[:, None] * tl.sum(a, 0)[None, :]
    tl.store(state + r * N + c, acc, mask=r < m)
    tl.store(largest + tl.arange(0, N), tl.max(acc, 0))


@triton.jit(do_not_specialize=["k"])
def product(x, y, z, k, SIZE: tl.constexpr):
    """z = x y of [SIZE, k] and [k, SIZE]."""
    r = tl.arange(0, SIZE)[:, None]
    c = tl.arange(0, SIZE)[None, :]
    acc = tl.zeros((SIZE, SIZE), tl.float32)
    for i in range(0, k, SIZE):
        a = tl.load(x + r * k + i + c)
        b = tl.load(y + (i + r) * SIZE + c)
        acc = tl.dot(a, b, acc)
    tl.store(z + r * SIZE + c, acc)


@triton.jit
def transposed(x, y, M: tl.constexpr, N: tl.constexpr):
    """Reads and writes along rows, so that the values change lanes through shared memory."""
    r = tl.arange(0, M)
    c = tl.arange(0, N)
    a = tl.load(x + r[:, None] * N + c[None, :])
    tl.store(y + c[:, None] * M + r[None, :], tl.trans(a))


@triton.jit(do_not_specialize=["divisor"])
def whole_numbers(x, y, divisor, BLOCK: tl.constexpr):
    """Rows of y, [8, BLOCK], from integers of all sizes."""
    i = tl.arange(0, BLOCK)
    a = tl.load(x + i)
    tl.store(y + i, a // divisor)
    tl.store(y + BLOCK + i, a % divisor)
    tl.store(y + 2 * BLOCK + i, tl.umulhi(a, a ^ 0x5A5A))
    tl.store(y + 3 * BLOCK + i, ((a.to(tl.int64) * a) >> 17).to(tl.int32))
    tl.store(y + 4 * BLOCK + i, a.to(tl.int8).to(tl.int32) + a.to(tl.int16).to(tl.int32))
    tl.store(y + 5 * BLOCK + i, (a << 3) ^ (a >> 5) | (a.to(tl.uint32) >> 7).to(tl.int32))
    tl.store(y + 6 * BLOCK + i, tl.sum(a) + tl.max(a) + tl.argmax(a, 0))
    tl.store(y + 7 * BLOCK + i, tl.where(a > 0, a // 7, tl.cumsum(a, 0)))


@triton.jit
def converted(x, y, BLOCK: tl.constexpr):
    """Rows of y, [6, BLOCK], all float32, of what other types make of x."""
    i = tl.arange(0, BLOCK)
    a = tl.load(x + i)
    tl.store(y + i, a.to(tl.bfloat16).to(tl.float32))
    tl.store(y + BLOCK + i, a.to(tl.float16).to(tl.float32))
    tl.store(y + 2 * BLOCK + i, a.to(tl.int32).to(tl.float32))
    tl.store(y + 3 * BLOCK + i, tl.floor(a) + 100 * tl.ceil(a))
    b = a.to(tl.bfloat16)
    tl.store(y + 4 * BLOCK + i, tl.fma(b, b, b).to(tl.float32))
    tl.store(y + 5 * BLOCK + i, (a.to(tl.float16) + a.to(tl.float16)).to(tl.float32))


@triton.jit
def counted(x, counts, total, BINS: tl.constexpr, BLOCK: tl.constexpr):
    i = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    a = tl.load(x + i)
    tl.atomic_add(counts + a % BINS, 1)
    tl.atomic_add(total, tl.sum(a.to(tl.float32)))


@triton.jit
def reversed_by_scratch(x, y, scratch, BLOCK: tl.constexpr, WAITS: tl.constexpr):
    """What one thread leaves in global memory another takes up."""
    i = tl.arange(0, BLOCK)
    own = scratch + tl.program_id(0) * BLOCK
    tl.store(own + i, 2 * tl.load(x + tl.program_id(0) * BLOCK + i))
    if WAITS:
        tl.debug_barrier()
    tl.store(y + tl.program_id(0) * BLOCK + i, tl.load(own + BLOCK - 1 - i))


@triton.jit
def shared_by_programs(x, y, BLOCK: tl.constexpr):
    """Each program writes its part, and reads that of the next."""
    i = tl.arange(0, BLOCK)
    program = tl.program_id(0)
    tl.store(y + program * BLOCK + i, tl.load(x + program * BLOCK + i))
    tl.debug_barrier()
    beside = tl.load(y + (program + 1) % tl.num_programs(0) * BLOCK + i)
    tl.store(x + program * BLOCK + i, beside)


@triton.jit
def programs_of_their_own(x, y, BLOCK: tl.constexpr):
    """How many steps a program makes, and whether it does a part, is in what it reads."""
    program = tl.program_id(0) + tl.program_id(1) * tl.num_programs(0)
    i = tl.arange(0, BLOCK)
    acc = tl.zeros([BLOCK], tl.float32)
    steps = tl.load(x + program)
    t = 0
    while t < steps:
        acc += tl.sum(tl.where(i < t, 1.0, 0.0))
        t += 1
    if steps % 2 == 1:
        acc = -acc
        tl.store(y + program * 2 * BLOCK + BLOCK + i, acc)
    tl.store(y + program * 2 * BLOCK + i, acc)


@triton.jit(do_not_specialize=["first"])
def copied_from(x, y, first, BLOCK: tl.constexpr):
    i = tl.arange(0, BLOCK)
    tl.store(y + i, tl.load(x + first + i))


@gluon.jit(do_not_specialize=["steps"])
def stashed(x, y, steps, N: gl.constexpr, KEPT: gl.constexpr):
    """A state [N, N] on 4 x 8 lanes; the states of all steps are kept, then read from the last.

    x: [steps, N], y: [steps, N, N]; no more than KEPT steps.  It is read on 8 x 4 lanes, so that
    other threads read what one wrote.
    """
    layout: gl.constexpr = gl.BlockedLayout([1, 4], [4, 8], [1, 1], [1, 0])
    read_layout: gl.constexpr = gl.BlockedLayout([4, 1], [8, 4], [1, 1], [0, 1])
    stash_layout: gl.constexpr = gl.SwizzledSharedLayout(1, 1, 1, [1, 0])
    row_layout: gl.constexpr = gl.SliceLayout(1, layout)
    column_layout: gl.constexpr = gl.SliceLayout(0, layout)
    r = gl.arange(0, N, layout=row_layout)
    c = gl.arange(0, N, layout=column_layout)
    stash = gl.allocate_shared_memory(gl.float32, [KEPT, N, N], stash_layout)
    state = gl.zeros([N, N], gl.float32, layout=layout)
    for t in range(steps):
        a = gl.load(x + t * N + r)
        b = gl.load(x + t * N + c)
        read = gl.sum(state * gl.expand_dims(a, 1), 0)
        rest = gl.expand_dims(b - read, 0)
        state = gl.inline_asm_elementwise(
            "tanh.approx.f32 $0, $1;",
            "=f,f",
            [0.9 * state + gl.expand_dims(a, 1) * rest],
            gl.float32,
            is_pure=True,
            pack=1,
        )
        stash.index(t).store(state)
    r = gl.expand_dims(gl.arange(0, N, layout=gl.SliceLayout(1, read_layout)), 1)
    c = gl.expand_dims(gl.arange(0, N, layout=gl.SliceLayout(0, read_layout)), 0)
    for back in range(steps):
        kept = stash.index(steps - 1 - back).load(read_layout)
        gl.store(y + back * N * N + r * N + c, kept)
