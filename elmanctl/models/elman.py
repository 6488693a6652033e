"""E1, E0 and E42: one state vector h per layer, read through a gate.

From u, the normed input of the layer, with `*` element by element:

    E1     [x; g] = W_in u, x <- silu(conv(x))
           h <- tanh(W_x x + W_h h + b),  y = W_out (h * silu(g))
    E0     x = W_in u, or silu(conv(W_in u)) with a convolution;  g = W_g x + b_g
           h <- tanh(W_x x + W_h h + b),  y = W_out (h * silu(g))
    E42    x = silu(W_in u)
           h <- W x + W h + b,            y = W_out (h * silu(h))

The recurrence of E1 and E0 is Elman's (1990); the gate of E1 is that of Mamba (Gu and Dao, 2023).
E42 is linear with one matrix for input and state; only its read-out is not.

The matrix on the state can be held at a given spectral norm (Miyato et al., 2018): below 1 it
contracts.  E1 does so by default, E42 always.  Norms are estimates: see `StateMatrix`.
"""

from typing import Any, NamedTuple, cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

from elmanctl.models.configs.elman import E0Config, E1Config, E42Config
from elmanctl.models.layers import CausalConvolution, at_least_float32, projection

RECURRENT_GAIN = 0.1
CONTRACTION = 0.99
"""The spectral norm of the matrix on the state of E1 and E0, where it is held."""

ITERATIONS = 3
"""Steps of the power iteration before each use in training."""

ITERATIONS_AT_START = 30
"""Steps of the power iteration on weights that were just drawn; training goes on from there."""

ITERATIONS_AFTER_LOADING = 200
"""Steps on weights that were loaded without a direction, as those of older versions are in E42."""


class ElmanState(NamedTuple):
    """What a layer carries over."""

    hidden: Tensor  # [B, width], float32 or float64
    conv_tail: Tensor | None  # [B, d_conv - 1, width]


class E1Layer(nn.Module):
    """An Elman network whose gate is a second half of the projection into it."""

    def __init__(self, config: E1Config, backend: str) -> None:
        """Draw the weights from torch's global generator."""
        super().__init__()
        self.inward = projection(config.dim, 2 * config.width)
        self.conv = _convolution(config)
        self.network = TanhNetwork(config.width, config.spectral_norm)
        self.out = projection(config.width, config.dim)

    def forward(self, x: Tensor, state: ElmanState | None = None) -> tuple[Tensor, ElmanState]:
        """Return y [B, T, dim] of x [B, T, dim], and the state after the last position."""
        before, tail = state or (None, None)
        mixed, gate = self.inward(x).chunk(2, dim=-1)
        if self.conv is not None:
            mixed, tail = self.conv(mixed, tail)
        hidden = self.network(F.silu(mixed), before)
        y = self.out((hidden * F.silu(gate)).to(x.dtype))
        return y, ElmanState(hidden[:, -1], tail)


class E0Layer(nn.Module):
    """An Elman network whose gate sees what the network sees."""

    def __init__(self, config: E0Config, backend: str) -> None:
        """Draw the weights from torch's global generator."""
        super().__init__()
        self.inward = projection(config.dim, config.width)
        self.conv = _convolution(config)
        self.network = TanhNetwork(config.width, config.spectral_norm)
        self.gate = _projection_with_bias(config.width)
        self.out = projection(config.width, config.dim)

    def forward(self, x: Tensor, state: ElmanState | None = None) -> tuple[Tensor, ElmanState]:
        """Return y [B, T, dim] of x [B, T, dim], and the state after the last position."""
        before, tail = state or (None, None)
        mixed = self.inward(x)
        # Only a convolution brings a silu with it here.
        if self.conv is not None:
            mixed, tail = self.conv(mixed, tail)
            mixed = F.silu(mixed)
        hidden = self.network(mixed, before)
        y = self.out((hidden * F.silu(self.gate(mixed))).to(x.dtype))
        return y, ElmanState(hidden[:, -1], tail)


class E42Layer(nn.Module):
    """A linear recurrence with one matrix for input and state, gated by itself."""

    def __init__(self, config: E42Config, backend: str) -> None:
        """Draw the weights from torch's global generator."""
        super().__init__()
        self.inward = projection(config.dim, config.width)
        self.tied = StateMatrix(config.width, gain=1.0, norm=config.held_norm)
        self.bias = nn.Parameter(torch.zeros(config.width))
        self.out = projection(config.width, config.dim)

    def forward(self, x: Tensor, state: ElmanState | None = None) -> tuple[Tensor, ElmanState]:
        """Return y [B, T, dim] of x [B, T, dim], and the state after the last position."""
        mixed = at_least_float32(F.silu(self.inward(x)))
        with torch.autocast(x.device.type, enabled=False):
            tied = self.tied()
            given = F.linear(mixed, tied, self.bias.to(tied.dtype))
            hidden = vector_recurrence(given, tied, state and state.hidden, is_linear=True)
        y = self.out((hidden * F.silu(hidden)).to(x.dtype))
        return y, ElmanState(hidden[:, -1], None)


class TanhNetwork(nn.Module):
    """Elman's recurrence `h <- tanh(W_x x + W_h h + b)`, its state in float32 at least."""

    def __init__(self, width: int, spectral_norm: bool) -> None:
        super().__init__()
        self.input = _projection_with_bias(width)
        self.recurrent = StateMatrix(
            width, gain=RECURRENT_GAIN, norm=CONTRACTION if spectral_norm else None
        )

    def forward(self, x: Tensor, before: Tensor | None) -> Tensor:
        """Return every h [B, T, width] of x [B, T, width], `before` [B, width] or zero first."""
        given = at_least_float32(self.input(x))
        with torch.autocast(x.device.type, enabled=False):
            return vector_recurrence(given, self.recurrent(), before, is_linear=False)


