"""Pre-norm transformer in the style of Llama (Touvron et al., 2023, arXiv 2302.13971).

    r <- r + Attention(norm_1 r)      softmax over k <= t of <R_t q_t, R_k k_k> / sqrt(head_dim)
    r <- r + FeedForward(norm_2 r)    W_2 (silu(W_1 x) * W_3 x)

R_t rotates each pair of adjacent channels 2i, 2i + 1 by the angle t / 10000^(2i / head_dim) (Su et
al., 2021, arXiv 2104.09864).  No biases.  Dropout, which Llama does not have, applies to the output
of both sublayers in training.

The study's model differs: each layer is one residual sublayer, which contains

    a = x + Attention(inner_norm_1 x)      block(x) = a + FeedForward(inner_norm_2 a)
    r <- r + block(norm r)

so every layer adds its normed input to the residual stream once more.
"""

from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from elmanctl.models.configs.transformer import TransformerConfig
from elmanctl.models.layers import at_least_float32, projection, stacked_projections
from elmanctl.models.lm import RMSNorm

ROTARY_BASE = 10_000.0


class AttentionState(NamedTuple):
    """Key-value cache of an attention layer; its length is the position of the next token."""

    keys: Tensor  # [B, H, T, head_dim], already rotated
    values: Tensor  # [B, H, T, head_dim]


def make_layer(config: TransformerConfig, backend: str) -> list[nn.Module]:
    """Return the sublayers of one layer: attention and feed-forward, or the study's one block."""
    if config.is_study:
        return [StudyBlock(config)]
    return [Attention(config), FeedForward(config)]


class Attention(nn.Module):
    """Causal softmax attention with rotary embeddings."""

    def __init__(self, config: TransformerConfig) -> None:
        super().__init__()
        self.config = config
        self.mixed = stacked_projections(config.dim, config.attention_width, 3)
        self.out = projection(config.attention_width, config.dim)
        self.dropout = nn.Dropout(config.dropout)

    def forward(
        self, x: Tensor, state: AttentionState | None = None
    ) -> tuple[Tensor, AttentionState]:
        """Return y [B, T, dim] for x [B, T, dim], and all keys and values so far."""
        n_before = 0 if state is None else state.keys.shape[2]
        q, k, v = (self._heads(part) for part in self.mixed(x).chunk(3, dim=-1))
        q, k = rotate(q, n_before), rotate(k, n_before)
        if state is None:
            attended = F.scaled_dot_product_attention(q, k, v, is_causal=True)
        else:
            k, v = torch.cat((state.keys, k), dim=2), torch.cat((state.values, v), dim=2)
            # `is_causal` would align the first query with the first key.
            mask = torch.ones(q.shape[2], k.shape[2], dtype=torch.bool, device=q.device)
            attended = F.scaled_dot_product_attention(q, k, v, attn_mask=mask.tril(n_before))
        y = self.out(attended.transpose(1, 2).flatten(-2))
        return self.dropout(y), AttentionState(k, v)

    def _heads(self, x: Tensor) -> Tensor:
        """Reshape [B, T, H * head_dim] to [B, H, T, head_dim]."""
        return x.view(*x.shape[:-1], self.config.heads, -1).transpose(1, 2)


class FeedForward(nn.Module):
    """SwiGLU (Shazeer, 2020, arXiv 2002.05202): product of two projections, one through silu."""

    def __init__(self, config: TransformerConfig) -> None:
        super().__init__()
        self.mixed = stacked_projections(config.dim, config.ffn_width, 2)
        self.out = projection(config.ffn_width, config.dim)
        self.dropout = nn.Dropout(config.dropout)

    def forward(self, x: Tensor, state: None = None) -> tuple[Tensor, None]:
        """Return y [B, T, dim] for x [B, T, dim]; there is no state."""
        gate, value = self.mixed(x).chunk(2, dim=-1)
        return self.dropout(self.out(F.silu(gate) * value)), None


class StudyBlock(nn.Module):
    """The study's layer: attention and feed-forward with inner norms and residuals."""

    def __init__(self, config: TransformerConfig) -> None:
        super().__init__()
        self.attention = Attention(config)
        self.feed_forward = FeedForward(config)
        self.attention_norm = InnerNorm(config.dim)
        self.feed_forward_norm = InnerNorm(config.dim)

    def forward(
        self, x: Tensor, state: AttentionState | None = None
    ) -> tuple[Tensor, AttentionState]:
        """Return the block's output [B, T, dim], at least float32, and its key-value cache."""
        residual = at_least_float32(x)
        change, state = self.attention(self.attention_norm(residual), state)
        residual = residual + change
        change, _ = self.feed_forward(self.feed_forward_norm(residual))
        return residual + change, state


class InnerNorm(RMSNorm):
    """Root mean square norm inside the study's block, with its own epsilon."""

    eps = 1e-6


def rotate(x: Tensor, first_position: int) -> Tensor:
    """Apply rotary embeddings to x [B, H, T, head_dim], at positions from `first_position` on."""
    length, width = x.shape[-2:]
    # Angles in float64: in float32, errors at large positions exceed the precision of bfloat16.
    exponent = torch.arange(0, width, 2, device=x.device, dtype=torch.float64) / width
    position = torch.arange(first_position, first_position + length, device=x.device)
    angle = position.unsqueeze(-1) * ROTARY_BASE**-exponent  # [T, head_dim / 2]
    channels = at_least_float32(x)
    even, odd = channels[..., 0::2], channels[..., 1::2]
    cos, sin = angle.cos().to(channels.dtype), angle.sin().to(channels.dtype)
    rotated = torch.stack((even * cos - odd * sin, even * sin + odd * cos), dim=-1)
    return rotated.flatten(-2).to(x.dtype)
