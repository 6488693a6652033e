"""GRU and LSTM between two projections: `y = W_out cell(W_in x)`, with W_out initialized to zero.

GRU (Cho et al., 2014), with r, z, n from the input x, the previous state h, and biases:

    standard    r, z = sigmoid(W x + b + U h + c),  n = tanh(W x + b + r (U h + c))
                h <- (1 - z) n + z h
    one bias    r, z = sigmoid(W x + U h + b),      n = tanh(W x + U (r h) + b)
                h <- (1 - z) h + z n

LSTM (Hochreiter and Schmidhuber, 1997; forget gate of Gers et al., 2000), cell state c:

    i, f, o = sigmoid(W x + U h + b),  g = tanh(W x + U h + b),  c <- f c + i g,  h <- o tanh(c)

where the standard LSTM has a second bias in U h.  Standard is the convention of PyTorch and cuDNN.
The other convention, that of the CUDA cells of the January 2026 study, resets the state before the
product (as in version 1 of the GRU paper), and its z is one minus the standard one.

Each gate's square block of weights is initialized orthogonally: for input and state in the standard
cell, for the state only with one bias, where input weights are normal with standard deviation 0.02.
The study's standard cells had orthogonal weights too, but it is not on record whether per block or
per matrix; here it is per block.
"""

from collections.abc import Sequence
from contextlib import AbstractContextManager, nullcontext

import torch
from torch import Tensor, nn

from elmanctl.errors import EnvironmentNotReady
from elmanctl.models.configs.gru_lstm import GRUConfig, LSTMConfig
from elmanctl.models.layers import at_least_float32

INPUT_STD = 0.02
FORGET_BIAS = 1.0

State = tuple[Tensor, ...]
"""h, and c for an LSTM: each [B, width], float32 or float64."""


class RecurrentLayer(nn.Module):
    """Recurrent cell between an input projection and a zero-initialized output projection.

    The cell computes in float32, or float64 if x is, for any dtype of its weights; on cuDNN its
    matrix products follow `torch.backends.cudnn.allow_tf32`.
    """

    def __init__(self, config: GRUConfig | LSTMConfig, backend: str) -> None:
        super().__init__()
        self.config = config
        cell = _cell(config, backend)
        self.inward = nn.Linear(config.dim, config.width, bias=False)
        self.cell = cell
        self.out = nn.Linear(config.width, config.dim, bias=False)
        nn.init.normal_(self.inward.weight, std=INPUT_STD)
        nn.init.zeros_(self.out.weight)

    def forward(self, x: Tensor, state: State | None = None) -> tuple[Tensor, State]:
        """Return y [B, T, dim] for x [B, T, dim] and the state after the last position."""
        inner = at_least_float32(self.inward(x))
        if state is None:
            state = (inner.new_zeros(len(x), self.config.width),) * self.config.states
        with torch.autocast(x.device.type, enabled=False):
            outputs, state = self.cell(inner, state)
        return self.out(outputs.to(x.dtype)), state


class _StandardCell(nn.Module):
    """Cell in the convention of PyTorch and cuDNN: stacked blocks of gates, two biases."""

    kind: type[nn.GRU] | type[nn.LSTM]

    def __init__(self, width: int, backend: str) -> None:
        super().__init__()
        self.backend = backend
        # torch's module keeps the weights in one contiguous buffer, as cuDNN requires.
        self.rnn = self.kind(width, width, batch_first=True)
        for name in ("weight_ih_l0", "weight_hh_l0"):
            _blocks_orthogonal(self.rnn.get_parameter(name))
        for name in ("bias_ih_l0", "bias_hh_l0"):
            nn.init.zeros_(self.rnn.get_parameter(name))

    def weights(self, dtype: torch.dtype) -> list[Tensor]:
        """Return weights and biases in `dtype`, in the order of torch and cuDNN."""
        return [weight.to(dtype) for weight in self.rnn.parameters()]

    def implementation(self, x: Tensor) -> AbstractContextManager[object]:
        """Return a context in which torch runs x on this cell's backend.

        Raises EnvironmentNotReady if torch would silently use another backend than cuDNN.
        """
        if self.backend != "cudnn":
            return torch.backends.cudnn.flags(enabled=False)
        if not (x.is_cuda and torch.backends.cudnn.enabled):
            raise EnvironmentNotReady(
                f"cuDNN is disabled or unavailable on {x.device}",
                hint="move the model to a CUDA device, or build it with backend `torch`",
            )
        return nullcontext()

    @property
    def keeps_gradient(self) -> bool:
        """Whether a backward pass may follow, which cuDNN supports only in its training mode."""
        return self.training or torch.is_grad_enabled()


