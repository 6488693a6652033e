"""Mamba2: a linear state per channel with one scalar decay per head and position.

Dao and Gu, 2024, "Transformers are SSMs" (arXiv 2405.21060), with the layout and initialization of
their package mamba-ssm.  For the normed input u, without biases except in the convolution:

    z, x, B, C, dt = in_proj(u)
    x, B, C        = silu(conv(x, B, C))                    causal, depthwise, with bias
    step           = softplus(dt + step_bias)               one per head
    h             <- exp(-rate step) h + step x B^T         per head, value by key
    y              = h C + skip x
    out            = out_proj(RMSNorm(y * silu(z)))         the gate comes before the norm

All heads share B and C.  Each head has P = head_dim values and N = d_state keys.
"""

from collections.abc import Callable
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from elmanctl.kernels.state_space_dual import state_space_dual
from elmanctl.models.configs.mamba2 import Mamba2Config
from elmanctl.models.layers import CausalConvolution, at_least_float32, inverse_softplus_of_steps
from elmanctl.models.lm import RMSNorm
from elmanctl.models.mamba_ssm import load, scan_on_cuda

RATES = (1.0, 16.0)
STEPS = (1e-3, 1e-1)


class Mamba2State(NamedTuple):
    """Recurrent state of a layer: the states and the last inputs of the convolution."""

    memory: Tensor  # [B, H, P, N], float32 or float64
    conv_tail: Tensor  # [B, d_conv - 1, mixed_width]


class Mamba2Layer(nn.Module):
    """Mamba2 mixer.

    Backend `torch` scans in chunks of matrix products, on any device; `mamba-ssm` uses the kernels
    of that package on CUDA.  Weights and everything but the scan are identical.
    """

    def __init__(self, config: Mamba2Config, backend: str) -> None:
        """Initialize the weights from torch's global generator, in the order of the package.

        Raises EnvironmentNotReady if the backend's package cannot be imported.
        """
        super().__init__()
        self.config = config
        self.backend = backend
        inner, heads = config.inner_width, config.n_heads
        # Projections and convolution keep torch's default initialization, as in the package.
        self.in_proj = nn.Linear(config.dim, config.projected_width, bias=False)
        self.conv = CausalConvolution(config.mixed_width, config.d_conv, bias=True)
        self.step_bias = nn.Parameter(inverse_softplus_of_steps(heads, STEPS))
        self.log_rate = nn.Parameter(torch.empty(heads).uniform_(*RATES).log())
        self.skip = nn.Parameter(torch.ones(heads))
        self.norm = RMSNorm(inner)
        self.out_proj = nn.Linear(inner, config.dim, bias=False)
        self._scan = _SCANS[backend]
        if backend == "mamba-ssm":
            # Fail on a broken installation now rather than in the first training step.
            load()

    def forward(self, u: Tensor, state: Mamba2State | None = None) -> tuple[Tensor, Mamba2State]:
        """Return y [B, T, dim] for u [B, T, dim] and the state after the last position."""
        inner, keys, heads = self.config.inner_width, self.config.d_state, self.config.n_heads
        z, mixed, score = self.in_proj(u).split((inner, self.config.mixed_width, heads), dim=-1)
        mixed, conv_tail = self.conv(mixed, None if state is None else state.conv_tail)
        x, write, read = torch.split(F.silu(mixed), [inner, keys, keys], dim=-1)
        x = x.reshape(*x.shape[:-1], heads, -1)
        score = at_least_float32(score)
        log_rate, step_bias, skip = (
            p.to(score.dtype) for p in (self.log_rate, self.step_bias, self.skip)
        )
        y, memory = self._scan(
            x,
            F.softplus(score + step_bias),
            log_rate.exp(),
            write,
            read,
            initial_state=None if state is None else state.memory,
        )
        y = (y + skip.unsqueeze(-1) * x).flatten(-2)
        gated = y * F.silu(at_least_float32(z))
        return self.out_proj(self.norm(gated).to(u.dtype)), Mamba2State(memory, conv_tail)


_SCANS: dict[str, Callable[..., tuple[Tensor, Tensor]]] = {
    "torch": state_space_dual,
    "mamba-ssm": scan_on_cuda,
}
