"""The gated delta rule chunk by chunk, in matrix products: plain torch, on any device.

Within a chunk that starts from the state S, with D_ti the decay from after position i to t (from
the start of the chunk for i = 0), the vectors that are written, u_t, solve a triangular system:

    u_t + beta_t sum_{i<t} D_ti (k_t . k_i) u_i = beta_t (v_t - D_t0 S^T k_t)

(I + A) U = beta V - (beta D_0 K) S in matrices: the WY form of Yang et al., 2024 (arXiv 2406.06484,
with a decay 2412.06464).  (I + A) U_0 = beta V and (I + A) W = beta D_0 K are solved for all chunks
at once; what remains from chunk to chunk is U = U_0 - W S, the outputs, and the next state S':

    o_t = D_t0 S^T q_t + sum_{i<=t} D_ti (q_t . k_i) u_i
    S'  = D_C0 S + sum_i D_Ci k_i u_i^T
"""

import torch
import torch.nn.functional as F
from torch import Tensor

from elmanctl.kernels.gated_delta_rule.naive import as_computed
from elmanctl.kernels.gated_delta_rule.sizes import CHUNK


def chunked_gated_delta_rule(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    log_decay: Tensor,
    beta: Tensor,
    *,
    initial_state: Tensor | None = None,
    chunk: int = CHUNK,
) -> tuple[Tensor, Tensor]:
    """Compute what `naive_gated_delta_rule` does, `chunk` positions at a time; see there."""
    query, key, value = as_computed(q, k, v)
    batch, length, heads, n_key = key.shape
    chunk = min(chunk, length)
    # Padding writes nothing (beta 0, keys 0) and decays nothing (logarithm 0).
    query, key, value = (_chunks(x, chunk) for x in (query, key, value))  # [B, H, n, C, K or V]
    beta, log_decay = (_chunks(x.unsqueeze(-1), chunk) for x in (beta, log_decay))  # [.., C, 1]
    decay = _decay_between(log_decay.squeeze(-1))  # [B, H, n, C, C]
    from_start = log_decay.cumsum(-2).exp()  # [B, H, n, C, 1]
    to_end = decay[..., -1, :, None]  # [B, H, n, C, 1]

    system = beta * decay * (key @ key.mT)
    right = torch.cat((beta * value, beta * from_start * key), dim=-1)
    # Only what is below the diagonal is read.
    solved = torch.linalg.solve_triangular(system, right, upper=False, unitriangular=True)
    n_value = value.shape[-1]
    written, shadow = solved[..., :n_value], solved[..., n_value:]

    within = decay * (query @ key.mT)
    query, key, kept = query * from_start, key * to_end, from_start[..., -1:, :]
    state = key.new_zeros(batch, heads, n_key, n_value) if initial_state is None else initial_state
    outputs = []
    for n in range(key.shape[2]):
        update = written[:, :, n] - shadow[:, :, n] @ state
        outputs.append(query[:, :, n] @ state + within[:, :, n] @ update)
        state = kept[:, :, n] * state + key[:, :, n].mT @ update
    output = torch.cat(outputs, dim=2)[:, :, :length]
    return output.transpose(1, 2).to(v.dtype), state


def _chunks(x: Tensor, chunk: int) -> Tensor:
    """[B, T, H, W] as [B, H, chunks, chunk, W], zeros after the end."""
    padded = F.pad(x, (0, 0, 0, 0, 0, -x.shape[1] % chunk)).transpose(1, 2)
    return padded.reshape(*padded.shape[:2], -1, chunk, x.shape[-1])


def _decay_between(log_decay: Tensor) -> Tensor:
    """[..., C] as the decays [..., t, i] from after position i to t, 0 for i after t.

    Each is the exponential of a sum of its own: differences of sums from the start lose the small
    decays behind a large one, and are not numbers behind one of minus infinity.
    """
    size = log_decay.shape[-1]
    steps = log_decay.unsqueeze(-1).expand(*log_decay.shape, size).tril(-1)
    return steps.cumsum(-2).exp().tril()
