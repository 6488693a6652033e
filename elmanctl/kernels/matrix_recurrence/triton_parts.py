"""What the forward and the backward kernel of the matrix recurrence compute alike; no torch.

A state is a tuple of tiles [BK, G, BV]: keys, heads, values.  With keys on the first axis a lane
holds whole columns of the state, and sums over keys need no other lane.  A tuple of small tiles and
not one large one, since a sum over tiles is a chain of fused products and sums, which a sum inside
a tile is not, and since numbers of keys that are no powers of two need no padding.

Keys and queries are brought to unit length for EVERY positions at once, by all lanes, and left in
memory that only this program uses.  A row of a small tile is then loaded by every lane as it needs
it, with no exchange between lanes: such memory stays in the cache.
"""

import triton
import triton.language as tl


@triton.jit
def squash(x, FAST: tl.constexpr):
    """tanh: by the special-function unit with FAST, else to an absolute 1e-7."""
    if FAST:
        # Declared impure, or Triton 3.6 computes it again for every layout that the state is in.
        return tl.inline_asm_elementwise(
            "tanh.approx.f32 $0, $1;", "=f,f", [x], dtype=tl.float32, is_pure=False, pack=1
        )
    return 2 * tl.sigmoid(2 * x) - 1


@triton.jit
def silu(x, FAST: tl.constexpr):
    """x sigmoid(x); the sigmoid is taken as half a tanh, which is one instruction with FAST."""
    if FAST:
        half = 0.5 * x
        return half + half * squash(half, FAST)
    return x * tl.sigmoid(x)


@triton.jit
def silu_slope(x, FAST: tl.constexpr):
    """The derivative of silu."""
    share = 0.5 + 0.5 * squash(0.5 * x, FAST) if FAST else tl.sigmoid(x)
    return share * (1 + x * (1 - share))


@triton.jit
def product(a, b):
    """a b, rounded, however it is summed up.

    Each lane adds its own product to that of another lane.  Were its own fused into that addition,
    two lanes would have the same sum with different roundings, and write both to one address.
    """
    return tl.fma(a, b, 0.0)


@triton.jit
def address(
    raw, ACTIVATE: tl.constexpr, NORMALIZE: tl.constexpr, EPS: tl.constexpr, FAST: tl.constexpr
):
    """What a state is read at: raw [.., BN] in float32, through silu and over its length."""
    x = raw.to(tl.float32)
    if ACTIVATE:
        x = silu(x, FAST)
    if NORMALIZE:
        x = x * tl.rsqrt(tl.sum(x * x, 2, keep_dims=True) + EPS)
    return x


@triton.jit
def from_address(
    raw, d_x, ACTIVATE: tl.constexpr, NORMALIZE: tl.constexpr, EPS: tl.constexpr, FAST: tl.constexpr
):
    """The gradient of raw [.., BN] from that of what `address` makes of it."""
    raw = raw.to(tl.float32)
    x = silu(raw, FAST) if ACTIVATE else raw
    if NORMALIZE:
        scale = tl.rsqrt(tl.sum(x * x, 2, keep_dims=True) + EPS)
        unit = x * scale
        d_x = scale * (d_x - unit * tl.sum(unit * d_x, 2, keep_dims=True))
    if ACTIVATE:
        d_x = d_x * silu_slope(raw, FAST)
    return d_x
