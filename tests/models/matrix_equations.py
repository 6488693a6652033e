"""Equations of the families with matrix states, written head by head and position by position.

Each function takes the configuration and the weights of a layer in float64 and one sequence
[T, dim], and returns [T, dim].
"""

import math
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

Weights = Mapping[str, Tensor]


def silu(x: Tensor) -> Tensor:
    return x / (1 + torch.exp(-x))


def convolved(x: Tensor, weights: Weights) -> Tensor:
    """Return the short convolution of one sequence [T, channels], tap by tap."""
    taps = weights["conv.conv.weight"][:, 0]  # [channels, d_conv], the last one for the present
    width = taps.shape[1]
    padded = torch.cat((torch.zeros(width - 1, x.shape[1]).double(), x))
    taken = sum(padded[i : i + len(x)] * taps[:, i] for i in range(width))
    return taken + weights.get("conv.conv.bias", torch.zeros(()))


def selective_decay(weights: Weights, name: str, head: int, x: Tensor) -> Tensor:
    """Return the decay `name` of the state of one head at an input [dim]."""
    score = x @ weights[f"{name}.projection.weight"][head]
    step = torch.log1p(torch.exp(score + weights[f"{name}.step_bias"][head]))
    return torch.exp(-torch.exp(weights[f"{name}.log_rate"][head]) * step)


def e88(config: Any, weights: Weights, x: Tensor) -> Tensor:
    n_heads, n_key, n_value = config.n_heads, config.n_state, config.head_values
    mixed = x @ weights["mixed.weight"].T
    if config.use_conv:
        mixed = convolved(mixed, weights)
    mixed = silu(mixed)
    outputs = []
    for head in range(n_heads):
        start = 2 * n_heads * n_key + head * n_value
        q = mixed[:, head * n_key :][:, :n_key]
        k = mixed[:, (n_heads + head) * n_key :][:, :n_key]
        v = k if config.tie_kv else mixed[:, start : start + n_value]
        q, k = q / q.norm(dim=1, keepdim=True), k / k.norm(dim=1, keepdim=True)
        state = torch.zeros(n_key, n_value).double()
        rows = []
        for t in range(len(x)):
            beta = torch.sigmoid(x[t] @ weights["rate.weight"][head]) if config.write_gate else 1.0
            state = _e88_decay(config, weights, head, x[t]) * state + beta * torch.outer(
                k[t], v[t] - state.T @ k[t]
            )
            state = state if config.linear_state else torch.tanh(state)
            o = state.T @ q[t]
            if config.value_residual:
                o = o + weights["skip"][head] * v[t]
            if config.output_norm:
                o = o / torch.sqrt(o.square().mean() + 1e-5) * weights["norm.weight"]
            if config.use_gate:
                g = (weights["gate.weight"] @ x[t])[head * n_value :][:n_value]
                o = o * (g if config.gate_activation == "silu" else 1.0) * torch.sigmoid(g)
            rows.append(o)
        outputs.append(torch.stack(rows))
    return _join_heads(config, weights, outputs, x)


def _join_heads(config: Any, weights: Weights, outputs: list[Tensor], x: Tensor) -> Tensor:
    out = weights["out.weight"]
    if config.head_mix == "concat":
        return torch.cat(outputs, dim=1) @ out.T
    if config.head_mix == "per_head":
        n = config.head_values
        return torch.stack(
            [o @ out[:, head * n : (head + 1) * n].T for head, o in enumerate(outputs)]
        ).sum(0)
    shares = torch.ones(len(x), config.n_heads).double()
    if config.head_mix == "weighted_sum":
        shares = weights["head_scores"].exp().expand(len(x), -1)
    if config.head_mix == "input_weighted":
        shares = (x @ weights["head_scores.weight"].T).exp()
    if config.head_mix != "sum":
        shares = shares / shares.sum(dim=1, keepdim=True)
    mixed = [shares[:, head, None] * o for head, o in enumerate(outputs)]
    return torch.stack(mixed).sum(0) @ out.T


def _e88_decay(config: Any, weights: Weights, head: int, x: Tensor) -> Tensor:
    if config.decay == "none":
        return torch.ones(()).double()
    if config.decay == "constant":
        return torch.sigmoid(weights["decay.logit"][head])
    if config.decay == "simple":
        return torch.sigmoid(x @ weights["decay.projection.weight"][head])
    return selective_decay(weights, "decay", head, x)


