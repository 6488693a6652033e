"""MinGRU and MinLSTM (Feng et al., 2024, arXiv 2410.01201): gates that depend only on the input.

    MinGRU    c, g = W x       h <- (1 - z) h + z phi(c)       z = sigma(g)
    MinLSTM   c, f, i = W x    h <- F h + (1 - F) phi(c)       F = sigma(f) / (sigma(f) + sigma(i))

    phi(c) = c + 1/2 for c >= 0, sigma(c) for c < 0

Since the gates depend only on x, h is a linear scan.  phi and h are positive, and h starts at 0.
Unusually, with `expansion` 1 there is no output projection, and h itself is added to the residual
stream, so it can only increase it.  An optional convolution runs over x before W.

The published code scans in log space; here the states are scanned directly, which is the same
function and more accurate in float32.  The recurrent state is h, also for MinLSTM.  The step from
the scores c, g, f, i to h is one operation, a single kernel on backend `triton`.
"""

from typing import NamedTuple

from torch import Tensor, nn

from elmanctl.kernels.minimal_scan import gated_scan
from elmanctl.models.configs.min_rnn import MinRNNConfig
from elmanctl.models.layers import CausalConvolution, convolve, projection


class MinRNNState(NamedTuple):
    """Recurrent state of a layer: h and the last inputs of the convolution."""

    hidden: Tensor  # [B, n_channels], float32 or float64
    conv_tail: Tensor | None  # [B, d_conv - 1, dim]


class MinRNNLayer(nn.Module):
    """Mixer of MinGRU or MinLSTM, depending on the configuration."""

    def __init__(self, config: MinRNNConfig, backend: str) -> None:
        super().__init__()
        self.config = config
        self.backend = backend
        width = config.n_channels
        self.mixed = projection(config.dim, config.scores * width)
        self.out = projection(width, config.dim) if config.has_output else None
        self.conv = (
            CausalConvolution(config.dim, config.d_conv, bias=False)
            if config.has_convolution
            else None
        )

    def forward(self, x: Tensor, state: MinRNNState | None = None) -> tuple[Tensor, MinRNNState]:
        """Return y [B, T, dim] for x [B, T, dim] and the state after the last position."""
        mixed, conv_tail = convolve(self.conv, x, None if state is None else state.conv_tail)
        scores = self.mixed(mixed)
        hidden, last = gated_scan(
            scores,
            self.config.level,
            None if state is None else state.hidden,
            # Store h in the dtype to which the output projection would round it under autocast.
            dtype=x.dtype if self.out is None else scores.dtype,
            backend=self.backend,
        )
        y = hidden if self.out is None else self.out(hidden)
        return y, MinRNNState(last, conv_tail)
