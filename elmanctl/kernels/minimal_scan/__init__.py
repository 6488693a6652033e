"""The recurrence of MinGRU and MinLSTM: every channel for itself, and linear in its state."""

import torch
from torch import Tensor

from elmanctl.errors import InvalidConfiguration
from elmanctl.kernels.arguments import check_tensors
from elmanctl.kernels.minimal_scan.chunked import chunked_minimal_scan

__all__ = ["minimal_scan"]


def minimal_scan(decay: Tensor, written: Tensor, initial_state: Tensor | None = None) -> Tensor:
    """Return every state [B, T, D] of `h_t = decay_t h_{t-1} + written_t`.

    decay, written: [B, T, D], both float32 or both float64; initial_state: [B, D] of the same
    dtype, zero where left out.  Decays from 0 to 1 are meant, both ends included: nothing is
    divided by them and no logarithm is taken.  Gradients can be taken once, not twice.
    Raises InvalidConfiguration on shapes, dtypes or devices that do not fit.
    """
    if decay.ndim != 3 or 0 in decay.shape:
        raise InvalidConfiguration(
            f"decay must be [B, T, D] with no empty axis, not {list(decay.shape)}"
        )
    if decay.dtype not in (torch.float32, torch.float64):
        raise InvalidConfiguration(f"decay must be float32 or float64, not {decay.dtype}")
    batch, length, width = decay.shape
    demands = (
        ("written", written, (batch, length, width), None),
        ("initial_state", initial_state, (batch, width), None),
    )
    check_tensors("decay", decay, demands)
    if initial_state is None:
        initial_state = decay.new_zeros(batch, width)
    return chunked_minimal_scan(decay, written, initial_state)
