"""Modules shared by several families: projections, short convolution, selective decay."""

import math

import torch
import torch.nn.functional as F
from torch import Tensor, nn


def at_least_float32(x: Tensor) -> Tensor:
    """Return x in float32, or in float64 if it is: the dtype of states and decays."""
    return x.to(torch.promote_types(x.dtype, torch.float32))


def projection(n_in: int, n_out: int) -> nn.Linear:
    """Return a linear map without bias, with Xavier uniform initialization."""
    linear = nn.Linear(n_in, n_out, bias=False)
    nn.init.xavier_uniform_(linear.weight)
    return linear


def stacked_projections(n_in: int, n_out: int, count: int) -> nn.Linear:
    """Return `count` linear maps without bias as one, each with Xavier uniform initialization."""
    linear = nn.Linear(n_in, count * n_out, bias=False)
    with torch.no_grad():
        for weight in linear.weight.chunk(count):
            nn.init.xavier_uniform_(weight)
    return linear


class CausalConvolution(nn.Module):
    """Depthwise convolution over the last `width` positions, initialized as torch does."""

    def __init__(self, channels: int, width: int, *, bias: bool) -> None:
        super().__init__()
        self.conv = nn.Conv1d(channels, channels, width, groups=channels, bias=bias)
        self.n_tail = width - 1

    def forward(self, x: Tensor, tail: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """Return y [B, T, channels] for x, and the tail [B, width - 1, channels] for the next call.

        `tail` holds the inputs before x; None means zeros, at the start of a sequence.
        """
        if tail is None:
            tail = x.new_zeros(x.shape[0], self.n_tail, x.shape[2])
        padded = torch.cat((tail, x), dim=1)
        y: Tensor = self.conv(padded.transpose(1, 2))
        return y.transpose(1, 2), padded[:, -self.n_tail :]


def convolve(
    conv: CausalConvolution | None, x: Tensor, tail: Tensor | None
) -> tuple[Tensor, Tensor | None]:
    """Return x [B, T, channels] and None, or without None as `conv` the results of it."""
    return (x, None) if conv is None else conv(x, tail)


class SelectiveDecay(nn.Module):
    """Decay of Mamba (Gu and Dao, 2023), one per head: exp(-A softplus(W x + b)).

    A is initialized uniformly in (0, `max_rate`], softplus(b) log-uniformly in the range `step`.
    """

    def __init__(
        self,
        dim: int,
        n_heads: int,
        *,
        max_rate: float = 16.0,
        step: tuple[float, float] = (1e-3, 1e-1),
    ) -> None:
        super().__init__()
        self.projection = projection(dim, n_heads)
        # 1 - rand is never 0, so the logarithm is finite.
        self.log_rate = nn.Parameter((max_rate * (1 - torch.rand(n_heads))).log())
        self.step_bias = nn.Parameter(inverse_softplus_of_steps(n_heads, step))

    def log_decay(self, x: Tensor) -> Tensor:
        """Return log alpha [B, T, H], at least float32."""
        score = at_least_float32(self.projection(x))
        rate, bias = (p.to(score.dtype) for p in (self.log_rate, self.step_bias))
        return -rate.exp() * F.softplus(score + bias)

    def forward(self, x: Tensor) -> Tensor:
        """Return alpha [B, T, H], at least float32: bfloat16 cannot represent decays close to 1."""
        return self.log_decay(x).exp()


def inverse_softplus_of_steps(n: int, step: tuple[float, float]) -> Tensor:
    """Return n biases whose softplus is log-uniform in the range `step`."""
    low, high = (math.log(end) for end in step)
    steps = torch.exp(low + (high - low) * torch.rand(n))
    return steps + torch.log(-torch.expm1(-steps))
