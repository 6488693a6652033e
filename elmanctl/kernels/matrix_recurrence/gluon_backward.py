"""The backward kernel of the matrix recurrence with layouts of its own, in Gluon; no torch.

It computes what the kernel in plain Triton does, for a squashed state without blend.  There, sums
over values are sums over all lanes of a warp, 320 shuffles a position.  Here a warp is LK by 32 / LK
lanes, so that a lane has a small block of the state; what it has summed up over its own values goes
through shared memory once, and comes back with one key to a lane.  States of a segment, rows of
keys and queries and what belongs to a position lie in shared memory, where a row makes place for
its own gradient as soon as it was used.
"""

from triton.experimental import gluon
from triton.experimental.gluon import language as gl

from elmanctl.kernels.matrix_recurrence.triton_backward import INTEGERS


# The name became public after Triton 3.6.
_CAN_REINTERPRET = gl.constexpr(hasattr(gl.shared_memory_descriptor, "reinterpret"))


@gluon.jit
def _seen_as(memory, shape: gl.constexpr, layout: gl.constexpr):
    """The same shared memory of float32, with another shape."""
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
def _silu_slope(x):
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
def _from_address(raw, d_x, ACTIVATE: gl.constexpr, NORMALIZE: gl.constexpr, EPS: gl.constexpr):
    raw = raw.to(gl.float32)
    x = _silu(raw) if ACTIVATE else raw
    if NORMALIZE:
        scale = gl.rsqrt(gl.sum(x * x, 1) + EPS)[:, None]
        unit = x * scale
        d_x = scale * (d_x - unit * gl.sum(unit * d_x, 1)[:, None])
    if ACTIVATE:
        d_x = d_x * _silu_slope(raw)
    return d_x


@gluon.jit
def _over_keys(x):
    """The sum over keys of [LK, NI, BV]: inside lanes first."""
    return gl.sum(gl.sum(x, 1), 0)


