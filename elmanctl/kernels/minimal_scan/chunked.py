"""The minimal scan in few steps: inside all chunks at once, then from chunk to chunk.

A chunk that starts from state s and whose states from zero would be l_t has the states
`l_t + p_t s`, where p_t is the product of its decays up to t.  So the ends of the chunks are again
such a scan, over as many positions as there are chunks.

The gradient is the same scan from the last position to the first: with d_t the gradient that
reaches h_t from outside, `g_t = d_t + decay_{t+1} g_{t+1}` is the whole of it, and decay_t gets
`g_t h_{t-1}`, written_t gets `g_t`.  Nothing but the decays and the states is kept for it.

States are summed as they are, not as logarithms as in Heinsen (2023, arXiv 2311.06281): the
cumulative sum of log decays grows with the length, and float32 then loses what the states need.
"""

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.autograd.function import once_differentiable

CHUNK = 32


def chunked_minimal_scan(decay: Tensor, written: Tensor, initial_state: Tensor) -> Tensor:
    """Return every state [B, T, D] of `h_t = decay_t h_{t-1} + written_t`.

    decay, written: [B, T, D]; initial_state: [B, D]; all of one dtype, float32 or float64.
    """
    states: Tensor = _MinimalScan.apply(  # type: ignore[no-untyped-call]
        decay, written, initial_state
    )
    return states


class _MinimalScan(torch.autograd.Function):
    """The scan with its gradient written out."""

    @staticmethod
    def forward(ctx: Any, decay: Tensor, written: Tensor, initial_state: Tensor) -> Tensor:
        states = _scan(decay, written, initial_state)
        ctx.save_for_backward(decay, states, initial_state)
        return states

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, d_states: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        decay, states, initial_state = ctx.saved_tensors
        # The last position hands nothing back from a later one.
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
    missing = n_chunks * CHUNK - length
    shape = (batch, n_chunks, CHUNK, width)
    # What is added comes after every position that is given back.
    decay = F.pad(decay, (0, 0, 0, missing)).view(shape)
    written = F.pad(written, (0, 0, 0, missing)).view(shape)
    states = _loop(decay, written, decay.new_zeros(batch, n_chunks, width))
    left = decay.cumprod(dim=2)
    ends = _scan(left[:, :, -1], states[:, :, -1], initial_state)
    starts = torch.cat((initial_state.unsqueeze(1), ends[:, :-1]), dim=1)
    states.addcmul_(left, starts.unsqueeze(2))
    return states.view(batch, -1, width)[:, :length]


def _loop(decay: Tensor, written: Tensor, state: Tensor) -> Tensor:
    """The scan along the last axis but one, position by position."""
    states = written.new_empty(written.shape)
    for t in range(written.shape[-2]):
        torch.addcmul(written[..., t, :], decay[..., t, :], state, out=states[..., t, :])
        state = states[..., t, :]
    return states
