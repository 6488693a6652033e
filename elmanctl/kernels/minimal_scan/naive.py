"""The minimal scan as one readable time loop: the truth that the chunked one is held to."""

import torch
from torch import Tensor


def naive_minimal_scan(
    decay: Tensor, written: Tensor, initial_state: Tensor | None = None
) -> Tensor:
    """Run `h_t = decay_t h_{t-1} + written_t` position by position, under autograd.

    decay, written: [B, T, D]; initial_state: [B, D], zero where left out; all of one dtype.
    Returns every state [B, T, D].
    """
    state = torch.zeros_like(decay[:, 0]) if initial_state is None else initial_state
    states = []
    for t in range(decay.shape[1]):
        state = decay[:, t] * state + written[:, t]
        states.append(state)
    return torch.stack(states, dim=1)
