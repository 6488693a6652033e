"""A pre-norm transformer: rotary attention, then a SwiGLU feed-forward part."""

from dataclasses import dataclass
from typing import Annotated, Literal, get_args

from elmanctl.models.config import Between, FamilyConfig, in_words, whole

STUDY_HEAD_DIM = 64
STUDY_FFN_MULTIPLE = 256
FFN_MULTIPLE = 8


HeadDim = Literal[8, 16, 32, 64, 128]


@dataclass(frozen=True, slots=True, kw_only=True)
class TransformerConfig(FamilyConfig):
    """A pre-norm transformer whose attention may be wider or narrower than the model.

    `n_heads` 0 is as many heads as fit in `dim`, at least one; `expansion` is the width of the
    feed-forward part over `dim`.  The study's models accepted `head_dim` and `expansion` and had
    heads of 64 and a width that follows from `dim` all the same.
    """

    level: Literal["transformer"] = "transformer"
    n_heads: Annotated[int, Between(0, 4_096)] = 0
    head_dim: HeadDim = 64
    expansion: Annotated[float, Between(0.25, 16.0)] = 8 / 3
    dropout: Annotated[float, Between(0.0, 0.9)] = 0.0

    @property
    def sublayers(self) -> int:
        """How many pre-normed steps of the residual stream one layer takes."""
        return 1 if self.is_study else 2

    @property
    def head_width(self) -> int:
        """Numbers in each query, key and value of one head."""
        return STUDY_HEAD_DIM if self.is_study else self.head_dim

    @property
    def heads(self) -> int:
        """Heads of one layer."""
        return self.n_heads or max(1, self.dim // self.head_width)

    @property
    def attention_width(self) -> int:
        """Queries of all heads together; as many keys and values."""
        return self.heads * self.head_width

    @property
    def ffn_width(self) -> int:
        """Channels of the feed-forward part."""
        if self.is_study:
            return -(-(8 * self.dim // 3) // STUDY_FFN_MULTIPLE) * STUDY_FFN_MULTIPLE
        return max(1, whole(self.dim * self.expansion / FFN_MULTIPLE + 0.5)) * FFN_MULTIPLE

    @classmethod
    def backend_limits(cls, backend: str) -> str:
        """Return in words which sizes a backend computes."""
        return f"`head_dim` {in_words(get_args(HeadDim))}"

    def layer_parameters(self) -> int:
        """Return the number of parameters of one layer, the norms before its parts left out."""
        inner_norms = 2 * self.dim if self.is_study else 0
        return self._weights + inner_norms

    def layer_state_size(self, seq_len: int) -> int:
        """Return how many numbers one layer carries on: keys and values of every position."""
        return 2 * self.attention_width * seq_len

    def layer_activations(self, seq_len: int) -> int:
        """Return about how many numbers of one token a layer keeps for its gradient."""
        # The normed inputs, and the residual between the two parts.
        residual = 5 * self.dim
        # Queries and keys before and after rotation, values, what attention gives; attention keeps
        # no weights, as torch computes it in blocks.
        attention = 7 * self.attention_width
        return residual + attention + 4 * self.ffn_width

    def layer_flops(self, seq_len: int) -> int:
        """Return the forward FLOPs of one layer for one token, the rotation left out.

        A position sees itself and all before it, on average half of `seq_len` + 1: each of them
        costs a product with its key and one with its value.
        """
        return 2 * self._weights + 2 * self.attention_width * (seq_len + 1)

    @property
    def _weights(self) -> int:
        return self.dim * (4 * self.attention_width + 3 * self.ffn_width)
