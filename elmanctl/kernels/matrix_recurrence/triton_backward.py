"""Backward kernel of the matrix recurrence in plain Triton; imports no torch.

Programs are split as in the forward kernel.  Each processes the segments from last to first: it
replays a segment from its checkpoint, stashes every state in private global memory, and then walks
back.  With S the state before a position, C the candidate, S' the state after it, e the gradient of
the read-out, and G the gradient of S' including the read-out's contribution:

    G_ji   = dS'_ji + q_j e_i                    dq_j    = sum_i S'_ji e_i
    P_ji   = blend G_ji (1 - C_ji^2)             d_i     = beta sum_j P_ji k_j
    dv_i   = d_i                                 dbeta   = sum_i delta_i sum_j P_ji k_j
    dk_j   = sum_i (beta P_ji delta_i - S_ji d_i)
    dalpha = sum_ji P_ji S_ji                    dblend  = sum_ji G_ji (C_ji - S_ji)
    dS_ji  = alpha P_ji + (1 - blend) G_ji - k_j d_i

C is S' without a blend, and is recomputed with one.  Programs that share a head each write a
partial dq, dk, dalpha, dbeta and dblend, so no two accumulate into the same address.
"""

import triton
import triton.language as tl

from elmanctl.kernels.matrix_recurrence.triton_ops import (
    address,
    address_grad,
    product,
    silu,
    silu_grad,
    squash,
)

INTEGERS = (
    *("q_batch", "q_time", "q_head", "k_batch", "k_time", "k_head"),
    *("v_batch", "v_time", "v_head", "gate_batch", "gate_time", "gate_head"),
    *("alpha_batch", "alpha_time", "alpha_head", "beta_batch", "beta_time", "beta_head"),
    *("blend_batch", "blend_time", "blend_head"),
    *("written_batch", "written_time", "written_head"),
    *("d_output_batch", "d_output_time", "d_output_head"),
    *("B", "T", "H"),
)


