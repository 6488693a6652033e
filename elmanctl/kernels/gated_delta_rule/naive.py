"""Reference implementation of the gated delta rule: a plain time loop that backends must match."""

import torch
from torch import Tensor

NORM_EPS = 1e-6


def naive_gated_delta_rule(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    log_decay: Tensor,
    beta: Tensor,
    *,
    initial_state: Tensor | None = None,
) -> tuple[Tensor, Tensor]:
    """Run the linear delta rule with decay position by position, under autograd.

    With S the state, key by value, k and q of unit length and q scaled by 1 / sqrt(K):
    `S <- alpha S`, then `S <- S + beta k (v - S^T k)^T`, then `o = S^T q`.

    q, k: [B, T, H, K]; v, output: [B, T, H, V]; log_decay (the logarithm of alpha), beta:
    [B, T, H]; states: [B, H, K, V] in float32, or float64 for float64 inputs.  The output has v's
    dtype.
    """
    query, key, value = normalize_inputs(q, k, v)
    batch, length, heads, n_key = key.shape
    state = (
        key.new_zeros(batch, heads, n_key, value.shape[-1])
        if initial_state is None
        else initial_state
    )
    alpha = log_decay.exp()
    read_outs = []
    for t in range(length):
        state = alpha[:, t, :, None, None] * state
        delta = beta[:, t, :, None] * (value[:, t] - _read(state, key[:, t]))
        state = state + key[:, t].unsqueeze(-1) * delta.unsqueeze(-2)
        read_outs.append(_read(state, query[:, t]))
    return torch.stack(read_outs, dim=1).to(v.dtype), state


def normalize_inputs(q: Tensor, k: Tensor, v: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Return q, k and v in the dtype of the state, q and k of unit length, q scaled by K^-1/2."""
    dtype = torch.promote_types(k.dtype, torch.float32)
    query, key, value = (x.to(dtype) for x in (q, k, v))
    return _unit_length(query) * key.shape[-1] ** -0.5, _unit_length(key), value


def _unit_length(x: Tensor) -> Tensor:
    return x * torch.rsqrt(x.square().sum(-1, keepdim=True) + NORM_EPS)


def _read(state: Tensor, address: Tensor) -> Tensor:
    return (state * address.unsqueeze(-1)).sum(-2)
