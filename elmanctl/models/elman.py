"""E1, E0 and E42: one state vector h per layer, read through a gate.

With u the normed input of the layer and `*` elementwise:

    E1     [x; g] = W_in u, x <- silu(conv(x))
           h <- tanh(W_x x + W_h h + b),  y = W_out (h * silu(g))
    E0     x = W_in u, or silu(conv(W_in u)) with a convolution;  g = W_g x + b_g
           h <- tanh(W_x x + W_h h + b),  y = W_out (h * silu(g))
    E42    x = silu(W_in u)
           h <- W x + W h + b,            y = W_out (h * silu(h))

The recurrence of E1 and E0 is Elman's (1990); the gate of E1 is that of Mamba (Gu and Dao, 2023).
E42 is linear, except for its read-out, with one matrix for input and state.

The matrix of the state can be normalized to a given spectral norm (Miyato et al., 2018); below 1 it
is a contraction.  E1 does so by default, E42 always.  Norms are estimates: see `StateMatrix`.
"""

from typing import Any, NamedTuple, cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

from elmanctl.models.configs.elman import E0Config, E1Config, E42Config
from elmanctl.models.layers import CausalConvolution, at_least_float32, convolve, projection

RECURRENT_GAIN = 0.1
CONTRACTION = 0.99
"""Spectral norm of the state matrix of E1 and E0, where it is normalized."""

ITERATIONS = 3
"""Power-iteration steps before each use in training."""

ITERATIONS_AT_START = 30
"""Power-iteration steps on newly initialized weights."""

ITERATIONS_AFTER_LOADING = 200
"""Power-iteration steps on weights loaded without a direction, such as E42's of older versions."""


class ElmanState(NamedTuple):
    """Recurrent state of a layer."""

    hidden: Tensor  # [B, width], float32 or float64
    conv_tail: Tensor | None  # [B, d_conv - 1, width]


class E1Layer(nn.Module):
    """Elman network whose gate is the second half of the input projection."""

    def __init__(self, config: E1Config, backend: str) -> None:
        super().__init__()
        self.inward = projection(config.dim, 2 * config.width)
        self.conv = _convolution(config)
        self.network = TanhNetwork(config.width, config.spectral_norm)
        self.out = projection(config.width, config.dim)

    def forward(self, x: Tensor, state: ElmanState | None = None) -> tuple[Tensor, ElmanState]:
        """Return y [B, T, dim] for x [B, T, dim] and the state after the last position."""
        before, tail = state or (None, None)
        mixed, gate = self.inward(x).chunk(2, dim=-1)
        mixed, tail = convolve(self.conv, mixed, tail)
        hidden = self.network(F.silu(mixed), before)
        y = self.out((hidden * F.silu(gate)).to(x.dtype))
        return y, ElmanState(hidden[:, -1], tail)


class E0Layer(nn.Module):
    """Elman network whose gate is computed from the network's input."""

    def __init__(self, config: E0Config, backend: str) -> None:
        super().__init__()
        self.inward = projection(config.dim, config.width)
        self.conv = _convolution(config)
        self.network = TanhNetwork(config.width, config.spectral_norm)
        self.gate = _projection_with_bias(config.width)
        self.out = projection(config.width, config.dim)

    def forward(self, x: Tensor, state: ElmanState | None = None) -> tuple[Tensor, ElmanState]:
        """Return y [B, T, dim] for x [B, T, dim] and the state after the last position."""
        before, tail = state or (None, None)
        mixed = self.inward(x)
        # In E0 silu is applied only with a convolution.
        if self.conv is not None:
            mixed, tail = self.conv(mixed, tail)
            mixed = F.silu(mixed)
        hidden = self.network(mixed, before)
        y = self.out((hidden * F.silu(self.gate(mixed))).to(x.dtype))
        return y, ElmanState(hidden[:, -1], tail)


class E42Layer(nn.Module):
    """Self-gated linear recurrence with one tied matrix for input and state."""

    def __init__(self, config: E42Config, backend: str) -> None:
        super().__init__()
        self.inward = projection(config.dim, config.width)
        self.tied = StateMatrix(config.width, gain=1.0, norm=config.matrix_norm)
        self.bias = nn.Parameter(torch.zeros(config.width))
        self.out = projection(config.width, config.dim)

    def forward(self, x: Tensor, state: ElmanState | None = None) -> tuple[Tensor, ElmanState]:
        """Return y [B, T, dim] for x [B, T, dim] and the state after the last position."""
        mixed = at_least_float32(F.silu(self.inward(x)))
        with torch.autocast(x.device.type, enabled=False):
            tied = self.tied()
            inputs = F.linear(mixed, tied, self.bias.to(tied.dtype))
            hidden = vector_recurrence(inputs, tied, state and state.hidden, is_linear=True)
        y = self.out((hidden * F.silu(hidden)).to(x.dtype))
        return y, ElmanState(hidden[:, -1], None)


class TanhNetwork(nn.Module):
    """Elman's recurrence `h <- tanh(W_x x + W_h h + b)`, with a state of at least float32."""

    def __init__(self, width: int, spectral_norm: bool) -> None:
        super().__init__()
        self.input = _projection_with_bias(width)
        self.recurrent = StateMatrix(
            width, gain=RECURRENT_GAIN, norm=CONTRACTION if spectral_norm else None
        )

    def forward(self, x: Tensor, before: Tensor | None) -> Tensor:
        """Return all h [B, T, width] for x [B, T, width]; `before` [B, width] defaults to zero."""
        inputs = at_least_float32(self.input(x))
        with torch.autocast(x.device.type, enabled=False):
            return vector_recurrence(inputs, self.recurrent(), before, is_linear=False)


