"""Reference implementation of Mamba2's recurrence: a plain time loop that backends must match."""

import torch
from torch import Tensor


def naive_state_space_dual(
    x: Tensor,
    step: Tensor,
    rate: Tensor,
    write: Tensor,
    read: Tensor,
    *,
    initial_state: Tensor | None = None,
) -> tuple[Tensor, Tensor]:
    """Run the recurrence position by position, under autograd; return output and final state.

    With h the state of a head, value by key: `h <- exp(-rate step) h + step x write^T`, then
    `y = h read`.

    x, y: [B, T, H, P]; write, read: [B, T, N]; step: [B, T, H]; rate: [H]; states: [B, H, P, N] in
    float32, or float64 for float64 inputs.  The output has x's dtype.
    """
    state_dtype = torch.promote_types(x.dtype, torch.float32)
    value, key, query = (t.to(state_dtype) for t in (x, write, read))
    batch, length, heads, width = x.shape
    state = (
        value.new_zeros(batch, heads, width, key.shape[-1])
        if initial_state is None
        else initial_state.to(state_dtype)
    )
    outputs = []
    for t in range(length):
        decay = torch.exp(-rate * step[:, t])[..., None, None]
        written = (step[:, t, :, None] * value[:, t]).unsqueeze(-1) * key[:, t, None, None, :]
        state = decay * state + written
        outputs.append((state * query[:, t, None, None, :]).sum(-1))
    return torch.stack(outputs, dim=1).to(x.dtype), state
