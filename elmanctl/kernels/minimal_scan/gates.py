"""What MinGRU and MinLSTM make of their scores, in plain torch: shares and a positive candidate."""

import torch
import torch.nn.functional as F
from torch import Tensor


def shares(cell: str, *gates: Tensor) -> tuple[Tensor, Tensor]:
    """Return how much of the state a cell keeps and of the candidate writes; together they are 1.

    `mingru` has one gate g, and writes sigma(g).  `minlstm` has two, f and i, and keeps
    sigma(f) / (sigma(f) + sigma(i)).
    """
    if cell == "mingru":
        (gate,) = gates
        # 1 - z taken as a difference would be 0 for any large g.
        return torch.sigmoid(-gate), torch.sigmoid(gate)
    forget, write = gates
    # Where both sigmoids round to 0, the difference of their logarithms still says which wins.
    lead = F.logsigmoid(forget) - F.logsigmoid(write)
    return torch.sigmoid(lead), torch.sigmoid(-lead)


def positive(x: Tensor) -> Tensor:
    """Return phi(x): x + 1/2 from zero on, sigmoid(x) below, which meet at 1/2."""
    return torch.where(x >= 0, x + 0.5, torch.sigmoid(x))
