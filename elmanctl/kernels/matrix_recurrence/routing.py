"""Which heads are written at which positions, in the forms in which backends read it."""

import torch
from torch import Tensor


def mask_of(written: Tensor, n_heads: int) -> Tensor:
    """Return whether each head is written, bool [B, T, H].

    `written` is that already, or int64 [B, T, K], the numbers of the heads that are.
    """
    if written.dtype == torch.bool:
        return written
    mask = torch.zeros(*written.shape[:2], n_heads, dtype=torch.bool, device=written.device)
    return mask.scatter(-1, written, True)


def places_of(mask: Tensor, every: int) -> Tensor:
    """Return where each head is written, int32 [B, H, 2 + T], of the mask [B, T, H].

    For each head: at how many positions; which of all checkpoints is its first, where each head has
    one for every `every` of its positions, one head after the other; and its positions, rising.
    """
    length = mask.shape[1]
    # How often each head has been written so far; it comes to n at the n-th of its positions.
    so_far = mask.transpose(1, 2).cumsum(-1, dtype=torch.int32)
    numbers = torch.arange(1, length + 1, dtype=torch.int32, device=mask.device)
    positions = torch.searchsorted(so_far, numbers.expand_as(so_far).contiguous(), out_int32=True)
    counts = so_far[..., -1:]
    kept = (counts + (every - 1)) // every
    first = kept.flatten().cumsum(0, dtype=torch.int32).view_as(kept) - kept
    # Places beyond the last may be loaded and are never used.
    return torch.cat((counts, first, positions.clamp(max=length - 1)), dim=-1)


def most_checkpoints(shape: torch.Size, most_written: int, every: int) -> int:
    """Return how many checkpoints a mask of this shape may need, `most_written` at a position."""
    batch, length, heads = shape
    # Of a head's positions up to `every` - 1 fill no segment of their own.
    shared_out = batch * (length * most_written + (every - 1) * heads) // every
    return max(1, min(batch * heads * -(-length // every), shared_out))
