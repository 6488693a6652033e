"""E88: many small matrix states with a delta-rule write, a per-head decay and a tanh.

For each head, with q, k, v = silu(conv?(W x)) and then q, k of unit length:

    alpha = exp(-exp(a) softplus(W_a x + b))          or another of `decay`
    S     = tanh(alpha S + beta k (v - S^T k)^T)      beta = sigmoid(W_b x) with `write_gate`, or 1
    o     = S^T q + D v                               D v with `value_residual`
    z     = norm?(o) * act(W_g x)                     act is silu or sigmoid
    y     = W_o z                                     z of all heads, combined by `head_mix`

The write is the delta rule of Schlag, Irie and Schmidhuber (2021, arXiv 2102.11174), the decay
that of Mamba (Gu and Dao, 2023, arXiv 2312.00752).  Unusual is the tanh on the whole state, which
prevents parallelization over time.  With `tie_kv` the keys before normalization are the values.
"""

from collections.abc import Callable
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from elmanctl.kernels.matrix_recurrence import matrix_recurrence
from elmanctl.models import layers
from elmanctl.models.configs.e88 import E88Config
from elmanctl.models.lm import RMSNorm

CONSTANT_DECAY_LOGIT = 4.0


class E88State(NamedTuple):
    """Recurrent state of a layer: matrix states and the last inputs of the convolution."""

    memory: Tensor  # [B, H, N, M], float32 or float64
    conv_tail: Tensor | None  # [B, d_conv - 1, mixed_width]


