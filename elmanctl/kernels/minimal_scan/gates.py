"""Gates and candidate activation of MinGRU and MinLSTM in plain torch."""

import torch
import torch.nn.functional as F
from torch import Tensor


def gate_weights(cell: str, *gates: Tensor) -> tuple[Tensor, Tensor]:
    """Return the weights of the old state (keep) and of the candidate (write); they sum to 1.

    `mingru` has one gate g, with write = sigma(g).  `minlstm` has two, f and i, with
    keep = sigma(f) / (sigma(f) + sigma(i)).
    """
    if cell == "mingru":
        (gate,) = gates
        # 1 - sigma(g) would round to 0 for large g.
        return torch.sigmoid(-gate), torch.sigmoid(gate)
    forget, write = gates
    # In log space the ratio is defined even where both sigmoids underflow to 0.
    logit = F.logsigmoid(forget) - F.logsigmoid(write)
    return torch.sigmoid(logit), torch.sigmoid(-logit)


def positive(x: Tensor) -> Tensor:
    """Return phi(x): x + 1/2 for x >= 0, sigmoid(x) below; continuous at 1/2."""
    return torch.where(x >= 0, x + 0.5, torch.sigmoid(x))
