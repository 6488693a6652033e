"""Chunked recurrence of Mamba2: matrix products instead of a time loop.

Within a chunk the output is masked attention: position l reads what s wrote, scaled by the decays
between them, `(read_l . write_s) exp(sum of -rate step over (s, l])`.  Only the states at chunk
boundaries are sequential (Dao and Gu, 2024, arXiv 2405.21060, section 6).
"""

import torch
import torch.nn.functional as F
from torch import Tensor

from elmanctl.kernels.state_space_dual.sizes import CHUNK


def chunked_state_space_dual(
    x: Tensor,
    step: Tensor,
    rate: Tensor,
    write: Tensor,
    read: Tensor,
    *,
    initial_state: Tensor | None = None,
    chunk: int = CHUNK,
) -> tuple[Tensor, Tensor]:
    """Run the recurrence chunk by chunk, under autograd; return output and final state.

    x, y: [B, T, H, P]; write, read: [B, T, N]; step: [B, T, H]; rate: [H]; states: [B, H, P, N] in
    float32, or float64 for float64 inputs.  The output has x's dtype.
    """
    state_dtype = torch.promote_types(x.dtype, torch.float32)
    batch, length, heads, width = x.shape
    chunk = min(chunk, length)
    log_decay = _split_chunks(-rate * step, chunk).transpose(2, 3)  # [B, C, H, L]
    written = _split_chunks(step.unsqueeze(-1) * x.to(state_dtype), chunk)  # [B, C, L, H, P]
    key, query = (_split_chunks(t.to(state_dtype), chunk) for t in (write, read))  # [B, C, L, N]

    between = segment_sums(log_decay).exp()  # [B, C, H, L, L], read by write
    scores = between * (query @ key.mT).unsqueeze(2)
    within = torch.einsum("bchls,bcshp->bclhp", scores, written)

    to_end = between[..., -1, :].transpose(2, 3).unsqueeze(-1)  # [B, C, L, H, 1]
    added = torch.einsum("bclhp,bcln->bchpn", to_end * written, key)
    from_start = log_decay.cumsum(-1).exp()  # [B, C, H, L]
    if initial_state is None:
        initial_state = written.new_zeros(batch, heads, width, key.shape[-1])
    before, state = _scan_chunks(initial_state.to(state_dtype), from_start[..., -1], added)
    across = torch.einsum("bcln,bchpn->bclhp", query, before)
    output = within + from_start.transpose(2, 3).unsqueeze(-1) * across
    return output.flatten(1, 2)[:, :length].to(x.dtype), state


def segment_sums(x: Tensor) -> Tensor:
    """Return the sums [..., l, s] of x [..., L] over positions (s, l]; minus infinity for s > l.

    Each sum is accumulated on its own: a difference of two cumulative sums would lose small decays
    next to a large one.
    """
    length = x.shape[-1]
    all_true = torch.ones(length, length, dtype=torch.bool, device=x.device)
    terms = x.unsqueeze(-1).masked_fill(~all_true.tril(-1), 0.0)
    return terms.cumsum(-2).masked_fill(~all_true.tril(), -torch.inf)


def _split_chunks(x: Tensor, chunk: int) -> Tensor:
    """Reshape [B, T, ...] to [B, C, chunk, ...], zero-padded at the end.

    Padded positions write nothing and have a decay of 1, so the state is unchanged.
    """
    batch, length, *rest = x.shape
    padded = F.pad(x, (0, 0) * len(rest) + (0, -length % chunk))
    return padded.reshape(batch, -1, chunk, *rest)


def _scan_chunks(state: Tensor, decay: Tensor, added: Tensor) -> tuple[Tensor, Tensor]:
    """Return the states before each chunk [B, C, H, P, N] and the one after the last.

    Chunk c maps the state s to `decay_c s + added_c`; decay: [B, C, H], added: [B, C, H, P, N].
    """
    before = []
    for c in range(decay.shape[1]):
        before.append(state)
        state = decay[:, c, :, None, None] * state + added[:, c]
    return torch.stack(before, dim=1), state