class StateMatrix(nn.Module):
    """Square matrix, Xavier uniform times `gain`, optionally normalized to a spectral norm.

    If normalized, it is W norm / sigma(W), and the gradient includes sigma.  sigma is estimated as
    |W^T u| for a unit vector u, which three steps of power iteration update before each use in
    training; in evaluation u is fixed, so results are reproducible.  The estimate never exceeds
    the true sigma.  u is part of the state dict and is recomputed for weights loaded without it.
    """

    direction: Tensor

    def __init__(self, width: int, *, gain: float, norm: float | None) -> None:
        super().__init__()
        self.norm = norm
        self.weight = nn.Parameter(torch.empty(width, width))
        nn.init.xavier_uniform_(self.weight, gain=gain)
        if norm is not None:
            self.register_buffer("direction", F.normalize(torch.randn(width), dim=0))
            self.register_load_state_dict_pre_hook(_recompute_direction)  # type: ignore[no-untyped-call]
            self.iterate(ITERATIONS_AT_START)

    def forward(self) -> Tensor:
        """Return the normalized matrix [width, width], at least float32."""
        weight = at_least_float32(self.weight)
        if self.norm is None:
            return weight
        if self.training:
            self.iterate(ITERATIONS)
        # After rounding to bfloat16 the direction is not of unit length.
        direction = F.normalize(self.direction.to(weight.dtype), dim=0)
        sigma: Tensor = (weight.T @ direction).norm()
        return weight * (self.norm / sigma)

    def iterate(self, times: int) -> None:
        """Move the direction towards the first left singular vector of the weights."""
        # Not in place: a pending backward pass still needs the old direction.
        self.direction = power_iteration(self.weight, self.direction, times)


@torch.no_grad()
def power_iteration(weight: Tensor, direction: Tensor, times: int) -> Tensor:
    """Return a direction [width] closer to the first left singular vector of a square matrix."""
    exact = at_least_float32(weight)
    moved = direction.to(exact)
    for _ in range(times):
        moved = F.normalize(exact @ F.normalize(exact.T @ moved, dim=0), dim=0)
    return moved.to(direction)


def _recompute_direction(matrix: nn.Module, saved: dict[str, Any], prefix: str, *_: object) -> None:
    """Add a missing direction to a state dict before it is loaded."""
    weight = saved.get(f"{prefix}weight")
    if weight is not None and f"{prefix}direction" not in saved:
        own = cast(StateMatrix, matrix).direction
        saved[f"{prefix}direction"] = power_iteration(weight, own, ITERATIONS_AFTER_LOADING)


def vector_recurrence(
    inputs: Tensor, weight: Tensor, before: Tensor | None = None, *, is_linear: bool
) -> Tensor:
    """Return all `h_t = f(inputs_t + W h_{t-1})` [B, T, width], with f the tanh or the identity.

    inputs: [B, T, width]; weight, W: [width, width]; before, h_{-1}: [B, width], zero by default.
    There is no double backward.
    """
    if before is None:
        before = inputs.new_zeros(inputs.shape[0], inputs.shape[2])
    states = _VectorRecurrence.apply(inputs, weight, before, is_linear)  # type: ignore[no-untyped-call]
    return cast(Tensor, states)


class _VectorRecurrence(torch.autograd.Function):
    """Time loop with a hand-written gradient: one matrix product for W, not one per position."""

    @staticmethod
    def forward(
        ctx: Any, inputs: Tensor, weight: Tensor, before: Tensor, is_linear: bool
    ) -> Tensor:
        batch, length, width = inputs.shape
        inputs = inputs.transpose(0, 1)
        states = inputs.new_empty(length + 1, batch, width)
        states[0] = before
        for t in range(length):
            torch.addmm(inputs[t], states[t], weight.T, out=states[t + 1])
            if not is_linear:
                states[t + 1].tanh_()
        ctx.save_for_backward(states, weight)
        ctx.is_linear = is_linear
        return states[1:].transpose(0, 1)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, d_states: Tensor) -> tuple[Tensor, Tensor, Tensor, None]:
        states, weight = ctx.saved_tensors
        # Starts as the gradients of the states and becomes those of the pre-activations.
        d_inputs = d_states.transpose(0, 1).clone(memory_format=torch.contiguous_format)
        slope = None if ctx.is_linear else 1 - states[1:].square()
        with torch.autocast(d_inputs.device.type, enabled=False):
            for t in reversed(range(len(d_inputs))):
                if t + 1 < len(d_inputs):
                    d_inputs[t].addmm_(d_inputs[t + 1], weight)
                if slope is not None:
                    d_inputs[t].mul_(slope[t])
            d_weight = d_inputs.flatten(0, 1).T @ states[:-1].flatten(0, 1)
            return d_inputs.transpose(0, 1), d_weight, d_inputs[0] @ weight, None


def _convolution(config: E1Config | E0Config) -> CausalConvolution | None:
    return CausalConvolution(config.width, config.d_conv, bias=True) if config.use_conv else None


def _projection_with_bias(width: int) -> nn.Linear:
    """Return a square linear map with Xavier uniform weights and zero bias."""
    linear = nn.Linear(width, width)
    nn.init.xavier_uniform_(linear.weight)
    nn.init.zeros_(linear.bias)
    return linear
