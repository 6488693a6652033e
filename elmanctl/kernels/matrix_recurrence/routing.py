"""Routing of positions to heads, as a write mask and as packed position lists."""

import torch
from torch import Tensor


def write_mask(written: Tensor, n_heads: int) -> Tensor:
    """Return the mask of written heads, bool [B, T, H].

    `written` is that mask already, or int64 [B, T, K], the indices of the written heads.
    """
    if written.dtype == torch.bool:
        return written
    mask = torch.zeros(*written.shape[:2], n_heads, dtype=torch.bool, device=written.device)
    return mask.scatter(-1, written, True)


def packed_positions(mask: Tensor, every: int) -> Tensor:
    """Return the positions at which each head is written, int32 [B, H, 2 + T]; mask: [B, T, H].

    Each row holds the number of positions, the index of the head's first checkpoint, and the
    positions in ascending order.  Checkpoints are numbered head after head, one for every `every`
    positions of a head.
    """
    length = mask.shape[1]
    # The running count of writes reaches n at a head's n-th position.
    running = mask.transpose(1, 2).cumsum(-1, dtype=torch.int32)
    ranks = torch.arange(1, length + 1, dtype=torch.int32, device=mask.device)
    positions = torch.searchsorted(running, ranks.expand_as(running).contiguous(), out_int32=True)
    counts = running[..., -1:]
    n_checkpoints = (counts + (every - 1)) // every
    ends = n_checkpoints.flatten().cumsum(0, dtype=torch.int32).view_as(n_checkpoints)
    # Entries beyond the last position may be loaded but are never used.
    return torch.cat((counts, ends - n_checkpoints, positions.clamp(max=length - 1)), dim=-1)


def max_checkpoints(shape: torch.Size, max_written: int, every: int) -> int:
    """Return an upper bound of checkpoints, given a mask shape and `max_written` per position."""
    batch, length, heads = shape
    # Each head may have one partial segment.
    bound = batch * (length * max_written + (every - 1) * heads) // every
    return max(1, min(batch * heads * -(-length // every), bound))
