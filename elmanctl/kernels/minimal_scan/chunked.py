"""Chunked minimal scan in plain torch: all chunks in parallel, then a scan over chunk ends.

If a chunk started from zero has the states l_t, then started from s it has `l_t + p_t s`, where p_t
is the product of its decays up to t.  The chunk ends thus form another such scan, of one position
per chunk.

The backward pass is the same scan in reverse: with d_t the incoming gradient of h_t, its total
gradient is `g_t = d_t + decay_{t+1} g_{t+1}`; decay_t receives `g_t h_{t-1}` and written_t `g_t`.
Only the decays and the states are saved for it.

The scan is not done in log space as in Heinsen (2023, arXiv 2311.06281): cumulative sums of log
decays grow with the length, and float32 then loses the precision that the states need.
"""

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.autograd.function import once_differentiable

CHUNK = 32


def chunked_minimal_scan(decay: Tensor, written: Tensor, initial_state: Tensor) -> Tensor:
    """Return all states [B, T, D] of `h_t = decay_t h_{t-1} + written_t`.

    decay, written: [B, T, D]; initial_state: [B, D]; all of one dtype, float32 or float64.
    """
    states: Tensor = _MinimalScan.apply(  # type: ignore[no-untyped-call]
        decay, written, initial_state
    )
    return states


class _MinimalScan(torch.autograd.Function):
    """The scan with a hand-written gradient."""

    @staticmethod
    def forward(ctx: Any, decay: Tensor, written: Tensor, initial_state: Tensor) -> Tensor:
        states = _scan(decay, written, initial_state)
        ctx.save_for_backward(decay, states, initial_state)
        return states

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, d_states: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        decay, states, initial_state = ctx.saved_tensors
        # No position follows the last one.
        decay_after = F.pad(decay[:, 1:], (0, 0, 0, 1))
        d_written = _scan(
            decay_after.flip(1), d_states.flip(1), torch.zeros_like(initial_state)
        ).flip(1)
        before = torch.cat((initial_state.unsqueeze(1), states[:, :-1]), dim=1)
        return d_written * before, d_written, d_written[:, 0] * decay[:, 0]


def _scan(decay: Tensor, written: Tensor, initial_state: Tensor) -> Tensor:
    batch, length, width = decay.shape
    if length <= CHUNK:
        return _loop(decay, written, initial_state)
    n_chunks = -(-length // CHUNK)
    padding = n_chunks * CHUNK - length
    shape = (batch, n_chunks, CHUNK, width)
    # Padding follows the last position, so it affects no returned state.
    decay = F.pad(decay, (0, 0, 0, padding)).view(shape)
    written = F.pad(written, (0, 0, 0, padding)).view(shape)
    states = _loop(decay, written, decay.new_zeros(batch, n_chunks, width))
    products = decay.cumprod(dim=2)
    ends = _scan(products[:, :, -1], states[:, :, -1], initial_state)
    starts = torch.cat((initial_state.unsqueeze(1), ends[:, :-1]), dim=1)
    states.addcmul_(products, starts.unsqueeze(2))
    return states.view(batch, -1, width)[:, :length]


def _loop(decay: Tensor, written: Tensor, state: Tensor) -> Tensor:
    """Scan along the second-to-last axis, position by position."""
    states = written.new_empty(written.shape)
    for t in range(written.shape[-2]):
        torch.addcmul(written[..., t, :], decay[..., t, :], state, out=states[..., t, :])
        state = states[..., t, :]
    return states