class StandardGRU(_StandardCell):
    """GRU of PyTorch and cuDNN."""

    kind = nn.GRU

    def forward(self, x: Tensor, state: State) -> tuple[Tensor, State]:
        """Return the states [B, T, width] for x [B, T, width], and the last one."""
        weights, (h,) = self.weights(x.dtype), state
        with self.implementation(x):
            outputs, h = torch.gru(
                x, h[None], weights, True, 1, 0.0, self.keeps_gradient, False, True
            )
        return outputs, (h[0],)


class StandardLSTM(_StandardCell):
    """LSTM of PyTorch and cuDNN."""

    kind = nn.LSTM

    def __init__(self, width: int, backend: str) -> None:
        super().__init__(width, backend)
        for name in ("bias_ih_l0", "bias_hh_l0"):
            _open_forget_gate(self.rnn.get_parameter(name))

    def forward(self, x: Tensor, state: State) -> tuple[Tensor, State]:
        """Return the outputs [B, T, width] for x [B, T, width], and the last h and c."""
        weights, before = self.weights(x.dtype), [part[None] for part in state]
        with self.implementation(x):
            outputs, h, c = torch.lstm(
                x, before, weights, True, 1, 0.0, self.keeps_gradient, False, True
            )
        return outputs, (h[0], c[0])


class _OneBiasCell(nn.Module):
    """Cell with input weights, recurrent weights and one bias; one block of rows per gate."""

    def __init__(self, width: int, n_blocks: int) -> None:
        super().__init__()
        self.width = width
        self.input = nn.Linear(width, n_blocks * width)
        self.recurrent = nn.Parameter(torch.empty(n_blocks * width, width))
        nn.init.normal_(self.input.weight, std=INPUT_STD)
        nn.init.zeros_(self.input.bias)
        _blocks_orthogonal(self.recurrent)

    def project_input(self, x: Tensor) -> Sequence[Tensor]:
        """Return the input part of the gates [B, n_blocks * width] for each position of x."""
        weight, bias = self.input.weight.to(x.dtype), self.input.bias.to(x.dtype)
        return nn.functional.linear(x, weight, bias).unbind(1)


class OneBiasGRU(_OneBiasCell):
    """GRU that resets the state before the recurrent product; blocks z, r, n."""

    def __init__(self, width: int) -> None:
        super().__init__(width, n_blocks=3)

    def forward(self, x: Tensor, state: State) -> tuple[Tensor, State]:
        """Return the states [B, T, width] for x [B, T, width], and the last one."""
        (h,), width, recurrent = state, self.width, self.recurrent.to(x.dtype).T
        to_gates, to_candidate = recurrent[:, : 2 * width], recurrent[:, 2 * width :]
        outputs = []
        for projected in self.project_input(x):
            z, r = torch.sigmoid(projected[:, : 2 * width] + h @ to_gates).chunk(2, dim=1)
            n = torch.tanh(projected[:, 2 * width :] + (r * h) @ to_candidate)
            h = (1 - z) * h + z * n
            outputs.append(h)
        return torch.stack(outputs, dim=1), (h,)


class OneBiasLSTM(_OneBiasCell):
    """LSTM with one bias per gate; blocks i, f, g, o."""

    def __init__(self, width: int) -> None:
        super().__init__(width, n_blocks=4)
        _open_forget_gate(self.input.bias)

    def forward(self, x: Tensor, state: State) -> tuple[Tensor, State]:
        """Return the outputs [B, T, width] for x [B, T, width], and the last h and c."""
        (h, c), recurrent = state, self.recurrent.to(x.dtype).T
        outputs = []
        for projected in self.project_input(x):
            i, f, g, o = (projected + h @ recurrent).chunk(4, dim=1)
            c = torch.sigmoid(f) * c + torch.sigmoid(i) * torch.tanh(g)
            h = torch.sigmoid(o) * torch.tanh(c)
            outputs.append(h)
        return torch.stack(outputs, dim=1), (h, c)


def _cell(config: GRUConfig | LSTMConfig, backend: str) -> nn.Module:
    is_gru = isinstance(config, GRUConfig)
    if config.is_standard:
        return (StandardGRU if is_gru else StandardLSTM)(config.width, backend)
    return (OneBiasGRU if is_gru else OneBiasLSTM)(config.width)


def _blocks_orthogonal(weight: Tensor) -> None:
    """Initialize each square block of rows orthogonally."""
    width = weight.shape[1]
    for block in weight.detach().view(-1, width, width):
        nn.init.orthogonal_(block)


def _open_forget_gate(bias: Tensor) -> None:
    """Set the forget gate's bias, the second of four blocks in both conventions."""
    width = len(bias) // 4
    nn.init.constant_(bias.detach()[width : 2 * width], FORGET_BIAS)
