"""Forward and backward Triton kernels of MinGRU and MinLSTM, each one pass over memory.

A program owns BLOCK channels of one sequence and advances through time in tiles of SEGMENTS x STEPS
positions.  A tensor [SEGMENTS, BLOCK] holds one position of every segment, and a tuple of STEPS
tensors is a tile: warps process different segments in parallel, and the steps within a segment need
no communication between lanes.  Each tile takes two passes over its steps; between them a scan over
the SEGMENTS, the only communication between warps, computes each segment's initial state.

The forward kernel checkpoints the initial state of each segment in float32; the backward kernel
recomputes all gates from there.  The states returned as results could serve instead, at 2 bytes
per position in bfloat16 rather than a quarter byte; but a gate's gradient is the difference of such
a state and a candidate, and rounding the state alone adds a relative error of 1.9e-3, as much as
rounding the gradient itself.
"""

import triton
import triton.language as tl

INTERPRETED = bool(triton.knobs.runtime.interpret)
"""Whether kernels run in Triton's interpreter, which accepts tensors on any device."""

_INTERPRETED: tl.constexpr = tl.constexpr(INTERPRETED)
_MINUS_LOG2_E: tl.constexpr = tl.constexpr(-1.4426950408889634)


@triton.jit(do_not_specialize=["length", "batch_stride", "n_checkpoints"])
def gated_scan_forward_kernel(
    p_scores,  # [B, T, SCORES * WIDTH]: candidates, then gates
    p_initial,  # [B, WIDTH], or None for zero
    p_hidden,  # [B, T, WIDTH]
    p_checkpoints,  # [B, n_checkpoints, WIDTH]: the state before each segment
    p_final,  # [B, WIDTH]
    length,
    batch_stride,
    n_checkpoints,
    SCORES: tl.constexpr,
    WIDTH: tl.constexpr,
    ROW: tl.constexpr,
    ALIGNED: tl.constexpr,
    SEGMENTS: tl.constexpr,
    STEPS: tl.constexpr,
    BLOCK: tl.constexpr,
    EXACT: tl.constexpr,
):
    """Compute the states of BLOCK channels of one sequence.

    ROW is the time stride of the scores, ALIGNED a power of two that divides `batch_stride`.
    EXACT means that tiles and blocks divide evenly, so no masks are needed.
    """
    batch = (tl.program_id(0) // tl.cdiv(WIDTH, BLOCK)).to(tl.int64)
    column = (tl.program_id(0) % tl.cdiv(WIDTH, BLOCK)) * BLOCK + tl.arange(0, BLOCK)[None, :]
    segment = tl.arange(0, SEGMENTS)[:, None]
    inside = column < WIDTH
    first = segment * STEPS
    p_read = p_scores + tl.multiple_of(batch * batch_stride, ALIGNED) + first * ROW + column
    p_write = p_hidden + batch * length * WIDTH + first * WIDTH + column
    p_mark = p_checkpoints + (batch * n_checkpoints + segment) * WIDTH + column
    state = tl.zeros([SEGMENTS, BLOCK], tl.float32)
    if p_initial is not None:
        state += tl.load(p_initial + batch * WIDTH + column, mask=inside, other=0.0)

    for start in range(0, length, SEGMENTS * STEPS):
        # Valid steps of each segment; 0 for channels out of bounds.
        steps = tl.where(inside, length - start - first, 0)
        scores = ()
        for j in tl.static_range(STEPS):
            for n in tl.static_range(SCORES):
                p_score = p_read + (j * ROW + n * WIDTH)
                scores += (tl.load(p_score, mask=None if EXACT else j < steps),)
        kept = ()
        written = ()
        for j in tl.static_range(STEPS):
            keep, write = _gate_weights(scores, j, SCORES)
            added = write * _positive(scores[SCORES * j].to(tl.float32))
            kept += (keep if EXACT else tl.where(j < steps, keep, 1.0),)
            written += (added if EXACT else tl.where(j < steps, added, 0.0),)
        state, after = _scan_segments(state, kept, written, segment, SEGMENTS, STEPS)
        tl.store(p_mark, state, mask=None if EXACT else steps > 0)
        for j in tl.static_range(STEPS):
            state = kept[j] * state + written[j]
            out = state.to(p_hidden.dtype.element_ty)
            tl.store(p_write + j * WIDTH, out, mask=None if EXACT else j < steps)
        state = after
        p_read += SEGMENTS * STEPS * ROW
        p_write += SEGMENTS * STEPS * WIDTH
        p_mark += SEGMENTS * WIDTH
    _store_first(p_final + batch * WIDTH + column, state, inside, segment)


@triton.jit(do_not_specialize=["length", "batch_stride", "n_checkpoints"])
def gated_scan_backward_kernel(
    p_scores,  # as in the forward kernel, also the strides
    p_checkpoints,
    p_d_hidden,  # [B, T, WIDTH]
    p_d_final,  # [B, WIDTH], or None for zero
    p_d_scores,  # [B, T, SCORES * WIDTH]
    p_d_initial,  # [B, WIDTH]
    length,
    batch_stride,
    n_checkpoints,
    SCORES: tl.constexpr,
    WIDTH: tl.constexpr,
    ROW: tl.constexpr,
    ALIGNED: tl.constexpr,
    SEGMENTS: tl.constexpr,
    STEPS: tl.constexpr,
    BLOCK: tl.constexpr,
    EXACT: tl.constexpr,
):
    """Compute the gradients of the scores of BLOCK channels of one sequence.

    With G_t the total gradient of h_t, h_{t-1} receives `keep_t G_t` from later positions;
    `_scan_segments` computes it over steps and segments in reverse order.
    """
    batch = (tl.program_id(0) // tl.cdiv(WIDTH, BLOCK)).to(tl.int64)
    column = (tl.program_id(0) % tl.cdiv(WIDTH, BLOCK)) * BLOCK + tl.arange(0, BLOCK)[None, :]
    order = tl.arange(0, SEGMENTS)[:, None]
    segment = SEGMENTS - 1 - order
    inside = column < WIDTH
    first = segment * STEPS
    tile = tl.cdiv(length, SEGMENTS * STEPS) - 1
    start = tile.to(tl.int64) * (SEGMENTS * STEPS)
    p_read = p_scores + tl.multiple_of(batch * batch_stride, ALIGNED)
    p_read += start * ROW + first * ROW + column
    p_given = p_d_hidden + (batch * length + start) * WIDTH + first * WIDTH + column
    p_write = p_d_scores + (batch * length + start) * (SCORES * WIDTH)
    p_write += first * (SCORES * WIDTH) + column
    p_mark = p_checkpoints + (batch * n_checkpoints + tile * SEGMENTS + segment) * WIDTH + column
    later = tl.zeros([SEGMENTS, BLOCK], tl.float32)
    if p_d_final is not None:
        later += tl.load(p_d_final + batch * WIDTH + column, mask=inside, other=0.0)

    while tile >= 0:
        steps = tl.where(inside, length - tile * (SEGMENTS * STEPS) - first, 0)
        state = tl.load(p_mark, mask=None if EXACT else steps > 0)
        scores = ()
        given = ()
        for j in tl.static_range(STEPS):
            for n in tl.static_range(SCORES):
                p_score = p_read + (j * ROW + n * WIDTH)
                scores += (tl.load(p_score, mask=None if EXACT else j < steps),)
            given += (tl.load(p_given + j * WIDTH, mask=None if EXACT else j < steps),)
        kept = ()
        slopes = ()
        for j in tl.static_range(STEPS):
            keep, write = _gate_weights(scores, j, SCORES)
            candidate = scores[SCORES * j].to(tl.float32)
            value = _positive(candidate)
            slopes += (write * tl.where(candidate >= 0, 1.0, value - value * value),)
            # Derivative with respect to logit(keep); MinGRU's gate is minus that logit.
            logit = (state - value) * (keep * write)
            if SCORES == 2:
                slopes += (-logit,)
            else:
                slopes += (
                    logit * _sigmoid_neg(scores[3 * j + 1].to(tl.float32)),
                    -logit * _sigmoid_neg(scores[3 * j + 2].to(tl.float32)),
                )
            state = keep * state + write * value
            kept += (keep if EXACT else tl.where(j < steps, keep, 1.0),)
        kept_back = ()
        given_back = ()
        for j in tl.static_range(STEPS - 1, -1, -1):
            kept_back += (kept[j],)
            back = kept[j] * given[j].to(tl.float32)
            given_back += (back if EXACT else tl.where(j < steps, back, 0.0),)
        later, earlier = _scan_segments(later, kept_back, given_back, order, SEGMENTS, STEPS)
        for j in tl.static_range(STEPS - 1, -1, -1):
            whole = later + given[j].to(tl.float32)
            for n in tl.static_range(SCORES):
                slope = (whole * slopes[SCORES * j + n]).to(p_d_scores.dtype.element_ty)
                p_slope = p_write + (SCORES * j + n) * WIDTH
                tl.store(p_slope, slope, mask=None if EXACT else j < steps)
            before = kept[j] * whole
            later = before if EXACT else tl.where(j < steps, before, later)
        later = earlier
        tile -= 1
        p_read -= SEGMENTS * STEPS * ROW
        p_given -= SEGMENTS * STEPS * WIDTH
        p_write -= SEGMENTS * STEPS * SCORES * WIDTH
        p_mark -= SEGMENTS * WIDTH
    _store_first(p_d_initial + batch * WIDTH + column, later, inside, order)


@triton.jit
def _scan_segments(state, kept, added, segment, SEGMENTS: tl.constexpr, STEPS: tl.constexpr):
    """Return the state before each segment and after the last, of steps `s <- kept s + added`.

    `state` is the one before the first segment; only that segment's row of it is valid.
    """
    product = kept[0]
    total = added[0]
    for j in tl.static_range(1, STEPS):
        product = kept[j] * product
        total = kept[j] * total + added[j]
    total = tl.where(segment == 0, product * state + total, total)
    one = tl.full(total.shape, 1.0, tl.float32)
    _, ends, _, starts = tl.associative_scan((product, total, one, one - one), 0, _combine)
    last = tl.sum(tl.where(segment == SEGMENTS - 1, ends, 0.0), 0, keep_dims=True)
    return tl.where(segment == 0, state, starts), tl.broadcast_to(last, ends.shape)


@triton.jit
def _combine(product, total, part, start, product_2, total_2, part_2, start_2):
    """Compose two runs of segments: a run maps s to `product s + total` after its last segment and
    to `part s + start` before it.  Gathering the neighbor's end would save the second pair, but
    Triton would then pick another layout and convert every step between it and that of the loads.
    """
    return (
        product * product_2,
        total * product_2 + total_2,
        product * part_2,
        total * part_2 + start_2,
    )


@triton.jit
def _gate_weights(scores, j: tl.constexpr, SCORES: tl.constexpr):
    """Return the weights keep and write at step j, each with a small relative error.

    Exponents are never positive, so nothing overflows.
    """
    if SCORES == 2:
        gate = scores[2 * j + 1].to(tl.float32)
        e = _exp_neg(tl.abs(gate))
        larger = _reciprocal(1.0 + e)
        smaller = e * larger
        return tl.where(gate >= 0, smaller, larger), tl.where(gate >= 0, larger, smaller)
    else:  # noqa: RET505 - Triton compiles code after a return
        forget = scores[3 * j + 1].to(tl.float32)
        write = scores[3 * j + 2].to(tl.float32)
        # sigma(x) = exp(min(x, 0)) / (1 + exp(-|x|)), and only the ratio of two is needed.
        a = 1.0 + _exp_neg(tl.abs(forget))
        b = 1.0 + _exp_neg(tl.abs(write))
        lead = tl.minimum(forget, 0.0) - tl.minimum(write, 0.0)
        ahead = tl.where(lead >= 0, b, a)
        behind = tl.where(lead >= 0, a, b) * _exp_neg(tl.abs(lead))
        inverse = _reciprocal(ahead + behind)
        larger = ahead * inverse
        smaller = behind * inverse
        return tl.where(lead >= 0, larger, smaller), tl.where(lead >= 0, smaller, larger)


@triton.jit
def _positive(x):
    """phi(x): x + 1/2 for x >= 0, sigmoid(x) below, which is 0 where exp(-x) overflows."""
    return tl.where(x >= 0, x + 0.5, _reciprocal(1.0 + _exp_neg(x)))


@triton.jit
def _sigmoid_neg(x):
    e = _exp_neg(tl.abs(x))
    return tl.where(x >= 0, e, 1.0) * _reciprocal(1.0 + e)


@triton.jit
def _exp_neg(x):
    """exp(-x), flushed to 0 below 2**-126; Triton's exp spends three instructions on subnormals."""
    power = x * _MINUS_LOG2_E
    if _INTERPRETED:
        return tl.exp2(power)
    return tl.inline_asm_elementwise(
        "ex2.approx.ftz.f32 $0, $1;", "=f,f", [power], dtype=tl.float32, is_pure=True, pack=1
    )


@triton.jit
def _reciprocal(x):
    """1 / x for x >= 1, to one ulp."""
    if _INTERPRETED:
        return 1.0 / x
    return tl.inline_asm_elementwise(
        "rcp.approx.ftz.f32 $0, $1;", "=f,f", [x], dtype=tl.float32, is_pure=True, pack=1
    )


@triton.jit
def _store_first(p_to, value, inside, segment):
    """Store only the row of segment 0."""
    tl.store(tl.broadcast_to(p_to, value.shape), value, mask=inside & (segment == 0))
