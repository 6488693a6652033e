"""Kernels whose machine code is known beforehand, to test what reads machine code."""

import triton
import triton.language as tl
from triton.experimental import gluon
from triton.experimental.gluon import language as gl


@triton.jit
def _tanh(x):
    return tl.inline_asm_elementwise(
        "tanh.approx.f32 $0, $1;", "=f,f", [x], dtype=tl.float32, is_pure=True, pack=1
    )


@triton.jit(do_not_specialize=["steps"])
def one_loop(p_x, p_y, steps):
    """Each step of each lane: a load, a sum over the lanes, a tanh that waits for the last one."""
    lane = tl.arange(0, 32)
    state = tl.zeros([32], tl.float32)
    for t in range(steps):
        x = tl.load(p_x + t * 32 + lane)
        state = _tanh(state + tl.sum(x * state))
        tl.store(p_y + t * 32 + lane, state)


@triton.jit(do_not_specialize=["steps"])
def short_loop(p_x, p_y, steps):
    """So little in a step that compilers write several of them out, and a loop for the rest."""
    lane = tl.arange(0, 32)
    state = tl.zeros([32], tl.float32)
    for t in range(steps):
        state = _tanh(state * tl.load(p_x + t * 32 + lane))
        tl.store(p_y + t * 32 + lane, state)


@triton.jit(do_not_specialize=["segments", "length"])
def nested_loops(p_x, p_y, segments, length):
    """Segments of `length` steps, gone through twice: with 32 tanh a step, then with 64."""
    place = tl.arange(0, 1024)
    state = tl.zeros([1024], tl.float32)
    for segment in range(segments):
        part = tl.load(p_y + segment * 1024 + place)
        for t in range(length):
            part = _tanh(part + tl.load(p_x + segment * length + t))
        for t in range(length):
            part = _tanh(_tanh(part * tl.load(p_x + segment * length + t)))
        state += part
        tl.store(p_y + segment * 1024 + place, state)


@triton.jit(do_not_specialize=["steps"])
def many_values(p_x, p_y, steps):
    """128 values a lane, all alive at once."""
    place = tl.arange(0, 4096)
    state = tl.load(p_x + place)
    for t in range(steps):
        state = _tanh(state * tl.load(p_x + t))
    tl.store(p_y + place, state)


@triton.jit
def specialized(p_x, number):
    """Triton compiles it for each of several kinds of numbers."""
    tl.store(p_x, number)


@gluon.jit(do_not_specialize=["steps"])
def gluon_loop(p_x, p_y, steps):
    """`one_loop` in Gluon, with the layout written out."""
    layout: gl.constexpr = gl.BlockedLayout([1], [32], [1], [0])
    lane = gl.arange(0, 32, layout=layout)
    state = gl.zeros([32], gl.float32, layout=layout)
    for t in range(steps):
        x = gl.load(p_x + t * 32 + lane)
        total = gl.sum(x * state, 0)
        state = gl.inline_asm_elementwise(
            "tanh.approx.f32 $0, $1;", "=f,f", [state + total], gl.float32, is_pure=True, pack=1
        )
        gl.store(p_y + t * 32 + lane, state)
