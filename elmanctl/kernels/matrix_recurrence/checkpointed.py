"""Matrix recurrence in plain torch with a hand-written gradient and checkpointed states.

S_t is the state before position t; one matrix product computes two rows:

    [delta_t; o_{t-1}] = [v_t; 0] + [-k_t; q_{t-1}] S_t
    C_t                = tanh(alpha_t S_t + beta_t k_t delta_t^T)
    S_{t+1}            = S_t + b_t (C_t - S_t)

alpha_t is a scalar or a row with one entry per value.  Without a blend b_t, S_{t+1} is C_t and is
stored once.  Backward, with G the gradient of S_{t+1} and [d_t; e_{t-1}] that of the two rows:

    P   = b_t G * (1 - C_t^2)
    d_t = beta_t k_t P
    G   = alpha_t P + (1 - b_t) G + [-k_t; q_{t-1}]^T [d_t; e_{t-1}]

All other gradients are products of the P, G, C and S of one position, computed per segment.  On a
CPU the overhead of calling operations dominates, so each step uses as few as possible.
"""

from typing import Any, NamedTuple, cast

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.autograd.function import once_differentiable

from elmanctl.kernels.matrix_recurrence.sizes import CHECKPOINT_EVERY

KEY, QUERY = 0, 1
DELTA, READ_OUT = 0, 1


def torch_matrix_recurrence(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    alpha: Tensor,
    gate: Tensor | None = None,
    *,
    beta: Tensor | None = None,
    blend: Tensor | None = None,
    written: Tensor | None = None,
    initial_state: Tensor | None = None,
    read: str = "all",
    activation: str | None = None,
    self_gate: bool = False,
    linear_state: bool = False,
    normalize: bool = True,
    eps: float = 1e-12,
) -> tuple[Tensor, Tensor]:
    """Compute `naive_matrix_recurrence`, for any dtype and device; same arguments.

    All tensor arguments receive gradients, from the output and the final state; there is no double
    backward.  A blend of 0 leaves a state exactly unchanged, and one of 1 is exactly equivalent to
    no blend.
    """
    if activation == "silu":
        is_tied = v is k
        q, k = F.silu(q), F.silu(k)
        v = k if is_tied else F.silu(v)
    if written is not None:
        # A blend of 0 leaves a state and its gradient exactly unchanged.
        mask = written.to(alpha.dtype)
        blend = mask if blend is None else blend * mask
    inner_gate = None if self_gate else gate
    # Autocast would run the matrix products with the state in half precision.
    with torch.autocast(q.device.type, enabled=False):
        result = _MatrixRecurrence.apply(  # type: ignore[no-untyped-call]
            q, k, v, alpha, beta, blend, inner_gate, initial_state, linear_state, normalize, eps
        )
        output, final_state = cast(tuple[Tensor, Tensor], result)
        if self_gate:
            output = output * F.silu(output)
            output = output if gate is None else output * F.silu(gate)
    if written is not None and read == "written":
        # In place: no tensor saved for the backward pass shares memory with the output.
        output = output.masked_fill_(~written.unsqueeze(-1), 0.0)
    return output, final_state


class _Scan(NamedTuple):
    """Inputs and outputs of the time loop, time first, with X = B*H."""

    reads: Tensor  # [T+1, X, 2, N], rows -k_t and q_{t-1}, zero beyond either end
    results: Tensor  # [T+1, X, 2, M], rows delta_t and o_{t-1}
    decay: Tensor  # [T, X, 1, 1] or [T, X, 1, M], alpha
    rate: Tensor | None  # [T, X, 1, 1], beta
    blend: Tensor | None  # [T, X, 1, 1]
    is_linear: bool

    @property
    def writes(self) -> Tensor:
        """-beta_t k_t, [T, X, 1, N]."""
        keys = self.reads[:-1, :, KEY:QUERY]
        return keys if self.rate is None else keys * self.rate


class _Needs(NamedTuple):
    """Arguments that need a gradient."""

    q: bool
    k: bool
    v: bool
    alpha: bool
    beta: bool
    blend: bool
    gate: bool
    initial_state: bool