class StateMatrix(nn.Module):
    """A square matrix, Xavier uniform times `gain`, held at a spectral norm if one is given.

    Held, it is W norm / sigma(W), gradient included.  sigma is |W^T u| for a unit vector u that
    three steps of the power iteration on the weights move before each use in training; in
    evaluation u rests, so equal weights compute equally.  The estimate is never above sigma.
    u is part of the state dict; it is found anew for weights that are loaded without it.
    """

    direction: Tensor
    found_anew = frozenset({"direction"})
    """The buffers that `load_state_dict` finds by itself where they are missing."""

    def __init__(self, width: int, *, gain: float, norm: float | None) -> None:
        super().__init__()
        self.norm = norm
        self.weight = nn.Parameter(torch.empty(width, width))
        nn.init.xavier_uniform_(self.weight, gain=gain)
        if norm is not None:
            drawn = F.normalize(torch.randn(width), dim=0)
            self.register_buffer("direction", drawn)
            self.register_load_state_dict_pre_hook(_find_direction)  # type: ignore[no-untyped-call]
            self.iterate(ITERATIONS_AT_START)

    def forward(self) -> Tensor:
        """Return the matrix [width, width] as it is used, at least float32."""
        weight = at_least_float32(self.weight)
        if self.norm is None:
            return weight
        if self.training:
            self.iterate(ITERATIONS)
        # A direction in bfloat16 is not of unit length.
        direction = F.normalize(self.direction.to(weight.dtype), dim=0)
        sigma: Tensor = (weight.T @ direction).norm()
        return weight * (self.norm / sigma)

    def iterate(self, times: int) -> None:
        """Move the direction towards the first left singular vector of the weights."""
        # Not in place: a gradient under way still needs the direction before.
        self.direction = power_iteration(self.weight, self.direction, times)


@torch.no_grad()
def power_iteration(weight: Tensor, direction: Tensor, times: int) -> Tensor:
    """Return a direction [width] nearer to the first left singular vector of a square matrix."""
    exact = at_least_float32(weight)
    moved = direction.to(exact)
    for _ in range(times):
        moved = F.normalize(exact @ F.normalize(exact.T @ moved, dim=0), dim=0)
    return moved.to(direction)


def _find_direction(matrix: nn.Module, saved: dict[str, Any], prefix: str, *_: object) -> None:
    """Complete what is about to be loaded by the direction that it lacks."""
    weight = saved.get(f"{prefix}weight")
    if weight is not None and f"{prefix}direction" not in saved:
        own = cast(StateMatrix, matrix).direction
        saved[f"{prefix}direction"] = power_iteration(weight, own, ITERATIONS_AFTER_LOADING)


def vector_recurrence(
    given: Tensor, weight: Tensor, before: Tensor | None = None, *, is_linear: bool
) -> Tensor:
    """Return every `h_t = f(given_t + W h_{t-1})` [B, T, width], f being tanh or nothing.

    `given` is [B, T, width], W [width, width] as it stands left of h, and h_{-1} is `before`
    [B, width], or zero.  Gradients cannot be differentiated again.
    """
    if before is None:
        before = given.new_zeros(given.shape[0], given.shape[2])
    states = _VectorRecurrence.apply(given, weight, before, is_linear)  # type: ignore[no-untyped-call]
    return cast(Tensor, states)


class _VectorRecurrence(torch.autograd.Function):
    """The loop over time, and its gradient with one product for W instead of one per position."""

    @staticmethod
    def forward(ctx: Any, given: Tensor, weight: Tensor, before: Tensor, is_linear: bool) -> Tensor:
        batch, length, width = given.shape
        given = given.transpose(0, 1)
        states = given.new_empty(length + 1, batch, width)
        states[0] = before
        for t in range(length):
            torch.addmm(given[t], states[t], weight.T, out=states[t + 1])
            if not is_linear:
                states[t + 1].tanh_()
        ctx.save_for_backward(states, weight)
        ctx.is_linear = is_linear
        return states[1:].transpose(0, 1)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, from_above: Tensor) -> tuple[Tensor, Tensor, Tensor, None]:
        states, weight = ctx.saved_tensors
        # First the gradients of the states, and going back in time those of what f is taken of.
        inner = from_above.transpose(0, 1).clone(memory_format=torch.contiguous_format)
        slope = None if ctx.is_linear else 1 - states[1:].square()
        with torch.autocast(inner.device.type, enabled=False):
            for t in reversed(range(len(inner))):
                if t + 1 < len(inner):
                    inner[t].addmm_(inner[t + 1], weight)
                if slope is not None:
                    inner[t].mul_(slope[t])
            from_weight = inner.flatten(0, 1).T @ states[:-1].flatten(0, 1)
            return inner.transpose(0, 1), from_weight, inner[0] @ weight, None


def _convolution(config: E1Config | E0Config) -> CausalConvolution | None:
    return CausalConvolution(config.width, config.d_conv, bias=True) if config.use_conv else None


def _projection_with_bias(width: int) -> nn.Linear:
    """Return a square linear map, Xavier uniform, with a bias of zero."""
    linear = nn.Linear(width, width)
    nn.init.xavier_uniform_(linear.weight)
    nn.init.zeros_(linear.bias)
    return linear
