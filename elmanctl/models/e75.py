"""E75: matrix states with one decay per value and a self-gated read-out.

With x the normed input, z = silu(conv(W_in x)) (no convolution unless `use_conv`), and per head

    k, v, q = W_k z, W_v z, W_q z        alpha = sigmoid(W_a z + b)     one alpha per value
    khat    = k / (|k| + 1e-6)
    S_t     = tanh( S_{t-1} diag(alpha) + khat (v - S_{t-1}^T khat)^T )    S is key by value
    s       = S_t^T q,    o = s * silu(s)
    y       = W_out concat(o of all heads)

The post-conv form has no W_in: k, v, q = silu(conv(W x)) and alpha = sigmoid(W_a x + b).

The write is the delta rule (Schlag, Irie and Schmidhuber, 2021, arXiv 2102.11174).  Unusual are
the tanh, the decay per value rather than per key, the unnormalized queries, and the self-gating.
"""

from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from elmanctl.kernels.matrix_recurrence import matrix_recurrence
from elmanctl.models import layers
from elmanctl.models.configs.e75 import E75Config

DECAY_BIAS = 2.0
"""Initial b, a decay of sigmoid(2) = 0.88."""

KEY_EPS = 1e-6


class E75State(NamedTuple):
    """Recurrent state of a layer: matrix states and the last inputs of the convolution."""

    memory: Tensor  # [B, H, N, N], key by value, float32 or float64
    conv_tail: Tensor | None  # [B, d_conv - 1, conv_channels]


class E75Layer(nn.Module):
    """E75 mixer; equations in the module docstring."""

    def __init__(self, config: E75Config, backend: str) -> None:
        super().__init__()
        self.config = config
        self.backend = backend
        width = config.head_width
        self.inner = None if config.post_conv else layers.projection(config.dim, config.inner_width)
        self.conv = (
            layers.CausalConvolution(config.conv_channels, config.d_conv, bias=True)
            if config.conv_channels
            else None
        )
        # Keys, values, queries and decays of all heads, in this order.
        # Each head's part is initialized as its own matrix, except in the post-conv form.
        rows = width if config.post_conv else config.n_state
        self.cell = layers.stacked_projections(config.inner_width, rows, 4 * width // rows)
        self.decay_bias = nn.Parameter(torch.full((config.n_heads, config.n_state), DECAY_BIAS))
        self.out = layers.projection(width, config.dim)

    def forward(self, x: Tensor, state: E75State | None = None) -> tuple[Tensor, E75State]:
        """Return y [B, T, dim] for x [B, T, dim] and the state after the last position."""
        k, v, q, score, conv_tail = self._cell(x, None if state is None else state.conv_tail)
        read_out, memory = matrix_recurrence(
            q,
            k / (k.norm(dim=-1, keepdim=True) + KEY_EPS),
            v,
            torch.sigmoid(score + self.decay_bias.to(score.dtype)),
            initial_state=None if state is None else state.memory,
            self_gate=True,
            normalize=False,
            backend=self.backend,
        )
        return self.out(read_out.flatten(-2).to(x.dtype)), E75State(memory, conv_tail)

    def _cell(
        self, x: Tensor, tail: Tensor | None
    ) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor | None]:
        """Return keys, values, queries and decay pre-activations [B, T, H, N], and the tail."""
        z = x
        if self.inner is not None:
            z, tail = self._convolved_silu(self.inner(x), tail)
        mixed = self.cell(z)
        if self.config.post_conv:
            channels = self.config.conv_channels
            heads, tail = self._convolved_silu(mixed[..., :channels], tail)
            mixed = torch.cat((heads, mixed[..., channels:]), dim=-1)
        # The recurrence, the norm of the keys and the gate are computed in float32.
        parts = layers.at_least_float32(mixed).view(*x.shape[:2], 4, self.config.n_heads, -1)
        k, v, q, score = parts.unbind(2)
        return k, v, q, score, tail

    def _convolved_silu(self, x: Tensor, tail: Tensor | None) -> tuple[Tensor, Tensor | None]:
        convolved, tail = layers.convolve(self.conv, x, tail)
        return F.silu(convolved), tail