@triton.jit(do_not_specialize=INTEGERS)
def matrix_recurrence_backward_kernel(
    q, k, v, alpha, beta, blend, written, positions, gate, checkpoints, d_output, d_final_state,
    d_q, d_k, d_v, d_alpha, d_beta, d_blend, d_gate, d_initial_state, scratch, stash,
    q_batch, q_time, q_head, k_batch, k_time, k_head,
    v_batch, v_time, v_head, gate_batch, gate_time, gate_head,
    alpha_batch, alpha_time, alpha_head, beta_batch, beta_time, beta_head,
    blend_batch, blend_time, blend_head, written_batch, written_time, written_head,
    d_output_batch, d_output_time, d_output_head,
    B, T, H,
    N: tl.constexpr, M: tl.constexpr, BN: tl.constexpr, BK: tl.constexpr, G: tl.constexpr,
    BV: tl.constexpr, CHUNK: tl.constexpr, EVERY: tl.constexpr, UNIT: tl.constexpr,
    PER_VALUE: tl.constexpr, LINEAR: tl.constexpr, ACTIVATE: tl.constexpr, NORMALIZE: tl.constexpr,
    SELF_GATE: tl.constexpr, FAST: tl.constexpr, EPS: tl.constexpr,
):  # fmt: skip
    """Walk back through [B, T] for G heads and BV values.

    Arguments as in the forward kernel, with contiguous gradients: d_q, d_k [parts, B, T, H, N],
    d_v, d_gate [B, T, H, M], d_beta, d_blend [parts, B, T, H], d_alpha like these or [B, T, H, M],
    with one part per program of a head.  scratch: [programs, 4 EVERY G N + 2 EVERY G BV], stash:
    [programs, EVERY, N G BV].
    """
    TILES: tl.constexpr = N // BK
    # Products with these may overflow 32 bits.
    q_time = q_time.to(tl.int64)
    k_time = k_time.to(tl.int64)
    v_time = v_time.to(tl.int64) * UNIT
    alpha_time = alpha_time.to(tl.int64)
    beta_time = beta_time.to(tl.int64)
    blend_time = blend_time.to(tl.int64)
    written_time = written_time.to(tl.int64)
    gate_time = gate_time.to(tl.int64) * UNIT
    d_output_time = d_output_time.to(tl.int64)
    n_groups = tl.cdiv(H, G)
    i_batch = (tl.program_id(0) // n_groups).to(tl.int64)
    i_head = (tl.program_id(0) % n_groups) * G
    i_value = tl.program_id(1) * BV
    i_program = tl.program_id(0).to(tl.int64) * tl.num_programs(1) + tl.program_id(1)
    i_part = tl.program_id(1).to(tl.int64) * B + i_batch

    o_group = tl.arange(0, G)
    o_head = i_head + o_group
    o_value = i_value + tl.arange(0, BV)
    o_key = tl.arange(0, BK)
    is_head = o_head < H
    is_value = is_head[:, None] & (o_value[None, :] < M)
    H = H.to(tl.int64)
    n_steps = T
    if positions is not None:
        positions += (i_batch * H + i_head) * (T + 2)
        n_steps = tl.load(positions)
        first_segment = tl.load(positions + 1).to(tl.int64)
        positions += 2

    # Keys and queries of a segment and their gradients, [ROWS, G, BN], loaded ROWS positions at a
    # time to limit them to sixteen registers per lane.
    ROWS: tl.constexpr = EVERY if N <= 16 or EVERY * 16 < BN else EVERY * 16 // BN
    o_time = tl.arange(0, ROWS)[:, None, None]
    o_all = tl.arange(0, BN)[None, None, :]
    is_raw = is_head[None, :, None] & (o_all < N)
    # The offset of a position follows from its stride, or is loaded from `positions`.
    o_apart = o_time if positions is None else tl.zeros_like(o_time)
    o_q = (o_apart * q_time.to(tl.int32) + o_head[None, :, None] * q_head) * UNIT + o_all
    o_k = (o_apart * k_time.to(tl.int32) + o_head[None, :, None] * k_head) * UNIT + o_all
    o_d = (o_apart * H + o_head[None, :, None]) * N + o_all
    q += i_batch * q_batch * UNIT
    k += i_batch * k_batch * UNIT
    d_q += i_part * T * H * N
    d_k += i_part * T * H * N

    SEGMENT: tl.constexpr = EVERY * G * N
    keys = scratch + i_program * (4 * SEGMENT + 2 * EVERY * G * BV)
    queries = keys + SEGMENT
    d_keys = queries + SEGMENT
    d_queries = d_keys + SEGMENT
    deltas = d_queries + SEGMENT
    d_reads = deltas + EVERY * G * BV
    o_staged = (o_time * G + o_group[None, :, None]) * N + o_all
    o_row = o_group[None, :] * N + o_key[:, None]
    o_values_row = o_group[:, None] * BV + tl.arange(0, BV)[None, :]
    stash += i_program * (EVERY * N * G * BV)

    o_v = o_head[:, None] * (v_head * UNIT) + o_value[None, :]
    v += i_batch * v_batch * UNIT
    d_v += i_batch * T * H * M
    alpha += i_batch * alpha_batch
    if PER_VALUE:
        o_alpha = o_head[:, None] * alpha_head + o_value[None, :]
        d_alpha += i_batch * T * H * M
    else:
        o_alpha = o_head[:, None] * alpha_head
        d_alpha += i_part * T * H
    if beta is not None:
        beta += i_batch * beta_batch
        d_beta += i_part * T * H
    if blend is not None:
        blend += i_batch * blend_batch
        d_blend += i_part * T * H
    if written is not None:
        written += i_batch * written_batch + i_head * written_head
    if gate is not None:
        o_gate = o_head[:, None] * (gate_head * UNIT) + o_value[None, :]
        gate += i_batch * gate_batch * UNIT
        d_gate += i_batch * T * H * M
    o_out = o_head[:, None] * M + o_value[None, :]
    o_d_output = o_head[:, None] * d_output_head + o_value[None, :]
    d_output += i_batch * d_output_batch

    is_tile = is_value[None, :, :]
    o_state = (
        (i_batch * H + o_head)[None, :, None] * (N * M)
        + o_key[:, None, None] * M
        + o_value[None, None, :]
    )
    n_segments = tl.cdiv(n_steps, EVERY)
    i_first = (i_batch * H + i_head) * n_segments if positions is None else first_segment
    checkpoints += i_first * (N * M)
    o_checkpoint = (
        o_group[None, :, None] * n_segments * (N * M)
        + (o_key // CHUNK * (CHUNK * M) + o_key % CHUNK)[:, None, None]
        + o_value[None, None, :] * CHUNK
    )
    # The stash holds states in the layout of the registers.
    o_stored = (o_group[None, :, None] * BV + tl.arange(0, BV)[None, None, :]) * BK + o_key[
        :, None, None
    ]
    STATE: tl.constexpr = N * G * BV
    TILE: tl.constexpr = BK * G * BV

    d_state = ()
    for i in tl.static_range(TILES):
        if d_final_state is None:
            d_state = d_state + (tl.zeros([BK, G, BV], tl.float32),)
        else:
            d_tile = tl.load(d_final_state + o_state + i * BK * M, mask=is_tile, other=0.0)
            d_state = d_state + (d_tile,)

    for i_back in range(0, n_segments):
        i_segment = n_segments - 1 - i_back
        start = i_segment * EVERY
        stop = min(start + EVERY, n_steps)

        for first in tl.static_range(0, EVERY, ROWS):
            is_step = o_time < n_steps - start - first
            is_valid = is_raw & is_step
            o_t = start + first
            if positions is not None:
                o_t = tl.load(positions + o_t + o_time, mask=is_step, other=0)
            raw_k = tl.load(k + o_t * k_time * UNIT + o_k, mask=is_valid, other=0.0)
            raw_q = tl.load(q + o_t * q_time * UNIT + o_q, mask=is_valid, other=0.0)
            tl.store(
                keys + first * G * N + o_staged,
                address(raw_k, ACTIVATE, NORMALIZE, EPS, FAST),
                mask=o_all < N,
            )
            tl.store(
                queries + first * G * N + o_staged,
                address(raw_q, ACTIVATE, NORMALIZE, EPS, FAST),
                mask=o_all < N,
            )
        tl.debug_barrier()

        state = ()
        for i in tl.static_range(TILES):
            stored = tl.load(
                checkpoints + i_segment * (N * M) + i * (BK * M) + o_checkpoint,
                mask=is_tile,
                other=0.0,
            )
            state = state + (stored.to(tl.float32),)

        for step in range(start, stop):
            t = step
            if positions is not None:
                t = tl.load(positions + step)
            row = (step - start) * (G * N)
            values_row = (step - start) * (G * BV)
            for i in tl.static_range(TILES):
                tl.store(
                    stash + (step - start) * STATE + i * TILE + o_stored,
                    state[i].to(stash.dtype.element_ty),
                )
            is_written = True
            if written is not None:
                is_written = tl.load(written + t * written_time) != 0
            if is_written:
                value = tl.load(v + t * v_time + o_v, mask=is_value, other=0.0).to(tl.float32)
                if ACTIVATE:
                    value = silu(value, FAST)
                decay = tl.load(
                    alpha + t * alpha_time + o_alpha,
                    mask=is_value if PER_VALUE else is_head[:, None],
                    other=0.0,
                )[None, :, :]
                part = tl.zeros([BK, G, BV], tl.float32)
                for i in tl.static_range(TILES):
                    part += tl.load(keys + row + i * BK + o_row)[:, :, None] * state[i]
                delta = value - tl.sum(part, 0)
                tl.store(deltas + values_row + o_values_row, delta)
                scaled = delta[None, :, :]
                if beta is not None:
                    scaled *= tl.load(
                        beta + t * beta_time + o_head[:, None] * beta_head,
                        mask=is_head[:, None],
                        other=0.0,
                    )[None, :, :]
                if blend is not None:
                    share = tl.load(
                        blend + t * blend_time + o_head[:, None] * blend_head,
                        mask=is_head[:, None],
                        other=0.0,
                    )[None, :, :]
                after = ()
                for i in tl.static_range(TILES):
                    key = tl.load(keys + row + i * BK + o_row)[:, :, None]
                    new = decay * state[i] + key * scaled
                    if not LINEAR:
                        new = squash(new, FAST)
                    if blend is not None:
                        new = share * new + (1 - share) * state[i]
                    after = after + (new,)
                state = after

            d_read = tl.load(
                d_output + t * d_output_time + o_d_output, mask=is_value, other=0.0
            ).to(tl.float32)
            if SELF_GATE or gate is not None:
                part = tl.zeros([BK, G, BV], tl.float32)
                for i in tl.static_range(TILES):
                    part += tl.load(queries + row + i * BK + o_row)[:, :, None] * state[i]
                read_out = tl.sum(part, 0)
                gated = read_out * silu(read_out, FAST) if SELF_GATE else read_out
                if gate is not None:
                    raw = tl.load(gate + t * gate_time + o_gate, mask=is_value, other=0.0).to(
                        tl.float32
                    )
                    slope = silu_grad(raw, FAST)
                    tl.store(
                        d_gate + t * H * M + o_out,
                        (d_read * gated * slope).to(d_gate.dtype.element_ty),
                        mask=is_value,
                    )
                    d_read *= silu(raw, FAST)
                if SELF_GATE:
                    d_read *= silu(read_out, FAST) + read_out * silu_grad(read_out, FAST)
            tl.store(d_reads + values_row + o_values_row, d_read)
            for i in tl.static_range(TILES):
                d_query = tl.sum(product(state[i], d_read[None, :, :]), 2)
                tl.store(d_queries + row + i * BK + o_row, d_query)

        # A lane may read back what another lane wrote.
        tl.debug_barrier()
        for back in range(0, stop - start):
            step = stop - 1 - back
            t = step
            if positions is not None:
                t = tl.load(positions + step)
            row = (step - start) * (G * N)
            values_row = (step - start) * (G * BV)
            d_read = tl.load(d_reads + values_row + o_values_row)[None, :, :]
            before = ()
            for i in tl.static_range(TILES):
                kept = tl.load(stash + (step - start) * STATE + i * TILE + o_stored)
                before = before + (kept.to(tl.float32),)
            grown = ()
            for i in tl.static_range(TILES):
                query = tl.load(queries + row + i * BK + o_row)[:, :, None]
                grown = grown + (d_state[i] + query * d_read,)

            is_written = True
            if written is not None:
                is_written = tl.load(written + t * written_time) != 0
            if is_written:
                delta = tl.load(deltas + values_row + o_values_row)[None, :, :]
                decay = tl.load(
                    alpha + t * alpha_time + o_alpha,
                    mask=is_value if PER_VALUE else is_head[:, None],
                    other=0.0,
                )[None, :, :]
                scaled = delta
                if beta is not None:
                    rate = tl.load(
                        beta + t * beta_time + o_head[:, None] * beta_head,
                        mask=is_head[:, None],
                        other=0.0,
                    )[None, :, :]
                    scaled = rate * delta
                if blend is not None:
                    share = tl.load(
                        blend + t * blend_time + o_head[:, None] * blend_head,
                        mask=is_head[:, None],
                        other=0.0,
                    )[None, :, :]
                    d_shares = tl.zeros([BK, G, BV], tl.float32)
                slopes = ()
                part = tl.zeros([BK, G, BV], tl.float32)
                d_decays = tl.zeros([BK, G, BV], tl.float32)
                for i in tl.static_range(TILES):
                    key = tl.load(keys + row + i * BK + o_row)[:, :, None]
                    slope = grown[i]
                    if blend is not None:
                        candidate = decay * before[i] + key * scaled
                        if not LINEAR:
                            candidate = squash(candidate, FAST)
                        d_shares += grown[i] * (candidate - before[i])
                        slope = share * slope
                    else:
                        candidate = state[i]
                    if not LINEAR:
                        slope -= slope * candidate * candidate
                    slopes = slopes + (slope,)
                    part += key * slope
                    d_decays += slope * before[i]
                d_delta = tl.sum(part, 0)[None, :, :]
                d_decay = tl.sum(d_decays, 0)
                if PER_VALUE:
                    tl.store(d_alpha + t * H * M + o_out, d_decay, mask=is_value)
                else:
                    tl.store(d_alpha + t * H + o_head, tl.sum(d_decay, 1), mask=is_head)
                if beta is not None:
                    d_rate = tl.sum(tl.sum(product(delta, d_delta), 0), 1)
                    tl.store(d_beta + t * H + o_head, d_rate, mask=is_head)
                    d_delta *= rate
                if blend is not None:
                    d_share = tl.sum(tl.sum(d_shares, 0), 1)
                    tl.store(d_blend + t * H + o_head, d_share, mask=is_head)
                d_value = tl.sum(d_delta, 0)
                if ACTIVATE:
                    raw = tl.load(v + t * v_time + o_v, mask=is_value, other=0.0)
                    d_value *= silu_grad(raw.to(tl.float32), FAST)
                tl.store(d_v + t * H * M + o_out, d_value.to(d_v.dtype.element_ty), mask=is_value)
                d_before = ()
                for i in tl.static_range(TILES):
                    key = tl.load(keys + row + i * BK + o_row)[:, :, None]
                    d_key = tl.sum(slopes[i] * scaled - before[i] * d_delta, 2)
                    tl.store(d_keys + row + i * BK + o_row, d_key)
                    d_tile = decay * slopes[i] - key * d_delta
                    if blend is not None:
                        d_tile += (1 - share) * grown[i]
                    d_before = d_before + (d_tile,)
                grown = d_before
            else:
                for i in tl.static_range(TILES):
                    tl.store(d_keys + row + i * BK + o_row, tl.zeros([BK, G], tl.float32))
                zero = tl.zeros([G, BV], tl.float32)
                tl.store(d_v + t * H * M + o_out, zero.to(d_v.dtype.element_ty), mask=is_value)
                none = tl.zeros([G], tl.float32)
                if PER_VALUE:
                    tl.store(d_alpha + t * H * M + o_out, zero, mask=is_value)
                else:
                    tl.store(d_alpha + t * H + o_head, none, mask=is_head)
                if beta is not None:
                    tl.store(d_beta + t * H + o_head, none, mask=is_head)
                if blend is not None:
                    tl.store(d_blend + t * H + o_head, none, mask=is_head)
            d_state = grown
            state = before

        tl.debug_barrier()
        for first in tl.static_range(0, EVERY, ROWS):
            is_step = o_time < n_steps - start - first
            is_valid = is_raw & is_step
            o_t = start + first
            if positions is not None:
                o_t = tl.load(positions + o_t + o_time, mask=is_step, other=0)
            raw_q = tl.load(q + o_t * q_time * UNIT + o_q, mask=is_valid, other=0.0)
            d_rows = tl.load(d_queries + first * G * N + o_staged, mask=is_valid, other=0.0)
            d_raw = address_grad(raw_q, d_rows, ACTIVATE, NORMALIZE, EPS, FAST)
            o_row_d = o_t * H * N + o_d
            tl.store(d_q + o_row_d, d_raw.to(d_q.dtype.element_ty), mask=is_valid)
            raw_k = tl.load(k + o_t * k_time * UNIT + o_k, mask=is_valid, other=0.0)
            d_rows = tl.load(d_keys + first * G * N + o_staged, mask=is_valid, other=0.0)
            d_raw = address_grad(raw_k, d_rows, ACTIVATE, NORMALIZE, EPS, FAST)
            tl.store(d_k + o_row_d, d_raw.to(d_k.dtype.element_ty), mask=is_valid)

    if d_initial_state is not None:
        for i in tl.static_range(TILES):
            tl.store(d_initial_state + o_state + i * BK * M, d_state[i], mask=is_tile)
