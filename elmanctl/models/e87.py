"""E87: blocks of memory with a router that lets each position write a few.

With x the normed input and z = silu(conv(W_in x)) (no convolution unless `use_conv`), for block i

    rho     = W_r z,    p = softmax(rho) over all blocks,    I = the top_k blocks by rho
    k_i, v_i = W_k z, W_v z     q = W_q z, shared     alpha_i = sigmoid(W_a z + b), per value
    khat_i  = k_i / (|k_i| + 1e-6)
    C_i     = tanh( S_i diag(alpha_i) + khat_i (v_i - S_i^T khat_i)^T )     S_i is key by value
    S_i    <- C_i for i in I;  the others are unchanged
    s_i     = S_i^T q,    o = sum over all i of p_i (s_i * silu(s_i)),    y = W_out o

In the variant of the study `S_i <- S_i + u_i (C_i - S_i)`, u_i = p_i / (sum of p over I + 1e-8)
for i in I and 0 otherwise.  The router receives gradients through p, in the study also through u.

A block is a head of E75 (the delta rule of Schlag, Irie and Schmidhuber, 2021, arXiv 2102.11174,
with a tanh, one decay per value and a self-gated read-out).  Unusually for a mixture, only writes
are sparse: all blocks are read at every position, and there is no load balancing.
"""

from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from elmanctl.kernels.matrix_recurrence import matrix_recurrence
from elmanctl.models import layers
from elmanctl.models.configs.e87 import E87Config

DECAY_BIAS = 2.0
"""Initial b, a decay of sigmoid(2) = 0.88 of a written block."""

KEY_EPS = 1e-6
WEIGHT_EPS = 1e-8


class E87State(NamedTuple):
    """Recurrent state of a layer: the blocks and the last inputs of the convolution."""

    memory: Tensor  # [B, n_blocks, N, N], key by value, float32 or float64
    conv_tail: Tensor | None  # [B, d_conv - 1, inner_width]


class E87Layer(nn.Module):
    """E87 mixer; equations in the module docstring."""

    def __init__(self, config: E87Config, backend: str) -> None:
        super().__init__()
        self.config = config
        self.backend = backend
        width = config.inner_width
        self.inner = layers.projection(config.dim, width)
        self.conv = (
            layers.CausalConvolution(width, config.d_conv, bias=True) if config.use_conv else None
        )
        self.router = layers.projection(width, config.n_blocks)
        # Keys, values and decays of all blocks, in this order; each third is initialized alone.
        self.cell = layers.stacked_projections(width, config.block_width, 3)
        self.decay_bias = nn.Parameter(torch.full((config.n_blocks, config.n_state), DECAY_BIAS))
        self.query = layers.projection(width, config.n_state)
        self.out = layers.projection(config.n_state, config.dim)

    def forward(self, x: Tensor, state: E87State | None = None) -> tuple[Tensor, E87State]:
        """Return y [B, T, dim] for x [B, T, dim] and the state after the last position."""
        z, conv_tail = self._inner(x, None if state is None else state.conv_tail)
        # The recurrence, the router and the gate are computed in float32.
        rho = layers.at_least_float32(self.router(z))
        p = torch.softmax(rho, dim=-1)
        mixed = layers.at_least_float32(self.cell(z))
        k, v, score = mixed.view(*x.shape[:2], 3, self.config.n_blocks, -1).unbind(2)
        q = layers.at_least_float32(self.query(z))
        written = self._select(rho)
        read_out, memory = matrix_recurrence(
            q.unsqueeze(2).expand_as(k),
            k / (k.norm(dim=-1, keepdim=True) + KEY_EPS),
            v,
            torch.sigmoid(score + self.decay_bias.to(score.dtype)),
            blend=self._write_weights(p, written) if self.config.is_study else None,
            written=written,
            initial_state=None if state is None else state.memory,
            self_gate=True,
            normalize=False,
            backend=self.backend,
        )
        # A sum, because autocast would run a matrix product in half precision.
        o = (p.unsqueeze(-1) * read_out).sum(-2)
        return self.out(o.to(x.dtype)), E87State(memory, conv_tail)

    def _inner(self, x: Tensor, tail: Tensor | None) -> tuple[Tensor, Tensor | None]:
        inner, tail = layers.convolve(self.conv, self.inner(x), tail)
        return F.silu(inner), tail

    def _select(self, rho: Tensor) -> Tensor:
        """Return the mask of written blocks, bool [B, T, n_blocks]; rho likewise."""
        # By rho, since p may underflow to 0 for several blocks; the selection has no gradient.
        selected = rho.detach().topk(self.config.top_k, dim=-1).indices
        return torch.zeros_like(rho, dtype=torch.bool).scatter(-1, selected, True)

    def _write_weights(self, p: Tensor, written: Tensor) -> Tensor:
        """Return the study's interpolation weights u [B, T, n_blocks]."""
        weights = p * written
        return weights / (weights.sum(-1, keepdim=True) + WEIGHT_EPS)
