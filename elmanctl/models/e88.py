"""E88: many small matrix states with a delta-rule write, a per-head decay and a tanh."""

from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from elmanctl.kernels.matrix_recurrence import matrix_recurrence
from elmanctl.models.configs.e88 import E88Config
from elmanctl.models.layers import (
    CausalConvolution,
    SelectiveDecay,
    at_least_float32,
    projection,
)
from elmanctl.models.lm import RMSNorm

CONSTANT_DECAY_LOGIT = 4.0


class E88State(NamedTuple):
    """What a layer carries over: the matrix states and the last inputs of the convolution."""

    memory: Tensor  # [B, H, N, M], float32 or float64
    conv_tail: Tensor | None  # [B, d_conv - 1, mixed_width]


class E88Layer(nn.Module):
    """One E88 mixer: per head a state S, key by value, written by the delta rule.

    With k, q of unit length: `S <- tanh(alpha S + beta k (v - S^T k)^T)`, then `o = S^T q`, plus
    the value residual, normed, gated, and all heads projected back to the model's width.
    """

    def __init__(self, config: E88Config, backend: str) -> None:
        """Draw the weights from torch's global generator."""
        super().__init__()
        self.config = config
        self.backend = backend
        dim, values = config.dim, config.value_width
        # Queries, keys and values are one matrix: that sets the width of their initialisation.
        self.mixed = projection(dim, config.mixed_width)
        self.decay = _DECAYS[config.decay](config)
        self.gate = projection(dim, values) if config.use_gate else None
        self.out = projection(values, dim)
        # These two keep torch's own initialisation, as in the study.
        self.rate = nn.Linear(dim, config.n_heads, bias=False) if config.write_gate else None
        self.conv = (
            CausalConvolution(config.mixed_width, config.d_conv, bias=False)
            if config.use_conv
            else None
        )
        self.norm = RMSNorm(config.head_values) if config.output_norm else None
        self.skip = (
            nn.Parameter(torch.ones(config.n_heads, config.head_values))
            if config.value_residual
            else None
        )

    def forward(self, x: Tensor, state: E88State | None = None) -> tuple[Tensor, E88State]:
        """Return y [B, T, dim] of x [B, T, dim], and the state after the last position."""
        mixed, conv_tail = self._mix(x, None if state is None else state.conv_tail)
        q, k, v = self._split(F.silu(mixed))
        gate = None if self.gate is None else self._heads(self.gate(x))
        read_out, memory = matrix_recurrence(
            q,
            k,
            v,
            self.decay(x),
            gate if self._gates_inside else None,
            beta=None if self.rate is None else torch.sigmoid(at_least_float32(self.rate(x))),
            initial_state=None if state is None else state.memory,
            linear_state=self.config.linear_state,
            backend=self.backend,
        )
        if gate is None or self._gates_inside:
            finished = self._finish(read_out, v)
        elif self.config.gate_activation == "silu":
            finished = self._finish(read_out, v) * F.silu(gate)
        else:
            finished = self._finish(read_out, v) * torch.sigmoid(gate)
        return self.out(finished.flatten(-2).to(x.dtype)), E88State(memory, conv_tail)

    @property
    def _gates_inside(self) -> bool:
        """Whether nothing but a silu gate follows the read-out, which the kernel then applies."""
        return self.config.gate_activation == "silu" and self.norm is None and self.skip is None

    def _mix(self, x: Tensor, tail: Tensor | None) -> tuple[Tensor, Tensor | None]:
        mixed: Tensor = self.mixed(x)
        if self.conv is None:
            return mixed, None
        convolved, tail = self.conv(mixed, tail)
        return convolved, tail

    def _split(self, mixed: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        keys = self.config.key_width
        q, k = self._heads(mixed[..., :keys]), self._heads(mixed[..., keys : 2 * keys])
        return q, k, k if self.config.tie_kv else self._heads(mixed[..., 2 * keys :])

    def _heads(self, x: Tensor) -> Tensor:
        """[B, T, H * width] as [B, T, H, width]."""
        return x.view(*x.shape[:-1], self.config.n_heads, -1)

    def _finish(self, read_out: Tensor, v: Tensor) -> Tensor:
        if self.skip is not None:
            read_out = read_out + self.skip * v
        if self.norm is not None:
            read_out = self.norm(at_least_float32(read_out))
        return read_out


def _mamba_decay(config: E88Config) -> SelectiveDecay:
    return SelectiveDecay(config.dim, config.n_heads)


class SimpleDecay(nn.Module):
    """A decay that the input sets alone: sigmoid(W x)."""

    def __init__(self, config: E88Config) -> None:
        super().__init__()
        self.projection = projection(config.dim, config.n_heads)

    def forward(self, x: Tensor) -> Tensor:
        """Return alpha [B, T, H], at least float32."""
        return torch.sigmoid(at_least_float32(self.projection(x)))


class ConstantDecay(nn.Module):
    """A learnt decay for each head, the same at every position."""

    def __init__(self, config: E88Config) -> None:
        super().__init__()
        self.logit = nn.Parameter(torch.full((config.n_heads,), CONSTANT_DECAY_LOGIT))

    def forward(self, x: Tensor) -> Tensor:
        """Return alpha [B, T, H], at least float32."""
        return torch.sigmoid(at_least_float32(self.logit)).expand(*x.shape[:2], -1)


class NoDecay(nn.Module):
    """A state that nothing but writing changes."""

    def __init__(self, config: E88Config) -> None:
        super().__init__()
        self.n_heads = config.n_heads

    def forward(self, x: Tensor) -> Tensor:
        """Return ones [B, T, H], at least float32."""
        return at_least_float32(x.new_ones(*x.shape[:2], self.n_heads))


_DECAYS = {
    "mamba": _mamba_decay,
    "simple": SimpleDecay,
    "constant": ConstantDecay,
    "none": NoDecay,
}
