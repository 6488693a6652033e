"""E87: blocks of memory, of which a router lets every position write a few.

With x the normed input, z = silu(conv(W_in x)) (no convolution unless `use_conv`), for n blocks i

    rho     = W_r z,    p = softmax(rho) over all blocks,    I = the top_k blocks by rho
    k_i, v_i = W_k z, W_v z     q = W_q z, one for all     alpha_i = sigmoid(W_a z + b), per value
    khat_i  = k_i / (|k_i| + 1e-6)
    C_i     = tanh( S_i diag(alpha_i) + khat_i (v_i - S_i^T khat_i)^T )     S_i is key by value
    S_i    <- C_i for i in I;  the others stay
    s_i     = S_i^T q,    o = sum over all i of p_i (s_i * silu(s_i)),    y = W_out o

In the variant of the study `S_i <- S_i + u_i (C_i - S_i)`, u_i = p_i / (sum of p over I + 1e-8)
for i in I and 0 otherwise.  The router thus learns from p, and in the study from u as well.

A block is a head of E75 (the delta rule of Schlag, Irie and Schmidhuber, 2021, arXiv 2102.11174,
with a tanh, a decay for each value and a self-gated read-out).  Unusual for a mixture is that only
writing is sparse: every block is read at every position, and nothing balances the blocks.
"""

from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from elmanctl.kernels.matrix_recurrence import matrix_recurrence
from elmanctl.models.configs.e87 import E87Config
from elmanctl.models.layers import CausalConvolution, at_least_float32, projection

DECAY_BIAS = 2.0
"""Where b starts: a block that is written keeps sigmoid(2) = 0.88 of what it held."""

KEY_EPS = 1e-6
SHARE_EPS = 1e-8


class E87State(NamedTuple):
    """What a layer carries over: the blocks and the last inputs of the convolution."""

    memory: Tensor  # [B, n_blocks, N, N], key by value, float32 or float64
    conv_tail: Tensor | None  # [B, d_conv - 1, inner_width]


class E87Layer(nn.Module):
    """One E87 mixer; the module's docstring has its equations."""

    def __init__(self, config: E87Config, backend: str) -> None:
        """Draw the weights from torch's global generator."""
        super().__init__()
        self.config = config
        self.backend = backend
        width = config.inner_width
        self.inner = projection(config.dim, width)
        self.conv = CausalConvolution(width, config.d_conv, bias=True) if config.use_conv else None
        self.router = projection(width, config.n_blocks)
        # Keys, values and decays of all blocks, in this order; each third is a matrix of its own.
        self.cell = nn.Linear(width, 3 * config.block_width, bias=False)
        for third in self.cell.weight.detach().view(3, config.block_width, width):
            nn.init.xavier_uniform_(third)
        self.decay_bias = nn.Parameter(torch.full((config.n_blocks, config.n_state), DECAY_BIAS))
        self.query = projection(width, config.n_state)
        self.out = projection(config.n_state, config.dim)

    def forward(self, x: Tensor, state: E87State | None = None) -> tuple[Tensor, E87State]:
        """Return y [B, T, dim] of x [B, T, dim], and the state after the last position."""
        z, conv_tail = self._inner(x, None if state is None else state.conv_tail)
        # The recurrence, the router and the gate are computed in float32 throughout.
        rho = at_least_float32(self.router(z))
        p = torch.softmax(rho, dim=-1)
        mixed = at_least_float32(self.cell(z))
        k, v, score = mixed.view(*x.shape[:2], 3, self.config.n_blocks, -1).unbind(2)
        q = at_least_float32(self.query(z))
        written = self._choose(rho)
        read_out, memory = matrix_recurrence(
            q.unsqueeze(2).expand_as(k),
            k / (k.norm(dim=-1, keepdim=True) + KEY_EPS),
            v,
            torch.sigmoid(score + self.decay_bias.to(score.dtype)),
            blend=self._shares(p, written) if self.config.is_study else None,
            written=written,
            initial_state=None if state is None else state.memory,
            self_gate=True,
            normalize=False,
            backend=self.backend,
        )
        # A sum and not a product of matrices, which autocast would run in half precision.
        o = (p.unsqueeze(-1) * read_out).sum(-2)
        return self.out(o.to(x.dtype)), E87State(memory, conv_tail)

    def _inner(self, x: Tensor, tail: Tensor | None) -> tuple[Tensor, Tensor | None]:
        inner = self.inner(x)
        if self.conv is not None:
            inner, tail = self.conv(inner, tail)
        return F.silu(inner), tail

    def _choose(self, rho: Tensor) -> Tensor:
        """Return whether each block is written, bool, of rho [B, T, n_blocks]."""
        # By rho, since p of several blocks can be 0; choosing has no gradient.
        chosen = rho.detach().topk(self.config.top_k, dim=-1).indices
        return torch.zeros_like(rho, dtype=torch.bool).scatter(-1, chosen, True)

    def _shares(self, p: Tensor, written: Tensor) -> Tensor:
        """Return how far each block moves to what is written to it, as in the study."""
        shares = p * written
        return shares / (shares.sum(-1, keepdim=True) + SHARE_EPS)