class E88Layer(nn.Module):
    """E88 mixer; equations in the module docstring."""

    def __init__(self, config: E88Config, backend: str) -> None:
        super().__init__()
        self.config = config
        self.backend = backend
        dim, values = config.dim, config.value_width
        # Queries, keys and values are one matrix, which determines the scale of initialization.
        self.mixed = layers.projection(dim, config.mixed_width)
        self.decay = _DECAYS[config.decay](config)
        self.gate = layers.projection(dim, values) if config.use_gate else None
        self.out = _output(config)
        # These two keep torch's default initialization, as in the study.
        self.rate = nn.Linear(dim, config.n_heads, bias=False) if config.write_gate else None
        self.conv = (
            layers.CausalConvolution(config.mixed_width, config.d_conv, bias=False)
            if config.use_conv
            else None
        )
        self.norm = RMSNorm(config.head_values) if config.output_norm else None
        self.skip = (
            nn.Parameter(torch.ones(config.n_heads, config.head_values))
            if config.value_residual
            else None
        )
        self.head_scores = _head_scores(config)
        if config.unused_norm_weight:
            self.unused_norm = nn.Parameter(torch.ones(config.head_values))

    def forward(self, x: Tensor, state: E88State | None = None) -> tuple[Tensor, E88State]:
        """Return y [B, T, dim] for x [B, T, dim] and the state after the last position."""
        mixed, conv_tail = self._mix(x, None if state is None else state.conv_tail)
        q, k, v = self._split(mixed)
        gate = None if self.gate is None else self._heads(self.gate(x))
        read_out, memory = matrix_recurrence(
            q,
            k,
            v,
            self.decay(x),
            gate if self._gates_inside else None,
            beta=None
            if self.rate is None
            else torch.sigmoid(layers.at_least_float32(self.rate(x))),
            initial_state=None if state is None else state.memory,
            activation="silu",
            linear_state=not self.config.squashes,
            backend=self.backend,
        )
        finished = self._finish(read_out, v)
        if gate is not None and not self._gates_inside:
            opened = F.silu if self.config.gate_function == "silu" else torch.sigmoid
            finished = finished * opened(gate)
        joined = self._join(finished, x).to(x.dtype)
        return self.out(joined), E88State(memory, conv_tail)

    @property
    def _gates_inside(self) -> bool:
        """Whether the kernel applies the gate: a silu gate directly after the read-out."""
        return self.config.gate_function == "silu" and self.norm is None and self.skip is None

    def _mix(self, x: Tensor, tail: Tensor | None) -> tuple[Tensor, Tensor | None]:
        mixed, tail = layers.convolve(self.conv, self.mixed(x), tail)
        # Kernels need contiguous heads, but the convolution returns contiguous positions.
        return mixed.contiguous() if self.backend == "triton" else mixed, tail

    def _split(self, mixed: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Return queries, keys and values before silu, as views of `mixed`."""
        keys = self.config.key_width
        if self.config.tie_kv:
            q, k = map(self._heads, torch.split(mixed, keys, dim=-1))
            return q, k, k
        widths = [keys, keys, self.config.value_width]
        q, k, v = map(self._heads, torch.split(mixed, widths, dim=-1))
        return q, k, v

    def _heads(self, x: Tensor) -> Tensor:
        """Reshape [B, T, H * width] to [B, T, H, width]."""
        return x.view(*x.shape[:-1], self.config.n_heads, -1)

    def _finish(self, read_out: Tensor, v: Tensor) -> Tensor:
        if self.skip is not None:
            read_out = read_out + self.skip * F.silu(v)
        if self.norm is not None:
            read_out = self.norm(layers.at_least_float32(read_out))
        return read_out

    def _join(self, heads: Tensor, x: Tensor) -> Tensor:
        """Combine heads [B, T, H, M]: concatenated [B, T, H * M] or summed [B, T, M]."""
        if self.config.head_mix in ("concat", "per_head"):
            return heads.flatten(-2)
        heads = layers.at_least_float32(heads)
        if self.head_scores is None:
            return heads.sum(-2)
        scores = (
            self.head_scores(x) if isinstance(self.head_scores, nn.Linear) else self.head_scores
        )
        weights = torch.softmax(layers.at_least_float32(scores), -1)
        return (heads * weights.unsqueeze(-1)).sum(-2)


def _output(config: E88Config) -> nn.Linear:
    if config.head_mix == "concat":
        return layers.projection(config.value_width, config.dim)
    if config.head_mix != "per_head":
        return layers.projection(config.head_values, config.dim)
    # One matrix applied to the concatenation equals the sum of per-head matrices; only the
    # initialization is per head.
    out = nn.Linear(config.value_width, config.dim, bias=False)
    for own in torch.split(out.weight.detach(), config.head_values, dim=1):
        nn.init.xavier_uniform_(own)
    return out


def _head_scores(config: E88Config) -> nn.Parameter | nn.Linear | None:
    if config.head_mix == "weighted_sum":
        return nn.Parameter(torch.full((config.n_heads,), 1 / config.n_heads))
    if config.head_mix == "input_weighted":
        return nn.Linear(config.dim, config.n_heads, bias=False)
    return None


class SimpleDecay(nn.Module):
    """Decay computed from the input: sigmoid(W x)."""

    def __init__(self, config: E88Config) -> None:
        super().__init__()
        self.projection = layers.projection(config.dim, config.n_heads)

    def forward(self, x: Tensor) -> Tensor:
        """Return alpha [B, T, H], at least float32."""
        return torch.sigmoid(layers.at_least_float32(self.projection(x)))


class ConstantDecay(nn.Module):
    """Learned decay per head, the same at every position."""

    def __init__(self, config: E88Config) -> None:
        super().__init__()
        self.logit = nn.Parameter(torch.full((config.n_heads,), CONSTANT_DECAY_LOGIT))

    def forward(self, x: Tensor) -> Tensor:
        """Return alpha [B, T, H], at least float32."""
        return torch.sigmoid(layers.at_least_float32(self.logit)).expand(*x.shape[:2], -1)


class NoDecay(nn.Module):
    """Decay of 1: only writes change the state."""

    def __init__(self, config: E88Config) -> None:
        super().__init__()
        self.n_heads = config.n_heads

    def forward(self, x: Tensor) -> Tensor:
        """Return ones [B, T, H], at least float32."""
        return layers.at_least_float32(x.new_ones(*x.shape[:2], self.n_heads))


_DECAYS: dict[str, Callable[[E88Config], nn.Module]] = {
    "mamba": lambda config: layers.SelectiveDecay(config.dim, config.n_heads),
    "simple": SimpleDecay,
    "constant": ConstantDecay,
    "none": NoDecay,
}
