"""Reference implementation of the minimal scan: a plain time loop that backends must match."""

import torch
from torch import Tensor


def naive_minimal_scan(
    decay: Tensor, written: Tensor, initial_state: Tensor | None = None
) -> Tensor:
    """Run `h_t = decay_t h_{t-1} + written_t` position by position, under autograd.

    decay, written: [B, T, D]; initial_state: [B, D], zero by default; all of one dtype.
    Returns all states [B, T, D].
    """
    state = torch.zeros_like(decay[:, 0]) if initial_state is None else initial_state
    states = []
    for t in range(decay.shape[1]):
        state = decay[:, t] * state + written[:, t]
        states.append(state)
    return torch.stack(states, dim=1)


def naive_gated_scan(
    scores: Tensor, cell: str, initial_state: Tensor | None = None
) -> tuple[Tensor, Tensor]:
    """Run MinGRU or MinLSTM position by position, under autograd, straight from the equations.

        mingru    c, g       h <- (1 - z) h + z phi(c)       z = sigma(g)
        minlstm   c, f, i    h <- F h + (1 - F) phi(c)       F = sigma(f) / (sigma(f) + sigma(i))

    scores: [B, T, 2 D] or [B, T, 3 D], all candidates first, then each gate; initial_state: [B, D],
    zero by default.  Returns all states [B, T, D] and the last one [B, D], in the dtype of the
    scores.  As a reference use float64: for scores below -700 sigma(f) and sigma(i) are both zero.
    """
    candidate, *gates = scores.chunk(2 if cell == "mingru" else 3, dim=-1)
    value = torch.where(candidate >= 0, candidate + 0.5, torch.sigmoid(candidate))
    sigma = [torch.sigmoid(gate) for gate in gates]
    write = sigma[0] if cell == "mingru" else sigma[1] / (sigma[0] + sigma[1])
    keep = torch.sigmoid(-gates[0]) if cell == "mingru" else sigma[0] / (sigma[0] + sigma[1])
    states = naive_minimal_scan(keep, write * value, initial_state)
    return states, states[:, -1]
