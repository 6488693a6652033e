"""MoM-E88: a mixture of E88 memories, of which each position writes and reads a few.

The mixture of memories is that of Du et al. (2025, arXiv 2502.13685), the memory E88's.  With x
the input of a position, K the `top_k` heads of largest p, and all q and k of unit length:

    l = W_r x (in training + `router_noise` N(0, 1)),    p = softmax(l)
    w_h = p_h / (sum of p over K) for h in K, 0 for the others
    q, k, v = silu(W_q x), silu(W_k x), silu(W_v x),     alpha_h as in E88
    S_h <- tanh(alpha_h S_h + k_h (v_h - S_h^T k_h)^T) for h in K; the others are unchanged
    o = sum_h w_h S_h^T q_h,    g = sum_h w_h (W_g x)_h,    y = W_o (o * silu(g))

All heads share W_o, whose input width is that of one head.  With `top_k` 1 the weight is always 1,
so only the load-balancing loss trains the router.  That loss, weighted by `balance_weight`, is

    H sum_h f_h^2 + 0.001 mean(logsumexp(l)^2),    f_h = mean of p_h

with means over all positions of the batch.  The first term is minimal for equal use of the memories
(as in Shazeer et al., 2017, arXiv 1701.06538); the second keeps the scores small (the z-loss of
Zoph et al., 2022, arXiv 2202.08906).

The study's layer differs in three ways: it has K memories instead of H, and the n-th ranked head
by p writes and reads memory n, so a memory mixes heads over time; it divides q and k by their
length + 1e-6; and it did not train with the load-balancing loss.
"""

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from elmanctl.kernels.matrix_recurrence import matrix_recurrence
from elmanctl.models.configs.mom_e88 import MomE88Config
from elmanctl.models.layers import SelectiveDecay, at_least_float32, projection

SCORE_WEIGHT = 1e-3
STUDY_EPS = 1e-6


class MomE88Layer(nn.Module):
    """MoM-E88 mixer; its state is the memories [B, H or K, N, M], float32 or float64.

    `auxiliary_loss` is the loss added by the last training forward pass, and 0 otherwise.
    """

    auxiliary_loss: Tensor | float

    def __init__(self, config: MomE88Config, backend: str) -> None:
        super().__init__()
        self.config = config
        self.backend = backend
        dim, n_heads = config.dim, config.n_heads
        self.router = projection(dim, n_heads)
        # Unlike in E88, each is initialized as its own matrix.
        self.query = projection(dim, config.key_width)
        self.key = projection(dim, config.key_width)
        self.value = projection(dim, config.value_width)
        self.decay = SelectiveDecay(dim, n_heads)
        self.gate = projection(dim, config.value_width) if config.use_gate else None
        self.out = projection(config.head_values, dim)
        self.auxiliary_loss = 0.0

    def train(self, mode: bool = True) -> "MomE88Layer":
        """Set the training mode and reset the auxiliary loss."""
        self.auxiliary_loss = 0.0
        return super().train(mode)

    def __getstate__(self) -> dict[str, Any]:
        # Non-leaf tensors cannot be deep-copied, and the copy has not run a forward pass.
        return {**self.__dict__, "auxiliary_loss": 0.0}

    def forward(self, x: Tensor, state: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """Return y [B, T, dim] of x [B, T, dim], and the memories after the last position."""
        scores = at_least_float32(self.router(x))
        if self.training and self.config.router_noise:
            scores = scores + self.config.router_noise * torch.randn_like(scores)
        p = scores.softmax(-1)  # [B, T, H]
        self.auxiliary_loss = self._balance_loss(scores, p)
        selected = p.topk(self.config.top_k).indices  # [B, T, K], largest p first
        gate = None if self.gate is None else self._heads(self.gate(x))
        if self.config.is_study:
            read_out, state = self._run_memories_by_rank(x, selected, state)
            weights = p.gather(-1, selected)
            gate = None if gate is None else _gather_heads(gate, selected)
        else:
            read_out, state = self._run_memories(x, selected, state)
            weights = p * torch.zeros_like(p, dtype=torch.bool).scatter(-1, selected, True)
        weights = weights / weights.sum(-1, keepdim=True)
        y = _sum_heads(weights, read_out)
        if gate is not None:
            mixed_gate = _sum_heads(weights, gate)
            silu = self.config.gate_activation == "silu"
            y = y * (F.silu(mixed_gate) if silu else torch.sigmoid(mixed_gate))
        return self.out(y.to(x.dtype)), state

    def _run_memories(
        self, x: Tensor, selected: Tensor, state: Tensor | None
    ) -> tuple[Tensor, Tensor]:
        """Write and read the selected memories; return their read-outs and all memories."""
        return matrix_recurrence(
            *self._queries_keys_values(x),
            self.decay(x),
            written=selected,
            initial_state=state,
            read="written",
            activation="silu",
            backend=self.backend,
        )

    def _run_memories_by_rank(
        self, x: Tensor, selected: Tensor, state: Tensor | None
    ) -> tuple[Tensor, Tensor]:
        """Let the selected heads write and read the memories of their ranks, as in the study."""
        q, k, v = (F.silu(_gather_heads(heads, selected)) for heads in self._queries_keys_values(x))
        return matrix_recurrence(
            _study_unit_length(q),
            _study_unit_length(k),
            v,
            self.decay(x).gather(-1, selected),
            initial_state=state,
            normalize=False,
            backend=self.backend,
        )

    def _queries_keys_values(self, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Return queries, keys and values of all heads before silu."""
        q, k, v = (self._heads(linear(x)) for linear in (self.query, self.key, self.value))
        return q, k, v

    def _heads(self, x: Tensor) -> Tensor:
        """Reshape [B, T, H * width] to [B, T, H, width]."""
        return x.view(*x.shape[:-1], self.config.n_heads, -1)

    def _balance_loss(self, scores: Tensor, p: Tensor) -> Tensor | float:
        weight = self.config.balance_weight
        if not self.training or self.config.is_study or not weight:
            return 0.0
        usage = p.mean((0, 1))
        balance = self.config.n_heads * usage.square().sum()
        return weight * (balance + SCORE_WEIGHT * scores.logsumexp(-1).square().mean())


def _gather_heads(heads: Tensor, selected: Tensor) -> Tensor:
    """Gather the selected heads of [B, T, H, width] by rank: [B, T, K, width]."""
    return heads.gather(2, selected.unsqueeze(-1).expand(-1, -1, -1, heads.shape[-1]))


def _sum_heads(weights: Tensor, heads: Tensor) -> Tensor:
    """Return the weighted sum of [B, T, H, width] over its heads."""
    return (weights.unsqueeze(-1) * heads).sum(2)


def _study_unit_length(x: Tensor) -> Tensor:
    length: Tensor = torch.linalg.vector_norm(at_least_float32(x), dim=-1, keepdim=True)
    return (x / (length + STUDY_EPS)).to(x.dtype)
