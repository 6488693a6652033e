"""Equations of the families with vector states, written position by position.

Each function takes the configuration and the weights of a layer in float64 and one sequence
[T, dim], and returns [T, dim].
"""

from typing import Any

import torch
from torch import Tensor

from elmanctl.models.configs.gru_lstm import GRUConfig, LSTMConfig
from tests.models.matrix_equations import Weights, convolved


def elman(config: Any, weights: Weights, x: Tensor) -> Tensor:
    """Compute E1, E0 or E42.

    A normalized matrix is divided by its largest singular value, not by an estimate.
    """
    width = config.width
    given = x @ weights["inward.weight"].T
    if config.level == "e42":
        W = weights["tied.weight"]  # noqa: N806
        W = W * config.spectral_radius / torch.linalg.svdvals(W)[0]  # noqa: N806
        z, h, rows = given * torch.sigmoid(given), torch.zeros(width).double(), []
        for t in range(len(x)):
            h = W @ z[t] + W @ h + weights["bias"]
            rows.append(h * h * torch.sigmoid(h))
        return torch.stack(rows) @ weights["out.weight"].T
    gate = given[:, width:]
    given = given[:, :width]
    if config.use_conv:
        given = convolved(given, weights)
    if config.use_conv or config.level == "e1":
        given = given * torch.sigmoid(given)
    if config.level == "e0":
        gate = given @ weights["gate.weight"].T + weights["gate.bias"]
    W, b = weights["network.recurrent.weight"], weights["network.input.bias"]  # noqa: N806
    if config.spectral_norm:
        W = W * 0.99 / torch.linalg.svdvals(W)[0]  # noqa: N806
    h, rows = torch.zeros(width).double(), []
    for t in range(len(x)):
        h = torch.tanh(weights["network.input.weight"] @ given[t] + W @ h + b)
        rows.append(h * gate[t] * torch.sigmoid(gate[t]))
    return torch.stack(rows) @ weights["out.weight"].T


def gru_lstm(config: Any, weights: Weights, x: Tensor) -> Tensor:
    gates = "rzn" if isinstance(config, GRUConfig) else "ifgo"
    if config.is_standard:
        names = ("rnn.weight_ih_l0", "rnn.weight_hh_l0", "rnn.bias_ih_l0", "rnn.bias_hh_l0")
    else:
        gates = gates.replace("rz", "zr")
        names = ("input.weight", "recurrent", "input.bias", "")
    blocks = [
        dict(zip(gates, weights[f"cell.{name}"].chunk(len(gates)), strict=True))
        for name in names
        if name
    ]
    W, U, b = blocks[:3]  # noqa: N806
    none = {gate: torch.zeros_like(b[gate]) for gate in gates}
    second = blocks[3] if config.is_standard else none
    h = c = torch.zeros(config.width, dtype=x.dtype)
    rows = []
    for t in range(len(x)):
        u = weights["inward.weight"] @ x[t]
        given = {gate: W[gate] @ u + b[gate] for gate in gates}
        if isinstance(config, LSTMConfig):
            all_of = {gate: given[gate] + U[gate] @ h + second[gate] for gate in gates}
            i, f, o = (torch.sigmoid(all_of[gate]) for gate in "ifo")
            c = f * c + i * torch.tanh(all_of["g"])
            h = o * torch.tanh(c)
        else:
            r, z = (torch.sigmoid(given[gate] + U[gate] @ h + second[gate]) for gate in "rz")
            if config.reset_after:
                n = torch.tanh(given["n"] + r * (U["n"] @ h + second["n"]))
                h = n + z * (h - n)
            else:
                n = torch.tanh(given["n"] + U["n"] @ (r * h))
                h = h + z * (n - h)
        rows.append(weights["out.weight"] @ h)
    return torch.stack(rows)


def sigma(x: Tensor) -> Tensor:
    return 1 / (1 + torch.exp(-x))


def min_rnn_scores(config: Any, weights: Weights, x: Tensor) -> tuple[Tensor, ...]:
    """Return the candidate and the gates of one sequence [T, dim], each [T, channels]."""
    if config.use_conv:
        x = convolved(x, weights)
    width = int(config.dim * config.expansion)
    mixed = x @ weights["mixed.weight"].T
    return tuple(mixed[:, i : i + width] for i in range(0, mixed.shape[1], width))


def min_rnn(config: Any, weights: Weights, x: Tensor) -> Tensor:
    candidate, *gates = min_rnn_scores(config, weights, x)
    h = torch.zeros_like(candidate[0])
    rows = []
    for t in range(len(x)):
        if len(gates) == 1:
            keep = 1 - sigma(gates[0][t])
        else:
            keep = sigma(gates[0][t]) / (sigma(gates[0][t]) + sigma(gates[1][t]))
        value = torch.where(candidate[t] >= 0, candidate[t] + 0.5, sigma(candidate[t]))
        h = keep * h + (1 - keep) * value
        rows.append(h)
    hidden = torch.stack(rows)
    return hidden if config.expansion == 1.0 else hidden @ weights["out.weight"].T