def e90(config: Any, weights: Weights, x: Tensor) -> Tensor:
    n_heads, width = config.n_heads, max(config.v_fast, config.v_slow)
    outputs = []
    for head in range(n_heads):
        fast, slow = (_e90_read_outs(config, weights, which, head, x) for which in ("fast", "slow"))
        rows = []
        for t in range(len(x)):
            shares = weights["mix.weight"] @ x[t] + weights["mix.bias"]
            to_fast, to_slow = torch.exp(shares[2 * head]), torch.exp(shares[2 * head + 1])
            o = torch.zeros(width).double()
            o[: config.v_fast] += to_fast / (to_fast + to_slow) * fast[t]
            o[: config.v_slow] += to_slow / (to_fast + to_slow) * slow[t]
            if config.use_gate:
                g = (weights["gate.weight"] @ x[t])[head * width :][:width]
                o = o * (g if config.gate_activation == "silu" else 1.0) * torch.sigmoid(g)
            rows.append(o)
        outputs.append(torch.stack(rows))
    return torch.cat(outputs, dim=1) @ weights["out.weight"].T


def _e90_read_outs(config: Any, weights: Weights, which: str, head: int, x: Tensor) -> list[Tensor]:
    """Return the read-outs of one state of one head at each position."""
    n_heads = config.n_heads
    n_key, n_value = (getattr(config, f"{kind}_{which}") for kind in "kv")
    mixed = silu(x @ weights[f"{which}.weight"].T)
    q = mixed[:, head * n_key :][:, :n_key]
    k = mixed[:, (n_heads + head) * n_key :][:, :n_key]
    v = mixed[:, 2 * n_heads * n_key + head * n_value :][:, :n_value]
    q, k = q / q.norm(dim=1, keepdim=True), k / k.norm(dim=1, keepdim=True)
    state, reads = torch.zeros(n_key, n_value).double(), []
    for t in range(len(x)):
        alpha = selective_decay(weights, f"{which}_decay", head, x[t])
        rate = torch.ones(()).double()
        if which == "slow":
            rate = torch.sigmoid(x[t] @ weights["rate.weight"][head] + weights["rate.bias"][head])
        delta = v[t] - state.T @ k[t]
        state = torch.tanh(alpha * state + rate * torch.outer(k[t], delta))
        reads.append(state.T @ q[t])
    return reads


def e75(config: Any, weights: Weights, x: Tensor) -> Tensor:
    n, width = config.n_state, config.n_heads * config.n_state
    w_k, w_v, w_q, w_beta = weights["cell.weight"].split(width)
    if config.post_conv:
        z = x
        k, v, q = silu(
            convolved(torch.cat((z @ w_k.T, z @ w_v.T, z @ w_q.T), dim=1), weights)
        ).split(width, dim=1)
    else:
        z = x @ weights["inner.weight"].T
        z = silu(convolved(z, weights) if config.use_conv else z)
        k, v, q = z @ w_k.T, z @ w_v.T, z @ w_q.T
    outputs = []
    for head in range(config.n_heads):
        mine = slice(head * n, (head + 1) * n)
        state = torch.zeros(n, n).double()
        rows = []
        for t in range(len(x)):
            beta = torch.sigmoid(w_beta[mine] @ z[t] + weights["decay_bias"][head])
            key = k[t, mine] / (k[t, mine].square().sum().sqrt() + 1e-6)
            delta = v[t, mine] - state @ key
            state = torch.tanh(torch.diag(beta) @ state + torch.outer(delta, key))
            s = state @ q[t, mine]
            rows.append(s * silu(s))
        outputs.append(torch.stack(rows))
    return torch.cat(outputs, dim=1) @ weights["out.weight"].T


def e87_inner(config: Any, weights: Weights, x: Tensor) -> Tensor:
    """Return the input of the blocks and the router for one sequence [T, dim]."""
    z = x @ weights["inner.weight"].T
    return silu(convolved(z, weights) if config.use_conv else z)


def e87(config: Any, weights: Weights, x: Tensor) -> Tensor:
    n, blocks = config.n_state, config.n_blocks
    w_k, w_v, w_beta = (w.view(blocks, n, -1) for w in weights["cell.weight"].split(blocks * n))
    states = [torch.zeros(n, n).double() for _ in range(blocks)]
    outputs = []
    for z in e87_inner(config, weights, x):
        rho = weights["router.weight"] @ z
        p = rho.exp() / rho.exp().sum()
        chosen = sorted(range(blocks), key=lambda i: -rho[i].item())[: config.top_k]
        total = sum(p[i] for i in chosen)
        for i in chosen:
            key = w_k[i] @ z
            key = key / (key.square().sum().sqrt() + 1e-6)
            beta = torch.sigmoid(w_beta[i] @ z + weights["decay_bias"][i])
            delta = w_v[i] @ z - states[i] @ key
            candidate = torch.tanh(torch.diag(beta) @ states[i] + torch.outer(delta, key))
            u = p[i] / (total + 1e-8)
            states[i] = (1 - u) * states[i] + u * candidate if config.is_study else candidate
        q = weights["query.weight"] @ z
        reads = [state @ q for state in states]
        o = sum(p[i] * reads[i] * silu(reads[i]) for i in range(blocks))
        outputs.append(weights["out.weight"] @ o)
    return torch.stack(outputs)


