"""Gated delta net: linear matrix states with decay and a delta-rule write.

Yang, Kautz and Hatamizadeh, 2024 (arXiv 2412.06464), with the sizes and initialization of the
layer in flash-linear-attention.  For the normed input u and each head,

    q, k, v = silu(conv(W u)),  q and k of unit length, q scaled by 1 / sqrt(keys)
    beta    = sigmoid(W_b u),   log alpha = -exp(A) softplus(W_a u + b)
    S      <- alpha S,  then  S <- S + beta k (v - S^T k)^T
    o       = S^T q
    y       = W_o concat(RMSNorm(o) * silu(W_g u) of all heads)

Unlike E88, the state has no tanh, so chunks of positions can be computed by matrix products.
"""

from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from elmanctl.kernels.gated_delta_rule import gated_delta_rule
from elmanctl.models.configs.gated_delta_net import GatedDeltaNetConfig
from elmanctl.models.layers import CausalConvolution, SelectiveDecay, at_least_float32, convolve
from elmanctl.models.lm import RMSNorm


class GatedDeltaNetState(NamedTuple):
    """Recurrent state of a layer: matrix states and the last inputs of the convolution."""

    memory: Tensor  # [B, H, K, V], float32 or float64
    conv_tail: Tensor | None  # [B, d_conv - 1, mixed_width]


class GatedDeltaNetLayer(nn.Module):
    """Gated delta net mixer, on plain torch or on the kernels of flash-linear-attention."""

    def __init__(self, config: GatedDeltaNetConfig, backend: str) -> None:
        super().__init__()
        self.config = config
        self.backend = backend
        dim, values, heads = config.dim, config.value_width, config.heads
        # All linear maps keep torch's default initialization, whose scale depends only on the
        # inputs, so queries, keys and values can share one matrix and one convolution.
        self.mixed = nn.Linear(dim, config.mixed_width, bias=False)
        self.conv = (
            CausalConvolution(config.mixed_width, config.d_conv, bias=False)
            if config.has_conv
            else None
        )
        self.decay = SelectiveDecay(dim, heads)
        self.decay.projection.reset_parameters()
        self.rate = nn.Linear(dim, heads, bias=False)
        self.gate = nn.Linear(dim, values, bias=False)
        self.norm = RMSNorm(config.head_values)  # weight shared by all heads
        self.out = nn.Linear(values, dim, bias=False)

    def forward(
        self, x: Tensor, state: GatedDeltaNetState | None = None
    ) -> tuple[Tensor, GatedDeltaNetState]:
        """Return y [B, T, dim] for x [B, T, dim] and the state after the last position."""
        tail = None if state is None else state.conv_tail
        mixed, conv_tail = convolve(self.conv, self.mixed(x), tail)
        mixed, keys = F.silu(mixed), self.config.key_width
        read_out, memory = gated_delta_rule(
            self._heads(mixed[..., :keys]),
            self._heads(mixed[..., keys : 2 * keys]),
            self._heads(mixed[..., 2 * keys :]),
            self.decay.log_decay(x),
            torch.sigmoid(at_least_float32(self.rate(x))),
            initial_state=None if state is None else state.memory,
            backend=self.backend,
        )
        finished = self.norm(at_least_float32(read_out)) * F.silu(self._heads(self.gate(x)))
        return self.out(finished.flatten(-2).to(x.dtype)), GatedDeltaNetState(memory, conv_tail)

    def _heads(self, x: Tensor) -> Tensor:
        """Reshape [B, T, H * width] to [B, T, H, width]."""
        return x.view(*x.shape[:-1], self.config.heads, -1)