class _MatrixRecurrence(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        q: Tensor,
        k: Tensor,
        v: Tensor,
        alpha: Tensor,
        beta: Tensor | None,
        blend: Tensor | None,
        gate: Tensor | None,
        initial_state: Tensor | None,
        linear_state: bool,
        normalize: bool,
        eps: float,
    ) -> tuple[Tensor, Tensor]:
        batch, _, heads, n_key = k.shape
        dtype = torch.promote_types(q.dtype, torch.float32)
        q_scale, k_scale = (_inverse_length(x, dtype, eps) if normalize else None for x in (q, k))
        scan = _Scan(
            reads=_read_rows(q, k, q_scale, k_scale, dtype),
            results=_result_rows(v, dtype),
            decay=_time_first(alpha, dtype),
            rate=None if beta is None else _time_first(beta, dtype),
            blend=None if blend is None else _time_first(blend, dtype),
            is_linear=linear_state,
        )
        state = scan.reads.new_zeros(batch, heads, n_key, v.shape[-1])
        if initial_state is not None:
            state.copy_(initial_state)
        checkpoints = _run_forward(scan, state.view(batch * heads, n_key, -1))
        ctx.save_for_backward(*scan[:5], checkpoints, gate, q_scale, k_scale)
        ctx.is_linear = linear_state
        ctx.alpha_shape = alpha.shape
        inputs = (q, k, v, alpha, beta, blend, gate, initial_state)
        ctx.dtypes = [None if x is None else x.dtype for x in inputs]
        output = _gated(_row(scan.results[1:], READ_OUT, batch), gate)
        return output.to(v.dtype), state

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, d_output: Tensor, d_final: Tensor) -> tuple[Tensor | None, ...]:
        *scanned, checkpoints, gate, q_scale, k_scale = ctx.saved_tensors
        reads, results, decay, rate, blend = scanned
        scan = _Scan(reads, results, decay, rate, blend, ctx.is_linear)
        needs = _Needs(*ctx.needs_input_grad[:8])
        batch = d_output.shape[0]
        d_output = d_output.to(reads.dtype)
        d_gate = None
        if needs.gate:
            d_gate = _gate_gradient(d_output, _row(results[1:], READ_OUT, batch), gate)
        gradients: tuple[Tensor | None, ...] = (*(None,) * 6, d_gate, None)
        if any(needs._replace(gate=False)):
            walk = _BackwardWalk(scan, checkpoints, _result_gradients(d_output, gate), d_final)
            # Under autocast the matrix products with the state would run in half precision.
            with torch.autocast(reads.device.type, enabled=False):
                walk.run(needs)
            gradients = (
                _query_gradient(walk, q_scale, batch) if needs.q else None,
                _key_gradient(walk, k_scale, batch) if needs.k else None,
                _row(walk.d_results[:-1], DELTA, batch) if needs.v else None,
                _batch_first(walk.d_decay, ctx.alpha_shape) if needs.alpha else None,
                _batch_first(walk.d_rate, ctx.alpha_shape[:3]) if needs.beta else None,
                _batch_first(walk.d_blend, ctx.alpha_shape[:3]) if needs.blend else None,
                d_gate,
                walk.d_state.view_as(d_final) if needs.initial_state else None,
            )
        converted = (
            None if gradient is None else gradient.to(dtype)
            for gradient, dtype in zip(gradients, ctx.dtypes, strict=True)
        )
        return (*converted, None, None, None)


