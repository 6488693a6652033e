"""Reference implementation of the matrix recurrence: a plain time loop that backends must match."""

import torch
import torch.nn.functional as F
from torch import Tensor


def naive_matrix_recurrence(
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
    """Run the delta rule on a matrix state with tanh, position by position, under autograd.

    With S the state, key by value, and k, q of unit length:
    `C = tanh(alpha S + beta k (v - S^T k)^T)`, then `S <- S + blend (C - S)` where `written`, then
    `o = S^T q`, then `o * silu(o)` with `self_gate`, then `o * silu(gate)`.

    q, k: [B, T, H, N]; v, gate, output: [B, T, H, M]; beta, blend: [B, T, H], 1 by default;
    written: bool [B, T, H], true by default; alpha: [B, T, H], or [B, T, H, M] with one decay per
    value; states: [B, H, N, M] in float32, or float64 for float64 inputs.  The output has v's
    dtype; with `read` "written" it is 0 at positions that are not written.
    `linear_state` omits the tanh; `activation` "silu" is applied to q, k and v, and then
    `normalize` divides q and k by sqrt(|x|^2 + eps).
    """
    state_dtype = torch.promote_types(q.dtype, torch.float32)
    query, key, value = (x.to(state_dtype) for x in (q, k, v))
    if activation == "silu":
        query, key, value = F.silu(query), F.silu(key), F.silu(value)
    if normalize:
        query, key = _unit_length(query, eps), _unit_length(key, eps)
    batch, length, heads, n_key = key.shape
    state = (
        key.new_zeros(batch, heads, n_key, value.shape[-1])
        if initial_state is None
        else initial_state.to(state_dtype)
    )
    decay = alpha.unsqueeze(-1) if alpha.ndim == 3 else alpha
    read_outs = []
    for t in range(length):
        delta = value[:, t] - _read(state, key[:, t])
        write = key[:, t] if beta is None else key[:, t] * beta[:, t, :, None]
        after = decay[:, t].unsqueeze(-2) * state + write.unsqueeze(-1) * delta.unsqueeze(-2)
        if not linear_state:
            after = torch.tanh(after)
        if blend is not None:
            after = torch.lerp(state, after, blend[:, t, :, None, None])
        if written is not None:
            after = torch.where(written[:, t, :, None, None], after, state)
        state = after
        read_outs.append(_read(state, query[:, t]))
    output = torch.stack(read_outs, dim=1)
    if self_gate:
        output = output * F.silu(output)
    if gate is not None:
        output = output * F.silu(gate.to(state_dtype))
    if written is not None and read == "written":
        output = torch.where(written.unsqueeze(-1), output, 0.0)
    return output.to(v.dtype), state


def _unit_length(x: Tensor, eps: float) -> Tensor:
    return x * torch.rsqrt(x.square().sum(-1, keepdim=True) + eps)


def _read(state: Tensor, address: Tensor) -> Tensor:
    return (state * address.unsqueeze(-1)).sum(-2)
