"""Chunked gated delta rule in plain torch: matrix products, on any device.

In a chunk with initial state S, where D_ti is the decay from after position i to t (from the start
of the chunk for i = 0), the written vectors u_t solve a triangular system:

    u_t + beta_t sum_{i<t} D_ti (k_t . k_i) u_i = beta_t (v_t - D_t0 S^T k_t)

In matrix form (I + A) U = beta V - (beta D_0 K) S: the WY representation of Yang et al. (2024,
arXiv 2406.06484; with decay 2412.06464).  (I + A) U_0 = beta V and (I + A) W = beta D_0 K are
solved for all chunks at once; only U = U_0 - W S, the outputs and the next state S' are sequential:

    o_t = D_t0 S^T q_t + sum_{i<=t} D_ti (q_t . k_i) u_i
    S'  = D_C0 S + sum_i D_Ci k_i u_i^T
"""

import torch
import torch.nn.functional as F
from torch import Tensor

from elmanctl.kernels.gated_delta_rule.naive import normalize_inputs
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
    """Compute `naive_gated_delta_rule`, `chunk` positions at a time; same arguments."""
    query, key, value = normalize_inputs(q, k, v)
    batch, length, heads, n_key = key.shape
    chunk = min(chunk, length)
    # Padded positions write nothing (beta 0, keys 0) and do not decay (log decay 0).
    query, key, value = (_split_chunks(x, chunk) for x in (query, key, value))  # [B, H, n, C, .]
    beta, log_decay = (_split_chunks(x.unsqueeze(-1), chunk) for x in (beta, log_decay))
    decay = _pairwise_decay(log_decay.squeeze(-1))  # [B, H, n, C, C]
    from_start = log_decay.cumsum(-2).exp()  # [B, H, n, C, 1]
    to_end = decay[..., -1, :, None]  # [B, H, n, C, 1]

    system = beta * decay * (key @ key.mT)
    rhs = torch.cat((beta * value, beta * from_start * key), dim=-1)
    # Only the strictly lower triangle of `system` is read.
    solved = torch.linalg.solve_triangular(system, rhs, upper=False, unitriangular=True)
    n_value = value.shape[-1]
    u_0, w = solved[..., :n_value], solved[..., n_value:]

    scores = decay * (query @ key.mT)
    query, key, chunk_decay = query * from_start, key * to_end, from_start[..., -1:, :]
    state = key.new_zeros(batch, heads, n_key, n_value) if initial_state is None else initial_state
    outputs = []
    for n in range(key.shape[2]):
        u = u_0[:, :, n] - w[:, :, n] @ state
        outputs.append(query[:, :, n] @ state + scores[:, :, n] @ u)
        state = chunk_decay[:, :, n] * state + key[:, :, n].mT @ u
    output = torch.cat(outputs, dim=2)[:, :, :length]
    return output.transpose(1, 2).to(v.dtype), state


def _split_chunks(x: Tensor, chunk: int) -> Tensor:
    """Reshape [B, T, H, W] to [B, H, chunks, chunk, W], zero-padded at the end."""
    padded = F.pad(x, (0, 0, 0, 0, 0, -x.shape[1] % chunk)).transpose(1, 2)
    return padded.reshape(*padded.shape[:2], -1, chunk, x.shape[-1])


def _pairwise_decay(log_decay: Tensor) -> Tensor:
    """Return the decays [..., t, i] from after position i to t, 0 for i > t; log_decay: [..., C].

    Each entry is the exponential of its own sum.  Differences of cumulative sums would lose small
    log decays after a large one, and be NaN after minus infinity.
    """
    size = log_decay.shape[-1]
    steps = log_decay.unsqueeze(-1).expand(*log_decay.shape, size).tril(-1)
    return steps.cumsum(-2).exp().tril()