class _Step:
    """State update at each position of [start, stop), given the deltas."""

    def __init__(self, scan: _Scan, start: int, stop: int) -> None:
        decay = scan.decay[start:stop]
        self.is_linear = scan.is_linear
        self.decay = (decay if scan.is_linear else 2 * decay).unbind(0)
        self.writes = scan.writes[start:stop].transpose(2, 3).unbind(0)
        self.deltas = scan.results[start:stop, :, DELTA:READ_OUT].unbind(0)
        self.blends = None if scan.blend is None else scan.blend[start:stop].unbind(0)
        self.minus_one = decay.new_full((1,), -1.0)

    def __call__(self, index: int, state: Tensor, candidate: Tensor, out: Tensor) -> None:
        """Write C of position `start + index` to `candidate` and the state after it to `out`.

        `out` may alias `state`.  `candidate` must be `out` without a blend, and alias neither
        `state` nor `out` with one.
        """
        self._compute_candidate(index, state, candidate)
        if self.blends is not None:
            # lerp starts from the nearer end, so it is exact at 0 and at 1.
            torch.lerp(state, candidate, self.blends[index], out=out)

    def _compute_candidate(self, index: int, state: Tensor, out: Tensor) -> None:
        torch.mul(state, self.decay[index], out=out)
        if self.is_linear:
            out.addcmul_(self.writes[index], self.deltas[index], value=-1)
            return
        # On a CPU tanh x = 2 sigmoid(2x) - 1 takes a third of the time of tanh, with an absolute
        # error of 2e-7 instead of 3e-8 in float32.  The decay and `value` include the inner 2.
        out.addcmul_(self.writes[index], self.deltas[index], value=-2)
        out.sigmoid_()
        torch.add(self.minus_one, out, alpha=2, out=out)


