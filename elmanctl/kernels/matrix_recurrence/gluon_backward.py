"""Backward kernel of the matrix recurrence in Gluon, with explicit layouts; imports no torch.

It is equivalent to the kernel in plain Triton for a state with tanh that is written everywhere and
not blended.  The Triton kernel reduces over values across all lanes of a warp.  Here a warp is LK
by 32 / LK lanes and each lane owns a small block of the state; a lane's partial sums over its own
values go through shared memory once and are redistributed to one key per lane.

Keys, queries and the other data of a segment's positions are in shared memory, where a gradient
overwrites its input row after the last use.  Every other state of a segment is stored there too;
the states between are recomputed from the saved deltas, which needs no reduction and costs little
more than loading them.
"""

from triton.experimental import gluon
from triton.experimental.gluon import language as gl

INTEGERS = (
    *("q_batch", "q_time", "q_head", "k_batch", "k_time", "k_head"),
    *("v_batch", "v_time", "v_head", "gate_batch", "gate_time", "gate_head"),
    *("alpha_batch", "alpha_time", "alpha_head", "beta_batch", "beta_time", "beta_head"),
    *("B", "T", "H"),
)


# The method became public after Triton 3.6.
_CAN_REINTERPRET = gl.constexpr(hasattr(gl.shared_memory_descriptor, "reinterpret"))


@gluon.jit
def _reinterpret(memory, shape: gl.constexpr, layout: gl.constexpr):
    """View float32 shared memory with another shape and layout."""
    if _CAN_REINTERPRET:
        return memory.reinterpret(gl.float32, shape, layout)
    else:
        return memory._reinterpret(gl.float32, shape, layout)


@gluon.jit
def _squash(x):
    return gl.inline_asm_elementwise(
        "tanh.approx.f32 $0, $1;", "=f,f", [x], dtype=gl.float32, is_pure=True, pack=1
    )


@gluon.jit
def _silu(x):
    half = 0.5 * x
    return half + half * _squash(half)


@gluon.jit
def _silu_grad(x):
    share = 0.5 + 0.5 * _squash(0.5 * x)
    return share * (1 + x * (1 - share))


@gluon.jit
def _address(raw, ACTIVATE: gl.constexpr, NORMALIZE: gl.constexpr, EPS: gl.constexpr):
    x = raw.to(gl.float32)
    if ACTIVATE:
        x = _silu(x)
    if NORMALIZE:
        x = x * gl.rsqrt(gl.sum(x * x, 1) + EPS)[:, None]
    return x


@gluon.jit
def _address_grad(raw, d_x, ACTIVATE: gl.constexpr, NORMALIZE: gl.constexpr, EPS: gl.constexpr):
    raw = raw.to(gl.float32)
    x = _silu(raw) if ACTIVATE else raw
    if NORMALIZE:
        scale = gl.rsqrt(gl.sum(x * x, 1) + EPS)[:, None]
        unit = x * scale
        d_x = scale * (d_x - unit * gl.sum(unit * d_x, 1)[:, None])
    if ACTIVATE:
        d_x = d_x * _silu_grad(raw)
    return d_x


@gluon.jit
def _sum_over_keys(x):
    """Sum [LK, NI, BV] over keys, within lanes first."""
    return gl.sum(gl.sum(x, 1), 0)


