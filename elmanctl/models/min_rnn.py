"""MinGRU and MinLSTM (Feng et al., 2024, arXiv 2410.01201): gates that do not see the state.

    MinGRU    c, g = W x       h <- (1 - z) h + z phi(c)       z = sigma(g)
    MinLSTM   c, f, i = W x    h <- F h + (1 - F) phi(c)       F = sigma(f) / (sigma(f) + sigma(i))

    phi(c) = c + 1/2 for c >= 0, sigma(c) for c < 0

Since the gates depend on x alone, h is a scan that is linear in h.  phi and h are positive, and h
starts from 0.  Unusual: with `expansion` 1 nothing projects h back, and the residual stream is
given h itself, which no sign can lower.  A convolution, if there is one, runs over x before W.

The published code scans logarithms; this scans the states themselves, which is the same function
and loses less in float32.  The state that is carried over is h, also for MinLSTM.
"""

from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from elmanctl.kernels.minimal_scan import minimal_scan
from elmanctl.models.configs.min_rnn import MinGRUConfig, MinLSTMConfig, MinRNNConfig
from elmanctl.models.layers import CausalConvolution, at_least_float32, projection


class MinRNNState(NamedTuple):
    """What a layer carries over: h and the last inputs of the convolution."""

    hidden: Tensor  # [B, n_channels], float32 or float64
    conv_tail: Tensor | None  # [B, d_conv - 1, dim]


class _MinRNNLayer(nn.Module):
    """All but the gates, which MinGRU and MinLSTM have each their own."""

    def __init__(self, config: MinRNNConfig, backend: str) -> None:
        """Draw the weights from torch's global generator."""
        super().__init__()
        self.config = config
        width = config.n_channels
        self.mixed = projection(config.dim, config.scores * width)
        self.out = projection(width, config.dim) if config.has_output else None
        self.conv = (
            CausalConvolution(config.dim, config.d_conv, bias=False)
            if config.has_convolution
            else None
        )

    def forward(self, x: Tensor, state: MinRNNState | None = None) -> tuple[Tensor, MinRNNState]:
        """Return y [B, T, dim] of x [B, T, dim], and the state after the last position."""
        mixed, conv_tail = x, None
        if self.conv is not None:
            mixed, conv_tail = self.conv(x, None if state is None else state.conv_tail)
        candidate, *gates = at_least_float32(self.mixed(mixed)).chunk(self.config.scores, dim=-1)
        keep, write = self.shares(*gates)
        hidden = minimal_scan(
            keep, write * positive(candidate), None if state is None else state.hidden
        )
        y = hidden.to(x.dtype)
        if self.out is not None:
            y = self.out(y)
        return y, MinRNNState(hidden[:, -1], conv_tail)

    def shares(self, *gates: Tensor) -> tuple[Tensor, Tensor]:
        """Return how much of h is kept and of the candidate written; both together are 1."""
        raise NotImplementedError


class MinGRULayer(_MinRNNLayer):
    """One MinGRU mixer."""

    def __init__(self, config: MinGRUConfig, backend: str) -> None:
        """Draw the weights from torch's global generator."""
        super().__init__(config, backend)

    def shares(self, *gates: Tensor) -> tuple[Tensor, Tensor]:
        """Return 1 - z and z."""
        (gate,) = gates
        # 1 - z taken as a difference would be 0 for any large g.
        return torch.sigmoid(-gate), torch.sigmoid(gate)


class MinLSTMLayer(_MinRNNLayer):
    """One MinLSTM mixer."""

    def __init__(self, config: MinLSTMConfig, backend: str) -> None:
        """Draw the weights from torch's global generator."""
        super().__init__(config, backend)

    def shares(self, *gates: Tensor) -> tuple[Tensor, Tensor]:
        """Return F and 1 - F."""
        forget, write = gates
        # Where both sigmoids round to 0, the difference of their logarithms still says which wins.
        lead = F.logsigmoid(forget) - F.logsigmoid(write)
        return torch.sigmoid(lead), torch.sigmoid(-lead)


def positive(x: Tensor) -> Tensor:
    """Return phi(x): x + 1/2 from zero on, sigmoid(x) below, which meet at 1/2."""
    return torch.where(x >= 0, x + 0.5, torch.sigmoid(x))
