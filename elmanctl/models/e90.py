"""E90: two E88 memories per head, one with fast and one with slow decay.

A family of the Elman study of January 2026.  The delta rule is that of Schlag, Irie and Schmidhuber
(2021, arXiv 2102.11174), the decay that of Mamba.  For each head, with x the input of a position,
f and s for fast and slow, and all q and k of unit length:

    q_f, k_f, v_f = silu(W_f x)          q_s, k_s, v_s = silu(W_s x)
    S_f <- tanh(alpha_f S_f +   k_f (v_f - S_f^T k_f)^T)
    S_s <- tanh(alpha_s S_s + c k_s (v_s - S_s^T k_s)^T),    c = sigmoid(w_c x + b_c)
    o   =  m_f S_f^T q_f + m_s S_s^T q_s,    (m_f, m_s) = softmax(W_m x + b_m)
    y   =  W_o (o * silu(W_g x)),    all heads concatenated

The read-out with fewer values is zero-padded.  The study's variant rounds a fractional number of
values down, which the documented one rejects.  Both add an epsilon of 1e-12 to squared lengths;
that of the study is not on record.
"""

from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from elmanctl.kernels.matrix_recurrence import matrix_recurrence
from elmanctl.models.configs.e90 import E90Config
from elmanctl.models.layers import SelectiveDecay, at_least_float32, projection

SLOW_MAX_RATE = 4.0
SLOW_STEP = (1e-3, 1e-2)

RATE_BIAS = -2.0
"""Initial b_c: the slow state writes sigmoid(-2) = 0.12 of its update."""


class E90State(NamedTuple):
    """Recurrent state of a layer: both matrix states, float32 or float64."""

    fast: Tensor  # [B, H, k_fast, v_fast]
    slow: Tensor  # [B, H, k_slow, v_slow]


class E90Layer(nn.Module):
    """E90 mixer: a fast and a slow state per head, mixed by input-dependent weights."""

    def __init__(self, config: E90Config, backend: str) -> None:
        super().__init__()
        self.config = config
        self.backend = backend
        dim, n_heads = config.dim, config.n_heads
        self.fast = projection(dim, config.fast_width)
        self.fast_decay = SelectiveDecay(dim, n_heads)
        self.gate = projection(dim, config.value_width) if config.use_gate else None
        self.out = projection(config.value_width, dim)
        # Everything below keeps torch's default initialization, as in the study.
        self.slow = nn.Linear(dim, config.slow_width, bias=False)
        self.slow_decay = SelectiveDecay(dim, n_heads, max_rate=SLOW_MAX_RATE, step=SLOW_STEP)
        self.slow_decay.projection.reset_parameters()
        self.mix = nn.Linear(dim, 2 * n_heads)
        self.rate = nn.Linear(dim, n_heads)
        nn.init.constant_(self.rate.bias, RATE_BIAS)

    def forward(self, x: Tensor, state: E90State | None = None) -> tuple[Tensor, E90State]:
        """Return y [B, T, dim] for x [B, T, dim] and the state after the last position."""
        fast, fast_state = self._run_memory(
            self.fast(x),
            self.config.k_fast,
            self.fast_decay(x),
            rate=None,
            state=None if state is None else state.fast,
        )
        slow, slow_state = self._run_memory(
            self.slow(x),
            self.config.k_slow,
            self.slow_decay(x),
            rate=torch.sigmoid(at_least_float32(self.rate(x))),
            state=None if state is None else state.slow,
        )
        weights = at_least_float32(self._heads(self.mix(x))).softmax(-1)  # [B, T, H, 2]
        read_out = weights[..., :1] * self._pad(fast) + weights[..., 1:] * self._pad(slow)
        if self.gate is not None:
            gate = self._heads(self.gate(x))
            silu = self.config.gate_activation == "silu"
            read_out = read_out * (F.silu(gate) if silu else torch.sigmoid(gate))
        return self.out(read_out.flatten(-2).to(x.dtype)), E90State(fast_state, slow_state)

    def _run_memory(
        self, mixed: Tensor, n_key: int, decay: Tensor, *, rate: Tensor | None, state: Tensor | None
    ) -> tuple[Tensor, Tensor]:
        """Write and read one of the two states; return its read-out [B, T, H, values] and it."""
        keys = self.config.n_heads * n_key
        widths = [keys, keys, mixed.shape[-1] - 2 * keys]
        q, k, v = map(self._heads, torch.split(mixed, widths, dim=-1))
        return matrix_recurrence(
            q,
            k,
            v,
            decay,
            beta=rate,
            initial_state=state,
            activation="silu",
            backend=self.backend,
        )

    def _heads(self, x: Tensor) -> Tensor:
        """Reshape [B, T, H * width] to [B, T, H, width]."""
        return x.view(*x.shape[:-1], self.config.n_heads, -1)

    def _pad(self, read_out: Tensor) -> Tensor:
        return F.pad(read_out, (0, self.config.head_values - read_out.shape[-1]))
