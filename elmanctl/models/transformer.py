"""A pre-norm transformer as Llama has it (Touvron et al., 2023, arXiv 2302.13971).

    r <- r + Attention(norm_1 r)      softmax over k <= t of <R_t q_t, R_k k_k> / sqrt(head_dim)
    r <- r + FeedForward(norm_2 r)    W_2 (silu(W_1 x) * W_3 x)

R_t turns each pair of neighbouring channels 2i, 2i + 1 by the angle t / 10000^(2i / head_dim)
(Su et al., 2021, arXiv 2104.09864).  No biases.  Dropout, which Llama itself does not have, acts in
training on what either part gives.

The study's model was another: one step of the residual stream a layer, and inside it

    a = x + Attention(inner_norm_1 x)      block(x) = a + FeedForward(inner_norm_2 a)
    r <- r + block(norm r)

so that the normed input is added on top of the stream itself, once in every layer.
"""

from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from elmanctl.models.configs.transformer import TransformerConfig
from elmanctl.models.layers import at_least_float32, projection
from elmanctl.models.lm import RMSNorm

ROTARY_BASE = 10_000.0
INNER_NORM_EPS = 1e-6


class AttentionState(NamedTuple):
    """What an attention carries over; how many keys there are is the position of the next."""

    keys: Tensor  # [B, H, T, head_dim], already rotated
    values: Tensor  # [B, H, T, head_dim]


def make_layer(config: TransformerConfig, backend: str) -> list[nn.Module]:
    """Return the parts of one layer: attention and feed-forward, or the study's one block."""
    if config.is_study:
        return [StudyBlock(config)]
    return [Attention(config), FeedForward(config)]


class Attention(nn.Module):
    """Causal softmax attention with rotated queries and keys."""

    def __init__(self, config: TransformerConfig) -> None:
        """Draw the weights from torch's global generator."""
        super().__init__()
        self.config = config
        self.mixed = stacked_projections(config.dim, config.attention_width, 3)
        self.out = projection(config.attention_width, config.dim)
        self.dropout = nn.Dropout(config.dropout)

    def forward(
        self, x: Tensor, state: AttentionState | None = None
    ) -> tuple[Tensor, AttentionState]:
        """Return y [B, T, dim] of x [B, T, dim], and the keys and values so far."""
        n_before = 0 if state is None else state.keys.shape[2]
        q, k, v = (self._heads(part) for part in self.mixed(x).chunk(3, dim=-1))
        q, k = rotate(q, n_before), rotate(k, n_before)
        if state is None:
            seen = F.scaled_dot_product_attention(q, k, v, is_causal=True)
        else:
            k, v = torch.cat((state.keys, k), dim=2), torch.cat((state.values, v), dim=2)
            # `is_causal` would line up the first query with the first key.
            visible = torch.ones(q.shape[2], k.shape[2], dtype=torch.bool, device=q.device)
            seen = F.scaled_dot_product_attention(q, k, v, attn_mask=visible.tril(n_before))
        y = self.out(seen.transpose(1, 2).flatten(-2))
        return self.dropout(y), AttentionState(k, v)

    def _heads(self, x: Tensor) -> Tensor:
        """[B, T, H * head_dim] as [B, H, T, head_dim]."""
        return x.view(*x.shape[:-1], self.config.heads, -1).transpose(1, 2)


class FeedForward(nn.Module):
    """SwiGLU (Shazeer, 2020, arXiv 2002.05202): two projections multiplied, one behind silu."""

    def __init__(self, config: TransformerConfig) -> None:
        """Draw the weights from torch's global generator."""
        super().__init__()
        self.mixed = stacked_projections(config.dim, config.ffn_width, 2)
        self.out = projection(config.ffn_width, config.dim)
        self.dropout = nn.Dropout(config.dropout)

    def forward(self, x: Tensor, state: None = None) -> tuple[Tensor, None]:
        """Return y [B, T, dim] of x [B, T, dim]; nothing is carried over."""
        gate, value = self.mixed(x).chunk(2, dim=-1)
        return self.dropout(self.out(F.silu(gate) * value)), None


class StudyBlock(nn.Module):
    """The study's layer: attention and feed-forward with norms and residuals of their own."""

    def __init__(self, config: TransformerConfig) -> None:
        """Draw the weights from torch's global generator."""
        super().__init__()
        self.attention = Attention(config)
        self.feed_forward = FeedForward(config)
        self.attention_norm = InnerNorm(config.dim)
        self.feed_forward_norm = InnerNorm(config.dim)

    def forward(
        self, x: Tensor, state: AttentionState | None = None
    ) -> tuple[Tensor, AttentionState]:
        """Return the block [B, T, dim] of x [B, T, dim], at least float32, and what is carried."""
        residual = at_least_float32(x)
        change, state = self.attention(self.attention_norm(residual), state)
        residual = residual + change
        change, _ = self.feed_forward(self.feed_forward_norm(residual))
        return residual + change, state


class InnerNorm(RMSNorm):
    """The root mean square norm inside the study's block, with an eps of its own."""

    def forward(self, x: Tensor) -> Tensor:
        """Return x [..., dim] over its root mean square, scaled, in the weight's dtype."""
        weight = self.weight.to(x.dtype)
        return F.rms_norm(x, weight.shape, weight, INNER_NORM_EPS).to(self.weight.dtype)


def stacked_projections(n_in: int, n_out: int, count: int) -> nn.Linear:
    """Return several linear maps without bias as one, each Xavier uniform by itself."""
    linear = nn.Linear(n_in, count * n_out, bias=False)
    with torch.no_grad():
        for weight in linear.weight.chunk(count):
            nn.init.xavier_uniform_(weight)
    return linear


def rotate(x: Tensor, first_position: int) -> Tensor:
    """Return x [B, H, T, head_dim] with its pairs of channels turned by their angles.

    The positions of x are `first_position` and those that follow.
    """
    length, width = x.shape[-2:]
    # Angles in float64: in float32 those of far positions would be off by more than a bfloat16.
    exponent = torch.arange(0, width, 2, device=x.device, dtype=torch.float64) / width
    position = torch.arange(first_position, first_position + length, device=x.device)
    angle = position.unsqueeze(-1) * ROTARY_BASE**-exponent  # [T, head_dim / 2]
    channels = at_least_float32(x)
    even, odd = channels[..., 0::2], channels[..., 1::2]
    cos, sin = angle.cos().to(channels.dtype), angle.sin().to(channels.dtype)
    turned = torch.stack((even * cos - odd * sin, even * sin + odd * cos), dim=-1)
    return turned.flatten(-2).to(x.dtype)