def mom_e88(config: Any, weights: Weights, x: Tensor) -> Tensor:
    study = config.is_study
    memories: dict[int, Tensor] = {}
    rows = []
    for now in x:
        p = torch.exp(weights["router.weight"] @ now)
        p = p / p.sum()
        ranked = sorted(range(config.n_heads), key=lambda head: -p[head].item())[: config.top_k]
        o, g = torch.zeros(2, config.head_values).double()
        for rank, head in enumerate(ranked):
            q, k = (_part(weights, name, head, config.n_state, now) for name in ("query", "key"))
            v = _part(weights, "value", head, config.head_values, now)
            q, k = (vector / (vector.norm() + (1e-6 if study else 0.0)) for vector in (q, k))
            place = rank if study else head
            state = memories.get(place, torch.zeros(config.n_state, config.head_values).double())
            delta = v - state.T @ k
            state = torch.tanh(
                selective_decay(weights, "decay", head, now) * state + torch.outer(k, delta)
            )
            memories[place] = state
            weight = p[head] / p[ranked].sum()
            o = o + weight * (state.T @ q)
            if config.use_gate:
                gates = weights["gate.weight"] @ now
                g = g + weight * gates[head * config.head_values :][: config.head_values]
        if config.use_gate:
            o = o * (g if config.gate_activation == "silu" else 1.0) * torch.sigmoid(g)
        rows.append(weights["out.weight"] @ o)
    return torch.stack(rows)


def _part(weights: Weights, name: str, head: int, width: int, x: Tensor) -> Tensor:
    return silu(weights[f"{name}.weight"][head * width :][:width] @ x)


def mamba2(config: Any, weights: Weights, u: Tensor) -> Tensor:
    inner, keys, width = config.expand * config.dim, config.d_state, config.head_dim
    projected = u @ weights["in_proj.weight"].T
    z, mixed, scores = projected.tensor_split((inner, 2 * inner + 2 * keys), dim=1)
    mixed = silu(convolved(mixed, weights))
    x, b, c = mixed[:, :inner], mixed[:, inner : inner + keys], mixed[:, inner + keys :]
    heads = []
    for head in range(inner // width):
        values = x[:, head * width :][:, :width]
        state = torch.zeros(width, keys).double()
        rows = []
        for t in range(len(u)):
            step = torch.log1p(torch.exp(scores[t, head] + weights["step_bias"][head]))
            decay = torch.exp(-step * torch.exp(weights["log_rate"][head]))
            state = decay * state + step * torch.outer(values[t], b[t])
            rows.append(state @ c[t] + weights["skip"][head] * values[t])
        heads.append(torch.stack(rows))
    y = torch.cat(heads, dim=1) * silu(z)
    y = y / torch.sqrt(y.square().mean(1, keepdim=True) + 1e-5) * weights["norm.weight"]
    return y @ weights["out_proj.weight"].T


def gated_delta_net(config: Any, weights: Weights, x: Tensor) -> Tensor:
    n_heads, n_key, n_value = config.heads, config.head_keys, config.head_values
    mixed = x @ weights["mixed.weight"].T
    if "conv.conv.weight" in weights:
        mixed = convolved(mixed, weights)
    mixed = silu(mixed)
    outputs = []
    for head in range(n_heads):
        q = mixed[:, head * n_key :][:, :n_key]
        k = mixed[:, (n_heads + head) * n_key :][:, :n_key]
        v = mixed[:, 2 * n_heads * n_key + head * n_value :][:, :n_value]
        state = torch.zeros(n_key, n_value).double()
        rows = []
        for t in range(len(x)):
            key = k[t] / torch.sqrt(k[t] @ k[t] + 1e-6)
            query = q[t] / torch.sqrt(q[t] @ q[t] + 1e-6) / math.sqrt(n_key)
            beta = 1 / (1 + torch.exp(-weights["rate.weight"][head] @ x[t]))
            alpha = selective_decay(weights, "decay", head, x[t])
            delta = v[t] - alpha * (state.T @ key)
            state = alpha * state + beta * torch.outer(key, delta)
            o = state.T @ query
            o = o / torch.sqrt(o.square().mean() + 1e-5) * weights["norm.weight"]
            g = (weights["gate.weight"] @ x[t])[head * n_value :][:n_value]
            rows.append(o * silu(g))
        outputs.append(torch.stack(rows))
    return torch.cat(outputs, dim=1) @ weights["out.weight"].T
