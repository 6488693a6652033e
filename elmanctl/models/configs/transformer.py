"""Pre-norm transformer: rotary attention and a SwiGLU feed-forward sublayer."""

from dataclasses import dataclass
from typing import Annotated, Literal, get_args

from elmanctl.models.config import Between, FamilyConfig, floor_exact, format_sizes

STUDY_HEAD_DIM = 64
STUDY_FFN_MULTIPLE = 256
FFN_MULTIPLE = 8


HeadDim = Literal[8, 16, 32, 64, 128]


@dataclass(frozen=True, slots=True, kw_only=True)
class TransformerConfig(FamilyConfig):
    """Pre-norm transformer whose attention may be wider or narrower than the model.

    `n_heads` 0 means as many heads as fit in `dim`, at least one; `expansion` is the ratio of the
    feed-forward width to `dim`.  The study's models accepted but ignored `head_dim` and
    `expansion`: heads were 64 wide, and the feed-forward width followed from `dim`.
    """

    level: Literal["transformer"] = "transformer"
    n_heads: Annotated[int, Between(0, 4_096)] = 0
    head_dim: HeadDim = 64
    expansion: Annotated[float, Between(0.25, 16.0)] = 8 / 3
    dropout: Annotated[float, Between(0.0, 0.9)] = 0.0

    @property
    def sublayers(self) -> int:
        """Pre-norm residual sublayers per layer."""
        return 1 if self.is_study else 2

    @property
    def head_width(self) -> int:
        """Width of the queries, keys and values of one head."""
        return STUDY_HEAD_DIM if self.is_study else self.head_dim

    @property
    def heads(self) -> int:
        """Number of heads."""
        return self.n_heads or max(1, self.dim // self.head_width)

    @property
    def attention_width(self) -> int:
        """Total width of the queries of all heads; keys and values likewise."""
        return self.heads * self.head_width

    @property
    def ffn_width(self) -> int:
        """Width of the feed-forward sublayer."""
        if self.is_study:
            return -(-(8 * self.dim // 3) // STUDY_FFN_MULTIPLE) * STUDY_FFN_MULTIPLE
        return max(1, floor_exact(self.dim * self.expansion / FFN_MULTIPLE + 0.5)) * FFN_MULTIPLE

    @classmethod
    def backend_limits(cls, backend: str) -> str:
        """Describe the sizes that a backend supports."""
        return f"`head_dim` {format_sizes(get_args(HeadDim))}"

    def layer_parameters(self) -> int:
        """Return the parameter count of one layer, excluding the norms before its sublayers."""
        inner_norms = 2 * self.dim if self.is_study else 0
        return self._weights + inner_norms

    def layer_state_size(self, seq_len: int) -> int:
        """Return the state size of one layer: the keys and values of all positions."""
        return 2 * self.attention_width * seq_len

    def layer_activations(self, seq_len: int) -> int:
        """Estimate the elements per token that a layer saves for the backward pass."""
        # The normalized inputs, and the residual between the two sublayers.
        residual = 5 * self.dim
        # Queries and keys before and after rotation, values, the attention output; torch's fused
        # attention saves no attention weights.
        attention = 7 * self.attention_width
        return residual + attention + 4 * self.ffn_width

    def layer_flops(self, seq_len: int) -> int:
        """Return the forward FLOPs per token of one layer, excluding the rotation.

        A position attends to itself and all earlier ones, (`seq_len` + 1) / 2 on average, with one
        product with the key and one with the value of each.
        """
        return 2 * self._weights + 2 * self.attention_width * (seq_len + 1)

    @property
    def _weights(self) -> int:
        return self.dim * (4 * self.attention_width + 3 * self.ffn_width)
