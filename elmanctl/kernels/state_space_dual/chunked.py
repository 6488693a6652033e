"""The recurrence of Mamba2 in chunks of positions: products of matrices instead of a time loop.

Within a chunk the output is a masked attention: position l reads what s wrote, weakened by the
decays of the positions in between, `(read_l . write_s) exp(sum of -rate step over (s, l])`.  Only
the states at the ends of the chunks follow one another (Dao and Gu, 2024, arXiv 2405.21060,
section 6).
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
    """Run the recurrence chunk by chunk, under autograd; return the output and the final state.

    x, y: [B, T, H, P]; write, read: [B, T, N]; step: [B, T, H]; rate: [H]; states: [B, H, P, N] in
    float32, or float64 for float64 inputs.  The output has x's dtype.
    """
    state_dtype = torch.promote_types(x.dtype, torch.float32)
    batch, length, heads, width = x.shape
    chunk = min(chunk, length)
    log_decay = _in_chunks(-rate * step, chunk).transpose(2, 3)  # [B, C, H, L]
    written = _in_chunks(step.unsqueeze(-1) * x.to(state_dtype), chunk)  # [B, C, L, H, P]
    key, query = (_in_chunks(t.to(state_dtype), chunk) for t in (write, read))  # [B, C, L, N]

    between = segment_sums(log_decay).exp()  # [B, C, H, L, L], read by write
    scores = between * (query @ key.mT).unsqueeze(2)
    within = torch.einsum("bchls,bcshp->bclhp", scores, written)

    to_end = between[..., -1, :].transpose(2, 3).unsqueeze(-1)  # [B, C, L, H, 1]
    added = torch.einsum("bclhp,bcln->bchpn", to_end * written, key)
    from_start = log_decay.cumsum(-1).exp()  # [B, C, H, L]
    if initial_state is None:
        initial_state = written.new_zeros(batch, heads, width, key.shape[-1])
    before, state = _pass_on(initial_state.to(state_dtype), from_start[..., -1], added)
    across = torch.einsum("bcln,bchpn->bclhp", query, before)
    output = within + from_start.transpose(2, 3).unsqueeze(-1) * across
    return output.flatten(1, 2)[:, :length].to(x.dtype), state


def segment_sums(x: Tensor) -> Tensor:
    """Return [..., l, s], the sum of x over the positions after s up to l, of x [..., L].

    It is minus infinity where s comes after l.  Each sum is made of its own terms: a difference of
    two cumulative sums would lose the small decays next to a large one.
    """
    length = x.shape[-1]
    all_true = torch.ones(length, length, dtype=torch.bool, device=x.device)
    terms = x.unsqueeze(-1).masked_fill(~all_true.tril(-1), 0.0)
    return terms.cumsum(-2).masked_fill(~all_true.tril(), -torch.inf)


def _in_chunks(x: Tensor, chunk: int) -> Tensor:
    """[B, T, ...] as [B, C, chunk, ...], filled up with zeros.

    A position of zeros writes nothing, and its decay is 1: the state stays as it is.
    """
    batch, length, *rest = x.shape
    filled = F.pad(x, (0, 0) * len(rest) + (0, -length % chunk))
    return filled.reshape(batch, -1, chunk, *rest)


def _pass_on(state: Tensor, decay: Tensor, added: Tensor) -> tuple[Tensor, Tensor]:
    """The states before each chunk [B, C, H, P, N], and the one after the last.

    `decay` [B, C, H] and `added` [B, C, H, P, N] are what each chunk does to the state before it.
    """
    before = []
    for c in range(decay.shape[1]):
        before.append(state)
        state = decay[:, c, :, None, None] * state + added[:, c]
    return torch.stack(before, dim=1), state
