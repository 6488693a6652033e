"""Device functions shared by the forward and backward kernels of the matrix recurrence; no torch.

A state is a tuple of tiles [BK, G, BV]: keys, heads, values.  With keys on the first axis a lane
holds whole columns of the state, so sums over keys stay within a lane.  Many small tiles are better
than one large tile because a sum over tiles is a chain of FMAs, unlike a sum within a tile, and
because a number of keys that is not a power of two needs no padding.

All lanes together normalize the keys and queries of EVERY positions and store them in memory
private to the program, which stays in the cache.  Each lane then loads the rows of its tile without
any exchange between lanes.
"""

import triton
import triton.language as tl


@triton.jit
def squash(x, FAST: tl.constexpr):
    """tanh(x), with FAST on the special-function unit, else to an absolute error of 1e-7."""
    if FAST:
        # Declared impure because Triton 3.6 would recompute it for every layout of the state.
        return tl.inline_asm_elementwise(
            "tanh.approx.f32 $0, $1;", "=f,f", [x], dtype=tl.float32, is_pure=False, pack=1
        )
    return 2 * tl.sigmoid(2 * x) - 1


@triton.jit
def silu(x, FAST: tl.constexpr):
    """x sigmoid(x); with FAST the sigmoid is expressed as a tanh, a single instruction."""
    if FAST:
        half = 0.5 * x
        return half + half * squash(half, FAST)
    return x * tl.sigmoid(x)


@triton.jit
def silu_grad(x, FAST: tl.constexpr):
    """The derivative of silu."""
    share = 0.5 + 0.5 * squash(0.5 * x, FAST) if FAST else tl.sigmoid(x)
    return share * (1 + x * (1 - share))


@triton.jit
def product(a, b):
    """a b, rounded on its own even where it feeds a sum.

    In a cross-lane reduction each lane adds its product to that of another lane.  If it fused its
    own into an FMA, the two lanes would round the same sum differently and write both results to
    one address.
    """
    return tl.fma(a, b, 0.0)


@triton.jit
def address(
    raw, ACTIVATE: tl.constexpr, NORMALIZE: tl.constexpr, EPS: tl.constexpr, FAST: tl.constexpr
):
    """Return the key or query in float32 from raw [.., BN]: silu, then unit length."""
    x = raw.to(tl.float32)
    if ACTIVATE:
        x = silu(x, FAST)
    if NORMALIZE:
        x = x * tl.rsqrt(tl.sum(x * x, 2, keep_dims=True) + EPS)
    return x


@triton.jit
def address_grad(
    raw, d_x, ACTIVATE: tl.constexpr, NORMALIZE: tl.constexpr, EPS: tl.constexpr, FAST: tl.constexpr
):
    """Return the gradient of raw [.., BN] from the gradient d_x of `address(raw)`."""
    raw = raw.to(tl.float32)
    x = silu(raw, FAST) if ACTIVATE else raw
    if NORMALIZE:
        scale = tl.rsqrt(tl.sum(x * x, 2, keep_dims=True) + EPS)
        unit = x * scale
        d_x = scale * (d_x - unit * tl.sum(unit * d_x, 2, keep_dims=True))
    if ACTIVATE:
        d_x = d_x * silu_grad(raw, FAST)
    return d_x