def _run_forward(scan: _Scan, state: Tensor) -> Tensor:
    """Advance `state` in place to the end and fill `scan.results`; return the checkpoints."""
    length = scan.decay.shape[0]
    checkpoints = state.new_empty(-(-length // CHECKPOINT_EVERY), *state.shape)
    reads, results = scan.reads.unbind(0), scan.results.unbind(0)
    candidate = state if scan.blend is None else torch.empty_like(state)
    advance = _Step(scan, 0, length)
    for t in range(length):
        if t % CHECKPOINT_EVERY == 0:
            checkpoints[t // CHECKPOINT_EVERY].copy_(state)
        results[t].baddbmm_(reads[t], state)
        advance(t, state, candidate, state)
    results[length].baddbmm_(reads[length], state)
    return checkpoints


class _BackwardWalk:
    """Backward pass over the segments, last to first.

    `d_results` holds the gradients of the read-outs and receives those of the deltas; `d_state` is
    the gradient of the state at the current position.
    """

    def __init__(
        self, scan: _Scan, checkpoints: Tensor, d_results: Tensor, d_final: Tensor
    ) -> None:
        self.scan = scan
        self.checkpoints = checkpoints
        self.length = scan.decay.shape[0]
        self.d_results = d_results
        self.d_state = d_final.reshape(checkpoints.shape[1:]).to(checkpoints.dtype, copy=True)
        self.d_reads = torch.empty_like(scan.reads)
        self.d_writes = torch.empty_like(scan.writes)
        self.d_decay = torch.empty_like(scan.decay)
        n_slots = min(CHECKPOINT_EVERY, self.length)
        self.states = checkpoints.new_empty(n_slots + 1, *checkpoints.shape[1:])
        self.slopes = torch.empty_like(self.states[1:])
        if scan.blend is None:
            # Candidates are the states themselves, and one buffer serves all state gradients.
            self.candidates = self.states[1:]
            self.d_states = self.d_state.expand(n_slots + 1, -1, -1, -1)
            self.d_blend = checkpoints.new_empty(0)
        else:
            self.candidates = torch.empty_like(self.slopes)
            self.d_states = torch.empty_like(self.states)
            self.d_blend = torch.empty_like(scan.blend)

    @property
    def d_rate(self) -> Tensor:
        """Gradient of beta, [T, X, 1, 1]."""
        return -(self.scan.reads[:-1, :, KEY:QUERY] * self.d_writes).sum(-1, keepdim=True)

    def run(self, needs: _Needs) -> None:
        """Compute all gradients in `needs`."""
        for segment in reversed(range(len(self.checkpoints))):
            start = segment * CHECKPOINT_EVERY
            stop = min(start + CHECKPOINT_EVERY, self.length)
            self._replay(segment, start, stop)
            if stop == self.length:
                self._add_last_read_out(stop, self.states[stop - start])
            self._walk(start, stop)
            self._accumulate(start, stop, needs)

    def _replay(self, segment: int, start: int, stop: int) -> None:
        count = stop - start
        states, candidates = self.states.unbind(0), self.candidates.unbind(0)
        states[0].copy_(self.checkpoints[segment])
        advance = _Step(self.scan, start, stop)
        for index in range(count):
            advance(index, states[index], candidates[index], states[index + 1])
        if self.scan.is_linear:
            self.slopes.fill_(1.0)
        else:
            squashed, one = self.candidates[:count], self.states.new_ones(1)
            torch.addcmul(one, squashed, squashed, value=-1, out=self.slopes[:count])
        if self.scan.blend is not None:
            self.slopes[:count].mul_(self.scan.blend[start:stop])

    def _add_last_read_out(self, t: int, state: Tensor) -> None:
        """Add the gradients of the last read-out, which no step follows."""
        self.d_state.baddbmm_(self.scan.reads[t].transpose(1, 2), self.d_results[t])
        torch.bmm(self.d_results[t], state.transpose(1, 2), out=self.d_reads[t])

    def _walk(self, start: int, stop: int) -> None:
        """Turn `slopes` into P for each position; move `d_state` back to the state at `start`."""
        count = stop - start
        products = self.slopes.unbind(0)
        d_results = self.d_results[start:stop].unbind(0)
        reads = self.scan.reads[start:stop].transpose(2, 3).unbind(0)
        decay = self.scan.decay[start:stop].unbind(0)
        # With a zero second row the sum below leaves the gradient of the read-out unchanged, and
        # both rows are ready for the next product.
        writes = F.pad(self.scan.writes[start:stop], (0, 0, 0, 1)).unbind(0)
        kept = None if self.scan.blend is None else (1 - self.scan.blend[start:stop]).unbind(0)
        d_states = self.d_states[: count + 1].unbind(0)
        if kept is not None:
            d_states[count].copy_(self.d_state)
        for index in reversed(range(count)):
            product = products[index].mul_(d_states[index + 1])
            d_results[index].baddbmm_(writes[index], product, alpha=-1)
            torch.mul(product, decay[index], out=d_states[index])
            if kept is not None:
                d_states[index].addcmul_(d_states[index + 1], kept[index])
            d_states[index].baddbmm_(reads[index], d_results[index])
        if kept is not None:
            self.d_state.copy_(d_states[0])

    def _accumulate(self, start: int, stop: int, needs: _Needs) -> None:
        """Compute the gradients of a segment that follow from its P, G, C and S in any order."""
        count = stop - start
        before, products = self.states[:count], self.slopes[:count]
        if needs.q or needs.k:
            torch.matmul(
                self.d_results[start:stop], before.transpose(2, 3), out=self.d_reads[start:stop]
            )
        if needs.k or needs.beta:
            deltas = self.scan.results[start:stop, :, DELTA:READ_OUT]
            torch.matmul(deltas, products.transpose(2, 3), out=self.d_writes[start:stop])
        if needs.alpha:
            axes = (2, 3) if self.d_decay.shape[3] == 1 else (2,)
            torch.sum(products.mul_(before), axes, True, out=self.d_decay[start:stop])
        if needs.blend:
            changes = self.candidates[:count].sub_(before).mul_(self.d_states[1 : count + 1])
            torch.sum(changes, (2, 3), True, out=self.d_blend[start:stop])


def _read_rows(
    q: Tensor, k: Tensor, q_scale: Tensor | None, k_scale: Tensor | None, dtype: torch.dtype
) -> Tensor:
    batch, length, heads, n_key = k.shape
    rows = k.new_empty(length + 1, batch, heads, 2, n_key, dtype=dtype)
    keys, queries = rows[:, :, :, KEY], rows[:, :, :, QUERY]
    keys[length].zero_()
    queries[0].zero_()
    torch.mul(k.transpose(0, 1), -1 if k_scale is None else -k_scale.transpose(0, 1), out=keys[:-1])
    torch.mul(q.transpose(0, 1), 1 if q_scale is None else q_scale.transpose(0, 1), out=queries[1:])
    return rows.view(length + 1, batch * heads, 2, n_key)


def _result_rows(v: Tensor, dtype: torch.dtype) -> Tensor:
    """Return the initial results, to which the reads are added: the values, and zero outputs."""
    batch, length, heads, n_value = v.shape
    rows = v.new_zeros(length + 1, batch, heads, 2, n_value, dtype=dtype)
    rows[:-1, :, :, DELTA] = v.transpose(0, 1)
    return rows.view(length + 1, batch * heads, 2, n_value)


def _result_gradients(d_output: Tensor, gate: Tensor | None) -> Tensor:
    batch, length, heads, n_value = d_output.shape
    rows = d_output.new_zeros(length + 1, batch, heads, 2, n_value)
    d_read_out = d_output if gate is None else d_output * F.silu(gate.to(d_output.dtype))
    rows[1:, :, :, READ_OUT] = d_read_out.transpose(0, 1)
    return rows.view(length + 1, batch * heads, 2, n_value)


def _inverse_length(x: Tensor, dtype: torch.dtype, eps: float) -> Tensor:
    """Return 1 / sqrt(|x|^2 + eps), [B, T, H, 1]."""
    return x.to(dtype).square().sum(-1, keepdim=True).add_(eps).rsqrt_()


def _time_first(x: Tensor, dtype: torch.dtype) -> Tensor:
    """Reshape [B, T, H] to [T, B*H, 1, 1], or [B, T, H, M] to [T, B*H, 1, M]."""
    batch, length, heads = x.shape[:3]
    return x.to(dtype).transpose(0, 1).reshape(length, batch * heads, 1, *(x.shape[3:] or (1,)))


def _batch_first(x: Tensor, shape: torch.Size) -> Tensor:
    """Invert `_time_first` for a tensor of the given original shape."""
    batch, length, *rest = shape
    return x.view(length, batch, *rest).transpose(0, 1)


def _row(rows: Tensor, index: int, batch: int) -> Tensor:
    """Return one row of [T, B*H, 2, N] as a view [B, T, H, N]."""
    length, both, n_rows, n_columns = rows.shape
    return rows.view(length, batch, both // batch, n_rows, n_columns)[:, :, :, index].transpose(
        0, 1
    )


def _gated(read_out: Tensor, gate: Tensor | None) -> Tensor:
    output = torch.empty(read_out.shape, dtype=read_out.dtype, device=read_out.device)
    if gate is None:
        return output.copy_(read_out)
    return torch.mul(read_out, F.silu(gate.to(read_out.dtype)), out=output)


def _gate_gradient(d_output: Tensor, read_out: Tensor, gate: Tensor) -> Tensor:
    """Return the gradient of the gate from the saved read-out, with no division by the gate."""
    gate = gate.to(d_output.dtype)
    sigma = torch.sigmoid(gate)
    slope = sigma * (1 + gate * (1 - sigma))
    return d_output * read_out * slope


def _query_gradient(walk: _BackwardWalk, scale: Tensor | None, batch: int) -> Tensor:
    unit = _row(walk.scan.reads[1:], QUERY, batch)
    return _normalization_gradient(_row(walk.d_reads[1:], QUERY, batch), unit, scale)


def _key_gradient(walk: _BackwardWalk, scale: Tensor | None, batch: int) -> Tensor:
    d_writes = walk.d_writes if walk.scan.rate is None else walk.d_writes * walk.scan.rate
    d_unit = _row(d_writes, 0, batch) - _row(walk.d_reads[:-1], KEY, batch)
    return _normalization_gradient(d_unit, _row(walk.scan.reads[:-1], KEY, batch), scale)


def _normalization_gradient(d_unit: Tensor, unit: Tensor, scale: Tensor | None) -> Tensor:
    """Return the gradient of x from that of x * scale; the sign of `unit` does not matter."""
    if scale is None:
        return d_unit
    return scale * (d_unit - unit * (unit * d_unit).sum(-1, keepdim=True))
