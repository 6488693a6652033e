"""The forward kernel of the matrix recurrence; imports no torch.

One program is one warp.  It has BV values of G heads of one sequence, which no other program needs,
and walks through all positions.  What it does in one of them is bound by the special-function unit,
which gives a warp one tanh of each lane in 8 cycles; everything else is kept out of that walk.
"""

import triton
import triton.language as tl

from elmanctl.kernels.matrix_recurrence.triton_parts import address, silu, squash

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
    q, k, v, alpha, beta, blend, written, places, gate, initial_state,
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
    """Walk through [B, T] for G heads and BV values; keep the state before every EVERY positions.

    q, k: [B, T, H, N]; v, gate: [B, T, H, M]; alpha: [B, T, H] or [B, T, H, M]; beta, blend,
    written: [B, T, H]; all by their strides but the last, which is 1.  The others lie without
    gaps: output [B, T, H, M], states [B, H, N, M], checkpoints [B, H, ceil(T / EVERY), N / CHUNK,
    M, CHUNK], scratch [programs, 2, EVERY, G, N].  UNIT divides the strides of q, k, v and gate.
    With places [B, H, 2 + T], G is 1, and a head has but some of the positions: places holds how
    many, which of all checkpoints is its first, and then the positions, rising.
    """
    TILES: tl.constexpr = N // BK
    # Products with these outgrow 32 bits.
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
    if places is not None:
        places += (i_batch * H + i_head) * (T + 2)
        n_steps = tl.load(places)
        first_segment = tl.load(places + 1).to(tl.int64)
        places += 2

    # Raw keys or queries of a segment, [ROWS, G, BN].
    # They go through the registers ROWS positions at a time: sixteen numbers a lane are enough.
    ROWS: tl.constexpr = EVERY if N <= 16 or EVERY * 16 < BN else EVERY * 16 // BN
    o_time = tl.arange(0, ROWS)[:, None, None]
    o_all = tl.arange(0, BN)[None, None, :]
    is_raw = is_head[None, :, None] & (o_all < N)
    # Positions lie as far apart as strides say, or where `places` says.
    o_apart = o_time if places is None else tl.zeros_like(o_time)
    o_q = (o_apart * q_time.to(tl.int32) + o_head[None, :, None] * q_head) * UNIT + o_all
    o_k = (o_apart * k_time.to(tl.int32) + o_head[None, :, None] * k_head) * UNIT + o_all
    q += i_batch * q_batch * UNIT
    k += i_batch * k_batch * UNIT

    # Where this program leaves them for itself, [EVERY, G, N].
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
    i_first = (i_batch * H + i_head) * n_segments if places is None else first_segment
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
    if places is not None:
        # Loaded two positions ahead: what lies at a position is asked for one ahead.
        t_first = tl.load(places)
        t_next = t_first
        t_after = tl.load(places + min(1, T - 1))
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
            is_there = is_raw & is_step
            o_t = start + first
            if places is not None:
                o_t = tl.load(places + o_t + o_time, mask=is_step, other=0)
            raw_k = tl.load(k + o_t * k_time * UNIT + o_k, mask=is_there, other=0.0)
            raw_q = tl.load(q + o_t * q_time * UNIT + o_q, mask=is_there, other=0.0)
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
            if places is not None:
                t = t_next
            row = (step - start) * (G * N)
            value = next_v.to(tl.float32)
            decay = tl.load(
                alpha + t * alpha_time + o_alpha,
                mask=is_value if PER_VALUE else is_head[:, None],
                other=0.0,
            )[None, :, :]
            # What is loaded here is used at the next position: a load takes as long as a position.
            if places is None:
                t_next = min(t + 1, T - 1)
            else:
                t_next = t_after
                t_after = tl.load(places + min(step + 2, n_steps - 1))
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
                        # This order gives S for a share of 0 and C for a share of 1, exactly.
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
