"""Forward kernel of the matrix recurrence; imports no torch.

One program is one warp.  It owns BV values of G heads of one sequence and loops over all positions.
A step is bound by the special-function unit, which takes 8 cycles for one tanh per lane of a warp,
so all other work is kept out of that loop.
"""

import triton
import triton.language as tl

from elmanctl.kernels.matrix_recurrence.triton_ops import address, silu, squash

INTEGERS = (
    *("q_batch", "q_time", "q_head", "k_batch", "k_time", "k_head"),
    *("v_batch", "v_time", "v_head", "gate_batch", "gate_time", "gate_head"),
    *("alpha_batch", "alpha_time", "alpha_head", "beta_batch", "beta_time", "beta_head"),
    *("blend_batch", "blend_time", "blend_head"),
    *("written_batch", "written_time", "written_head"),
    *("T", "H"),
)


@triton.jit(do_not_specialize=INTEGERS)
def matrix_recurrence_forward_kernel(
    q, k, v, alpha, beta, blend, written, positions, gate, initial_state,
    output, final_state, checkpoints, scratch,
    q_batch, q_time, q_head, k_batch, k_time, k_head,
    v_batch, v_time, v_head, gate_batch, gate_time, gate_head,
    alpha_batch, alpha_time, alpha_head, beta_batch, beta_time, beta_head,
    blend_batch, blend_time, blend_head, written_batch, written_time, written_head,
    T, H,
    N: tl.constexpr, M: tl.constexpr, BN: tl.constexpr, BK: tl.constexpr, G: tl.constexpr,
    BV: tl.constexpr, CHUNK: tl.constexpr, EVERY: tl.constexpr, UNIT: tl.constexpr,
    PER_VALUE: tl.constexpr, LINEAR: tl.constexpr, ACTIVATE: tl.constexpr, NORMALIZE: tl.constexpr,
    SELF_GATE: tl.constexpr, FAST: tl.constexpr, EPS: tl.constexpr,
):  # fmt: skip
    """Run G heads and BV values through all positions; checkpoint the state every EVERY positions.

    q, k: [B, T, H, N]; v, gate: [B, T, H, M]; alpha: [B, T, H] or [B, T, H, M]; beta, blend,
    written: [B, T, H]; all with explicit strides, except the last, which is 1.  The others are
    contiguous: output [B, T, H, M], states [B, H, N, M], checkpoints [B, H, ceil(T / EVERY),
    N / CHUNK, M, CHUNK], scratch [programs, 2, EVERY, G, N].  UNIT divides the strides of q, k, v
    and gate.  With positions [B, H, 2 + T], as `packed_positions` returns them, G is 1 and a head
    visits only its own positions.
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
    n_groups = tl.cdiv(H, G)
    i_batch = (tl.program_id(0) // n_groups).to(tl.int64)
    i_head = (tl.program_id(0) % n_groups) * G
    i_value = tl.program_id(1) * BV
    i_program = tl.program_id(0).to(tl.int64) * tl.num_programs(1) + tl.program_id(1)

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

    # Raw keys or queries of a segment, [ROWS, G, BN], loaded ROWS positions at a time to limit them
    # to sixteen registers per lane.
    ROWS: tl.constexpr = EVERY if N <= 16 or EVERY * 16 < BN else EVERY * 16 // BN
    o_time = tl.arange(0, ROWS)[:, None, None]
    o_all = tl.arange(0, BN)[None, None, :]
    is_raw = is_head[None, :, None] & (o_all < N)
    # The offset of a position follows from its stride, or is loaded from `positions`.
    o_apart = o_time if positions is None else tl.zeros_like(o_time)
    o_q = (o_apart * q_time.to(tl.int32) + o_head[None, :, None] * q_head) * UNIT + o_all
    o_k = (o_apart * k_time.to(tl.int32) + o_head[None, :, None] * k_head) * UNIT + o_all
    q += i_batch * q_batch * UNIT
    k += i_batch * k_batch * UNIT

    # This program's scratch memory for them, [EVERY, G, N].
    keys = scratch + i_program * (2 * EVERY * G * N)
    queries = keys + EVERY * G * N
    o_staged = (o_time * G + o_group[None, :, None]) * N + o_all
    o_row = o_group[None, :] * N + o_key[:, None]

    o_v = o_head[:, None] * (v_head * UNIT) + o_value[None, :]
    v += i_batch * v_batch * UNIT
    alpha += i_batch * alpha_batch
    if PER_VALUE:
        o_alpha = o_head[:, None] * alpha_head + o_value[None, :]
    else:
        o_alpha = o_head[:, None] * alpha_head
    if beta is not None:
        beta += i_batch * beta_batch
    if blend is not None:
        blend += i_batch * blend_batch
    if written is not None:
        written += i_batch * written_batch + i_head * written_head
    if gate is not None:
        o_gate = o_head[:, None] * (gate_head * UNIT) + o_value[None, :]
        gate += i_batch * gate_batch * UNIT
    o_out = o_head[:, None] * M + o_value[None, :]
    output += i_batch * T * H * M

    is_tile = is_value[None, :, :]
    o_state = (
        (i_batch * H + o_head)[None, :, None] * (N * M)
        + o_key[:, None, None] * M
        + o_value[None, None, :]
    )
    n_segments = tl.cdiv(n_steps, EVERY)
    i_first = (i_batch * H + i_head) * n_segments if positions is None else first_segment
    if checkpoints is not None:
        checkpoints += i_first * (N * M)
    o_checkpoint = (
        o_group[None, :, None] * n_segments * (N * M)
        + (o_key // CHUNK * (CHUNK * M) + o_key % CHUNK)[:, None, None]
        + o_value[None, None, :] * CHUNK
    )

    state = ()
    for i in tl.static_range(TILES):
        if initial_state is None:
            state = state + (tl.zeros([BK, G, BV], tl.float32),)
        else:
            state = state + (
                tl.load(initial_state + o_state + i * BK * M, mask=is_tile, other=0.0),
            )

    t_first = 0
    if positions is not None:
        # Positions are loaded two steps ahead, since their data is prefetched one step ahead.
        t_first = tl.load(positions)
        t_next = t_first
        t_after = tl.load(positions + min(1, T - 1))
    next_v = tl.load(v + t_first * v_time + o_v, mask=is_value, other=0.0)
    if gate is not None:
        next_gate = tl.load(gate + t_first * gate_time + o_gate, mask=is_value, other=0.0)
    for start in range(0, n_steps, EVERY):
        if checkpoints is not None:
            for i in tl.static_range(TILES):
                tl.store(
                    checkpoints + i * (BK * M) + o_checkpoint,
                    state[i].to(checkpoints.dtype.element_ty),
                    mask=is_tile,
                )
            checkpoints += N * M

        tl.debug_barrier()
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

        for step in range(start, min(start + EVERY, n_steps)):
            t = step
            if positions is not None:
                t = t_next
            row = (step - start) * (G * N)
            value = next_v.to(tl.float32)
            decay = tl.load(
                alpha + t * alpha_time + o_alpha,
                mask=is_value if PER_VALUE else is_head[:, None],
                other=0.0,
            )[None, :, :]
            # Prefetch for the next position: a load takes about as long as a step.
            if positions is None:
                t_next = min(t + 1, T - 1)
            else:
                t_next = t_after
                t_after = tl.load(positions + min(step + 2, n_steps - 1))
            next_v = tl.load(v + t_next * v_time + o_v, mask=is_value, other=0.0)
            if gate is not None:
                opened = silu(next_gate.to(tl.float32), FAST)
                next_gate = tl.load(gate + t_next * gate_time + o_gate, mask=is_value, other=0.0)
            if ACTIVATE:
                value = silu(value, FAST)

            is_written = True
            if written is not None:
                is_written = tl.load(written + t * written_time) != 0
            if is_written:
                part = tl.zeros([BK, G, BV], tl.float32)
                for i in tl.static_range(TILES):
                    part += tl.load(keys + row + i * BK + o_row)[:, :, None] * state[i]
                delta = (value - tl.sum(part, 0))[None, :, :]
                if beta is not None:
                    delta *= tl.load(
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
                    new = decay * state[i] + key * delta
                    if not LINEAR:
                        new = squash(new, FAST)
                    if blend is not None:
                        # Exactly S for a share of 0 and exactly C for a share of 1.
                        new = share * new + (1 - share) * state[i]
                    after = after + (new,)
                state = after

            part = tl.zeros([BK, G, BV], tl.float32)
            for i in tl.static_range(TILES):
                part += tl.load(queries + row + i * BK + o_row)[:, :, None] * state[i]
            read_out = tl.sum(part, 0)
            if SELF_GATE:
                read_out *= silu(read_out, FAST)
            if gate is not None:
                read_out *= opened
            tl.store(
                output + t * H * M + o_out,
                read_out.to(output.dtype.element_ty),
                mask=is_value,
            )

    for i in tl.static_range(TILES):
        tl.store(final_state + o_state + i * BK * M, state[i], mask=is_tile)