@gluon.jit
def _over_values(x, LV: gl.constexpr, ONE_KEY: gl.constexpr):
    """The sum over values of [LK, NI, BV], with one key to a lane."""
    LK: gl.constexpr = x.shape[0]
    NI: gl.constexpr = x.shape[1]
    of_lane = gl.sum(x.reshape([LK, NI, LV, x.shape[2] // LV]), 3)
    return gl.sum(gl.convert_layout(of_lane, ONE_KEY), 2)


@gluon.jit(do_not_specialize=INTEGERS)
def matrix_recurrence_backward_in_blocks_kernel(
    q, k, v, alpha, beta, gate, checkpoints, d_output, d_final_state,
    d_q, d_k, d_v, d_alpha, d_beta, d_gate, d_initial_state,
    q_batch, q_time, q_head, k_batch, k_time, k_head,
    v_batch, v_time, v_head, gate_batch, gate_time, gate_head,
    alpha_batch, alpha_time, alpha_head, beta_batch, beta_time, beta_head,
    B, T, H,
    N: gl.constexpr, M: gl.constexpr, BK: gl.constexpr, BV: gl.constexpr, LK: gl.constexpr,
    EVERY: gl.constexpr, UNIT: gl.constexpr,
    ACTIVATE: gl.constexpr, NORMALIZE: gl.constexpr, EPS: gl.constexpr,
):  # fmt: skip
    LV: gl.constexpr = 32 // LK
    NI: gl.constexpr = N // LK
    # [LK, NI, BV]: lanes over groups of keys and of values, keys of a lane side by side.
    STATE: gl.constexpr = gl.BlockedLayout([1, NI, BV // LV], [LK, 1, LV], [1, 1, 1], [1, 2, 0])
    KEYS: gl.constexpr = gl.SliceLayout(2, STATE)
    VALUES: gl.constexpr = gl.SliceLayout(0, gl.SliceLayout(1, STATE))
    ONE_KEY: gl.constexpr = gl.BlockedLayout(
        [1, 1, LV], [LK, NI if NI < LV else LV, 1], [1, 1, 1], [2, 1, 0]
    )
    # Segments, [EVERY, N] and [EVERY, BV].
    LANES_OF_TIME: gl.constexpr = EVERY
    SEGMENT: gl.constexpr = gl.BlockedLayout([1, 4], [32 // 8, 8], [1, 1], [1, 0])

    i_batch = (gl.program_id(0) // H).to(gl.int64)
    i_head = gl.program_id(0) % H
    i_value = gl.program_id(1) * BV
    i_part = gl.program_id(1).to(gl.int64) * B + i_batch
    H = H.to(gl.int64)

    o_time = gl.arange(0, EVERY, gl.SliceLayout(1, SEGMENT))[:, None]
    o_key = gl.arange(0, N, gl.SliceLayout(0, SEGMENT))[None, :]
    o_value = gl.arange(0, BV, gl.SliceLayout(0, SEGMENT))[None, :]
    q += i_batch * q_batch * UNIT + i_head * q_head * UNIT
    k += i_batch * k_batch * UNIT + i_head * k_head * UNIT
    v += i_batch * v_batch * UNIT + i_head * v_head * UNIT + i_value
    d_output += (i_batch * T * H + i_head) * M + i_value
    alpha += i_batch * alpha_batch + i_head * alpha_head
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

    s_group = gl.arange(0, LK, gl.SliceLayout(1, gl.SliceLayout(2, STATE)))[:, None, None]
    s_inner = gl.arange(0, NI, gl.SliceLayout(0, gl.SliceLayout(2, STATE)))[None, :, None]
    s_value = gl.arange(0, BV, VALUES)[None, None, :]
    o_state = (s_group * NI + s_inner) * M + i_value + s_value
    o_checkpoint = (
        s_group * (NI * M) + s_inner // BK * (BK * M) + (i_value + s_value) * BK + s_inner % BK
    )
    n_segments = (T + EVERY - 1) // EVERY
    checkpoints += (i_batch * H + i_head) * n_segments * (N * M)

    # Each place is seen as a tile of the segment and as one row of a position.
    TILE: gl.constexpr = gl.SwizzledSharedLayout(1, 1, 1, [1, 0])
    ROW: gl.constexpr = gl.SwizzledSharedLayout(1, 1, 1, [0])
    KEPT: gl.constexpr = gl.SwizzledSharedLayout(1, 1, 1, [2, 0, 1])
    keys = gl.allocate_shared_memory(gl.float32, [EVERY, N], TILE)
    queries = gl.allocate_shared_memory(gl.float32, [EVERY, N], TILE)
    deltas = gl.allocate_shared_memory(gl.float32, [EVERY, BV], TILE)
    d_reads = gl.allocate_shared_memory(gl.float32, [EVERY, BV], TILE)
    key_rows = _seen_as(keys, [EVERY, LK, NI], TILE)
    query_rows = _seen_as(queries, [EVERY, LK, NI], TILE)
    delta_rows = _seen_as(deltas, [EVERY, BV], ROW)
    d_read_rows = _seen_as(d_reads, [EVERY, BV], ROW)
    kept = gl.allocate_shared_memory(gl.float16, [EVERY, LK, NI, BV], KEPT)

    if d_final_state is None:
        d_state = gl.zeros([LK, NI, BV], gl.float32, STATE)
    else:
        d_state = gl.load(d_final_state + (i_batch * H + i_head) * (N * M) + o_state)

    for i_back in range(0, n_segments):
        i_segment = n_segments - 1 - i_back
        start = i_segment * EVERY
        stop = gl.minimum(start + EVERY, T)
        is_there = o_time < T - start

        raw_k = gl.load(
            k + start * k_time.to(gl.int64) * UNIT + o_time * k_time * UNIT + o_key,
            mask=is_there,
            other=0.0,
        )
        raw_q = gl.load(
            q + start * q_time.to(gl.int64) * UNIT + o_time * q_time * UNIT + o_key,
            mask=is_there,
            other=0.0,
        )
        raw_v = gl.load(
            v + start * v_time.to(gl.int64) * UNIT + o_time * v_time * UNIT + o_value,
            mask=is_there,
            other=0.0,
        )
        d_y = gl.load(
            d_output + start * H * M + o_time * (H * M) + o_value, mask=is_there, other=0.0
        ).to(gl.float32)
        if gate is not None:
            raw_gate = gl.load(
                gate + start * gate_time.to(gl.int64) * UNIT + o_time * gate_time * UNIT + o_value,
                mask=is_there,
                other=0.0,
            )
            d_y *= _silu(raw_gate.to(gl.float32))
        value = raw_v.to(gl.float32)
        if ACTIVATE:
            value = _silu(value)
        keys.store(_address(raw_k, ACTIVATE, NORMALIZE, EPS))
        queries.store(_address(raw_q, ACTIVATE, NORMALIZE, EPS))
        deltas.store(value)
        d_reads.store(d_y)

        state = gl.load(checkpoints + i_segment * (N * M) + o_checkpoint).to(gl.float32)
        for t in range(start, stop):
            row = t - start
            kept.index(row).store(state.to(gl.float16))
            decay = gl.load(alpha + t * alpha_time.to(gl.int64))
            key = key_rows.index(row).load(KEYS)[:, :, None]
            delta = delta_rows.index(row).load(VALUES) - _over_keys(key * state)
            delta_rows.index(row).store(delta)
            if beta is not None:
                delta *= gl.load(beta + t * beta_time.to(gl.int64))
            state = _squash(decay * state + key * delta[None, None, :])

        for back in range(0, stop - start):
            t = stop - 1 - back
            row = t - start
            decay = gl.load(alpha + t * alpha_time.to(gl.int64))
            key = key_rows.index(row).load(KEYS)[:, :, None]
            query = query_rows.index(row).load(KEYS)[:, :, None]
            d_read = d_read_rows.index(row).load(VALUES)[None, None, :]
            delta = delta_rows.index(row).load(VALUES)[None, None, :]
            before = kept.index(row).load(STATE).to(gl.float32)
            d_query = _over_values(state * d_read, LV, ONE_KEY)
            if gate is not None:
                d_read_rows.index(row).store(_over_keys(query * state))
            grown = d_state + query * d_read
            product = grown - grown * state * state
            d_delta = _over_keys(key * product)
            scaled = delta
            if beta is not None:
                rate = gl.load(beta + t * beta_time.to(gl.int64))
                scaled = rate * delta
                gl.store(d_beta + t * H, gl.sum(d_delta * gl.sum(gl.sum(delta, 0), 0), 0))
                d_delta *= rate
            delta_rows.index(row).store(d_delta)
            d_delta = d_delta[None, None, :]
            d_key = _over_values(product * scaled - before * d_delta, LV, ONE_KEY)
            gl.store(d_alpha + t * H, gl.sum(gl.sum(gl.sum(product * before, 1), 1), 0))
            key_rows.index(row).store(d_key)
            query_rows.index(row).store(d_query)
            d_state = decay * product - key * d_delta
            state = before

        o_d = start * H * N + o_time * (H * N) + o_key
        raw_k = gl.load(
            k + start * k_time.to(gl.int64) * UNIT + o_time * k_time * UNIT + o_key,
            mask=is_there,
            other=0.0,
        )
        gl.store(
            d_k + o_d,
            _from_address(raw_k, keys.load(SEGMENT), ACTIVATE, NORMALIZE, EPS).to(
                d_k.dtype.element_ty
            ),
            mask=is_there,
        )
        raw_q = gl.load(
            q + start * q_time.to(gl.int64) * UNIT + o_time * q_time * UNIT + o_key,
            mask=is_there,
            other=0.0,
        )
        gl.store(
            d_q + o_d,
            _from_address(raw_q, queries.load(SEGMENT), ACTIVATE, NORMALIZE, EPS).to(
                d_q.dtype.element_ty
            ),
            mask=is_there,
        )
        o_d = start * H * M + o_time * (H * M) + o_value
        d_value = deltas.load(SEGMENT)
        if ACTIVATE:
            raw_v = gl.load(
                v + start * v_time.to(gl.int64) * UNIT + o_time * v_time * UNIT + o_value,
                mask=is_there,
                other=0.0,
            )
            d_value *= _silu_slope(raw_v.to(gl.float32))
        gl.store(d_v + o_d, d_value.to(d_v.dtype.element_ty), mask=is_there)
        if gate is not None:
            raw_gate = gl.load(
                gate + start * gate_time.to(gl.int64) * UNIT + o_time * gate_time * UNIT + o_value,
                mask=is_there,
                other=0.0,
            )
            d_y = gl.load(
                d_output + start * H * M + o_time * (H * M) + o_value, mask=is_there, other=0.0
            ).to(gl.float32)
            d_opened = d_y * d_reads.load(SEGMENT) * _silu_slope(raw_gate.to(gl.float32))
            gl.store(d_gate + o_d, d_opened.to(d_gate.dtype.element_ty), mask=is_there)

    if d_initial_state is not None:
        gl.store(d_initial_state + (i_batch * H + i_head) * (N * M) + o_state, d_state)