@gluon.jit
def _sum_over_values(x):
    """Sum [LK, NI, values] over values; return [LK, NI] with one key per lane."""
    LK: gl.constexpr = x.shape[0]
    NI: gl.constexpr = x.shape[1]
    LV: gl.constexpr = 32 // LK
    INNER: gl.constexpr = LV if NI > LV else NI
    REST: gl.constexpr = LV // INNER
    ONE_KEY: gl.constexpr = gl.BlockedLayout([1, 1, INNER], [LK, INNER, REST], [1, 1, 1], [2, 1, 0])
    lane_sums = gl.sum(x.reshape([LK, NI, LV, x.shape[2] // LV]), 3)
    return gl.sum(gl.convert_layout(lane_sums, ONE_KEY), 2)


@gluon.jit
def _row(rows, row, LAYOUT: gl.constexpr):
    return rows.index(row).load(LAYOUT)


@gluon.jit
def _step_back(
    t, row, decay, rate, before, after, d_after,
    key_rows, query_rows, delta_rows, d_read_rows, d_alpha, d_beta, H,
    STATE: gl.constexpr, HAS_GATE: gl.constexpr, HAS_BETA: gl.constexpr,
):  # fmt: skip
    """Step back over one position: write its gradients to its rows, return that of `before`."""
    KEYS: gl.constexpr = gl.SliceLayout(2, STATE)
    VALUES: gl.constexpr = gl.SliceLayout(0, gl.SliceLayout(1, STATE))
    key = _row(key_rows, row, KEYS)[:, :, None]
    query = _row(query_rows, row, KEYS)[:, :, None]
    d_read = _row(d_read_rows, row, VALUES)[None, None, :]
    delta = _row(delta_rows, row, VALUES)
    query_rows.index(row).store(_sum_over_values(after * d_read))
    if HAS_GATE:
        d_read_rows.index(row).store(_sum_over_keys(query * after))
    product = d_after + query * d_read
    product -= product * after * after
    d_delta = _sum_over_keys(key * product)
    if HAS_BETA:
        gl.store(d_beta + t * H, gl.sum(delta * d_delta, 0))
        d_delta *= rate
        delta *= rate
    delta_rows.index(row).store(d_delta)
    d_delta = d_delta[None, None, :]
    # A single sum, rather than a difference of two, lets the compiler contract it into FMAs.
    terms = gl.join(product * delta[None, None, :], before * -d_delta)
    LK: gl.constexpr = before.shape[0]
    key_rows.index(row).store(
        _sum_over_values(terms.reshape([LK, before.shape[1], before.shape[2] * 2]))
    )
    gl.store(d_alpha + t * H, gl.sum(gl.sum(gl.sum(product * before, 1), 1), 0))
    return decay * product - key * d_delta


@gluon.jit(do_not_specialize=INTEGERS)
def matrix_recurrence_backward_in_blocks_kernel(
    q, k, v, alpha, beta, gate, checkpoints, d_output, d_final_state,
    d_q, d_k, d_v, d_alpha, d_beta, d_gate, d_initial_state,
    q_batch, q_time, q_head, k_batch, k_time, k_head,
    v_batch, v_time, v_head, gate_batch, gate_time, gate_head,
    alpha_batch, alpha_time, alpha_head, beta_batch, beta_time, beta_head,
    B, T, H,
    N: gl.constexpr, M: gl.constexpr, CHUNK: gl.constexpr, BV: gl.constexpr, LK: gl.constexpr,
    EVERY: gl.constexpr, UNIT: gl.constexpr,
    ACTIVATE: gl.constexpr, NORMALIZE: gl.constexpr, EPS: gl.constexpr,
):  # fmt: skip
    """Walk back through [B, T] for one head and BV of its values.

    Arguments are those of the kernel in plain Triton, except that d_output is contiguous, all
    strides of q, k, v and gate are in units of UNIT elements, and d_alpha has one entry per head.
    """
    LV: gl.constexpr = 32 // LK
    NI: gl.constexpr = N // LK
    # A state, [LK, NI, BV]: lanes over groups of keys and values, the keys of a lane contiguous.
    STATE: gl.constexpr = gl.BlockedLayout([1, NI, BV // LV], [LK, 1, LV], [1, 1, 1], [1, 2, 0])
    KEYS: gl.constexpr = gl.SliceLayout(2, STATE)
    VALUES: gl.constexpr = gl.SliceLayout(0, gl.SliceLayout(1, STATE))
    ALONE: gl.constexpr = gl.SliceLayout(1, gl.SliceLayout(2, STATE))
    # A segment, [EVERY, N] or [EVERY, BV].
    SEGMENT: gl.constexpr = gl.BlockedLayout([1, 4], [4, 8], [1, 1], [1, 0])

    i_batch = (gl.program_id(0) // H).to(gl.int64)
    i_head = gl.program_id(0) % H
    i_value = gl.program_id(1) * BV
    i_part = gl.program_id(1).to(gl.int64) * B + i_batch
    # Products with these may overflow 32 bits.
    H = H.to(gl.int64)
    q_wide = q_time.to(gl.int64) * UNIT
    k_wide = k_time.to(gl.int64) * UNIT
    v_wide = v_time.to(gl.int64) * UNIT
    gate_wide = gate_time.to(gl.int64) * UNIT

    o_time = gl.arange(0, EVERY, gl.SliceLayout(1, SEGMENT))
    o_key = gl.arange(0, N, gl.SliceLayout(0, SEGMENT))[None, :]
    o_value = gl.arange(0, BV, gl.SliceLayout(0, SEGMENT))[None, :]
    o_q = o_time[:, None] * q_time * UNIT + o_key
    o_k = o_time[:, None] * k_time * UNIT + o_key
    o_v = o_time[:, None] * v_time * UNIT + o_value
    o_gate = o_time[:, None] * gate_time * UNIT + o_value
    q += i_batch * q_batch * UNIT + i_head * q_head * UNIT
    k += i_batch * k_batch * UNIT + i_head * k_head * UNIT
    v += i_batch * v_batch * UNIT + i_head * v_head * UNIT + i_value
    alpha += i_batch * alpha_batch + i_head * alpha_head
    d_output += (i_batch * T * H + i_head) * M + i_value
    d_q += (i_part * T * H + i_head) * N
    d_k += (i_part * T * H + i_head) * N
    d_v += (i_batch * T * H + i_head) * M + i_value
    d_alpha += i_part * T * H + i_head
    if beta is not None:
        beta += i_batch * beta_batch + i_head * beta_head
        d_beta += i_part * T * H + i_head
    if gate is not None:
        gate += i_batch * gate_batch * UNIT + i_head * gate_head * UNIT + i_value
        d_gate += (i_batch * T * H + i_head) * M + i_value

    s_group = gl.arange(0, LK, ALONE)[:, None, None]
    s_inner = gl.arange(0, NI, gl.SliceLayout(0, KEYS))[None, :, None]
    s_value = i_value + gl.arange(0, BV, VALUES)[None, None, :]
    o_state = (i_batch * H + i_head) * (N * M) + (s_group * NI + s_inner) * M + s_value
    n_segments = (T + EVERY - 1) // EVERY
    checkpoints += (i_batch * H + i_head) * n_segments * (N * M)
    o_checkpoint = (
        s_group * (NI * M) + s_inner // CHUNK * (CHUNK * M) + s_value * CHUNK + s_inner % CHUNK
    )

    # Each buffer is viewed both as a tile of the segment and as one row per position.
    TILE: gl.constexpr = gl.SwizzledSharedLayout(1, 1, 1, [1, 0])
    ROW: gl.constexpr = gl.SwizzledSharedLayout(1, 1, 1, [0])
    # Consecutive lanes store consecutive values, which avoids bank conflicts.
    KEPT: gl.constexpr = gl.SwizzledSharedLayout(1, 1, 1, [2, 0, 1])
    keys = gl.allocate_shared_memory(gl.float32, [EVERY, N], TILE)
    queries = gl.allocate_shared_memory(gl.float32, [EVERY, N], TILE)
    deltas = gl.allocate_shared_memory(gl.float32, [EVERY, BV], TILE)
    d_reads = gl.allocate_shared_memory(gl.float32, [EVERY, BV], TILE)
    decays = gl.allocate_shared_memory(gl.float32, [EVERY], ROW)
    rates = gl.allocate_shared_memory(gl.float32, [EVERY], ROW)
    kept = gl.allocate_shared_memory(gl.float16, [EVERY // 2, LK, NI, BV], KEPT)
    key_rows = _reinterpret(keys, [EVERY, LK, NI], TILE)
    query_rows = _reinterpret(queries, [EVERY, LK, NI], TILE)
    delta_rows = _reinterpret(deltas, [EVERY, BV], ROW)
    d_read_rows = _reinterpret(d_reads, [EVERY, BV], ROW)
    decay_rows = _reinterpret(decays, [EVERY, 1], ROW)
    rate_rows = _reinterpret(rates, [EVERY, 1], ROW)

    if d_final_state is None:
        d_state = gl.zeros([LK, NI, BV], gl.float32, STATE)
    else:
        d_state = gl.load(d_final_state + o_state)

    for i_back in range(0, n_segments):
        i_segment = n_segments - 1 - i_back
        start = i_segment * EVERY
        stop = gl.minimum(start + EVERY, T)
        is_valid = (o_time < T - start)[:, None]
        o_d_value = start * H * M + o_time[:, None] * (H * M) + o_value

        raw_k = gl.load(k + start * k_wide + o_k, mask=is_valid, other=0.0)
        raw_q = gl.load(q + start * q_wide + o_q, mask=is_valid, other=0.0)
        raw_v = gl.load(v + start * v_wide + o_v, mask=is_valid, other=0.0)
        d_read = gl.load(d_output + o_d_value, mask=is_valid, other=0.0).to(gl.float32)
        is_step = o_time < T - start
        decay = gl.load(alpha + (start + o_time).to(gl.int64) * alpha_time, mask=is_step, other=0.0)
        decays.store(decay)
        if beta is not None:
            rate = gl.load(
                beta + (start + o_time).to(gl.int64) * beta_time, mask=is_step, other=0.0
            )
            rates.store(rate)
        if gate is not None:
            raw_gate = gl.load(gate + start * gate_wide + o_gate, mask=is_valid, other=0.0)
            d_read *= _silu(raw_gate.to(gl.float32))
        value = raw_v.to(gl.float32)
        if ACTIVATE:
            value = _silu(value)
        keys.store(_address(raw_k, ACTIVATE, NORMALIZE, EPS))
        queries.store(_address(raw_q, ACTIVATE, NORMALIZE, EPS))
        deltas.store(value)
        d_reads.store(d_read)

        state = gl.load(checkpoints + i_segment * (N * M) + o_checkpoint).to(gl.float32)
        for t in range(start, stop):
            row = t - start
            if row % 2 == 0:
                kept.index(row // 2).store(state.to(gl.float16))
            key = _row(key_rows, row, KEYS)[:, :, None]
            delta = _row(delta_rows, row, VALUES) - _sum_over_keys(key * state)
            delta_rows.index(row).store(delta)
            if beta is not None:
                delta *= _row(rate_rows, row, VALUES)
            decay_here = _row(decay_rows, row, ALONE)[:, None, None]
            state = _squash(decay_here * state + key * delta[None, None, :])

        n_pairs = (stop - start + 1) // 2
        for back in range(0, n_pairs):
            row = 2 * (n_pairs - 1 - back)
            t = start + row
            before = kept.index(row // 2).load(STATE).to(gl.float32)
            decay_here = _row(decay_rows, row, ALONE)[:, None, None]
            delta = _row(delta_rows, row, VALUES)
            rate_here = delta
            if beta is not None:
                rate_here = _row(rate_rows, row, VALUES)
                delta *= rate_here
            key = _row(key_rows, row, KEYS)[:, :, None]
            between = _squash(decay_here * before + key * delta[None, None, :])
            if t + 1 < stop:
                decay_after = _row(decay_rows, row + 1, ALONE)[:, None, None]
                rate_after = delta
                if beta is not None:
                    rate_after = _row(rate_rows, row + 1, VALUES)
                d_state = _step_back(
                    t + 1, row + 1, decay_after, rate_after, between, state, d_state,
                    key_rows, query_rows, delta_rows, d_read_rows, d_alpha, d_beta, H,
                    STATE, gate is not None, beta is not None,
                )  # fmt: skip
            # Reloaded, because keeping it would take a whole state's worth of registers.
            before = kept.index(row // 2).load(STATE).to(gl.float32)
            d_state = _step_back(
                t, row, decay_here, rate_here, before, between, d_state,
                key_rows, query_rows, delta_rows, d_read_rows, d_alpha, d_beta, H,
                STATE, gate is not None, beta is not None,
            )  # fmt: skip
            state = before

        o_d = start * H * N + o_time[:, None] * (H * N) + o_key
        raw_k = gl.load(k + start * k_wide + o_k, mask=is_valid, other=0.0)
        d_raw_k = _address_grad(raw_k, keys.load(SEGMENT), ACTIVATE, NORMALIZE, EPS)
        gl.store(d_k + o_d, d_raw_k.to(d_k.dtype.element_ty), mask=is_valid)
        raw_q = gl.load(q + start * q_wide + o_q, mask=is_valid, other=0.0)
        d_raw_q = _address_grad(raw_q, queries.load(SEGMENT), ACTIVATE, NORMALIZE, EPS)
        gl.store(d_q + o_d, d_raw_q.to(d_q.dtype.element_ty), mask=is_valid)
        d_value = deltas.load(SEGMENT)
        if ACTIVATE:
            raw_v = gl.load(v + start * v_wide + o_v, mask=is_valid, other=0.0)
            d_value *= _silu_grad(raw_v.to(gl.float32))
        gl.store(d_v + o_d_value, d_value.to(d_v.dtype.element_ty), mask=is_valid)
        if gate is not None:
            raw_gate = gl.load(gate + start * gate_wide + o_gate, mask=is_valid, other=0.0)
            d_read = gl.load(d_output + o_d_value, mask=is_valid, other=0.0).to(gl.float32)
            d_raw_gate = d_read * d_reads.load(SEGMENT) * _silu_grad(raw_gate.to(gl.float32))
            gl.store(d_gate + o_d_value, d_raw_gate.to(d_gate.dtype.element_ty), mask=is_valid)

    if d_initial_state is not None:
        gl.store(d_initial_state + o_state, d_state)
