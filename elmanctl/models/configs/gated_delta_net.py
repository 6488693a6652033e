"""Gated delta net: heads with a linear matrix state, a decay and a delta-rule write."""

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Annotated, Literal

from elmanctl.errors import InvalidConfiguration
from elmanctl.kernels.gated_delta_rule.sizes import CHUNK
from elmanctl.models.config import STUDY, Between, ConvWidth, Expansion, FamilyConfig
from elmanctl.models.configs.sizes import count_values

HEAD_WIDTH = 128
"""Default key width of a head if neither the heads nor their width are set."""

FLA_MAX_HEAD_DIM = 256


@dataclass(frozen=True, slots=True, kw_only=True)
class GatedDeltaNetConfig(FamilyConfig):
    """Gated delta net: heads with a linear matrix state, a decay and a delta-rule write.

    `n_heads` 0 means one head per 128 of `dim`, at least one; `head_dim` 0 means `dim / n_heads`,
    rounded down to a multiple of 8, at least 8.  `expansion` is the ratio of values to keys.
    The study's model ignores `n_heads`, `head_dim` and `use_conv`.
    """

    level: Literal["fla-gdn"] = "fla-gdn"
    n_heads: Annotated[int, Between(0, 4_096)] = 0
    head_dim: Annotated[int, Between(0, 4_096)] = 0
    expansion: Expansion = 2.0
    use_conv: bool = True
    d_conv: ConvWidth = 4

    @property
    def heads(self) -> int:
        """Number of heads."""
        if self.is_study:
            return _largest_divisor(self.dim, max(1, self.dim // HEAD_WIDTH))
        return self.n_heads or max(1, self.dim // HEAD_WIDTH)

    @property
    def head_keys(self) -> int:
        """Keys of one head."""
        if self.is_study:
            return self.dim // self.heads
        # Rounded down, not to the nearest: when a larger dim adds a head, the total keys and thus
        # the parameter count must not decrease.
        return self.head_dim or max(8, self.dim // self.heads // 8 * 8)

    @property
    def head_values(self) -> int:
        """Values of one head."""
        return count_values(self.head_keys, self.expansion, is_study=self.is_study)

    @property
    def key_width(self) -> int:
        """Total keys of all heads."""
        return self.heads * self.head_keys

    @property
    def value_width(self) -> int:
        """Total values of all heads."""
        return self.heads * self.head_values

    @property
    def mixed_width(self) -> int:
        """Output width of the joint projection to queries, keys and values."""
        return 2 * self.key_width + self.value_width

    @property
    def has_conv(self) -> bool:
        """Whether a short convolution follows the projection, as always in the study."""
        return self.use_conv or self.is_study

    def check_together(self) -> None:
        """Raise InvalidConfiguration unless the values of a head are an integer."""
        exact = self.head_keys * self.expansion
        # The study's tolerance is that of its package, flash-linear-attention.
        tolerance = 1e-5 * exact if self.is_study else 1e-6
        if self.head_values and abs(exact - self.head_values) <= tolerance:
            return
        nearest = [
            f"{values / self.head_keys} ({values})"
            for values in (math.floor(exact), math.floor(exact) + 1)
            if values
        ]
        raise InvalidConfiguration(
            f"{self.level}: a head has {self.head_keys} keys, so `expansion` {self.expansion:g} "
            f"gives it {exact:g} values, which must be a positive integer",
            hint=f"the nearest expansions (and values) are {' and '.join(nearest)}",
        )

    def check_backend(self, backend: str) -> None:
        """Raise InvalidConfiguration for heads that the kernels of fla do not support."""
        if backend != "fla":
            return
        if self.head_keys > FLA_MAX_HEAD_DIM:
            raise InvalidConfiguration(
                f"{self.level}: backend `fla` supports at most {FLA_MAX_HEAD_DIM} keys per head, "
                f"not {self.head_keys}",
                hint="use more heads, a smaller `head_dim`, or backend `torch`",
            )
        # fla guards a similar kernel against odd widths in 16 bits, for which Triton compiles the
        # last masked access out of bounds.
        if self.head_keys % 2 or self.head_values % 2:
            raise InvalidConfiguration(
                f"{self.level}: backend `fla` supports even widths, not {self.head_keys} keys and "
                f"{self.head_values} values per head",
                hint="use an even `head_dim`, an `expansion` with even values, or backend `torch`",
            )

    @classmethod
    def backend_limits(cls, backend: str) -> str:
        """Describe the sizes that a backend supports; empty if it supports all."""
        if backend != "fla":
            return ""
        return f"even keys and values per head, at most {FLA_MAX_HEAD_DIM} keys"

    def layer_parameters(self) -> int:
        """Return the parameter count of one layer, excluding the norm before it."""
        return (
            self.dim * self.mixed_width
            + 2 * self.dim * self.value_width
            + 2 * self.dim * self.heads
            + 2 * self.heads
            + self.has_conv * self.d_conv * self.mixed_width
            + self.head_values
        )

    def layer_state_size(self, seq_len: int) -> int:
        """Return the state size of one layer: keys by values of each head."""
        return self.value_width * self.head_keys

    def layer_activations(self, seq_len: int) -> int:
        """Estimate the elements per token that a layer saves for the backward pass."""
        chunk = min(CHUNK, seq_len)
        mixed = self.has_conv * self.mixed_width
        states = self.layer_state_size(seq_len) // chunk
        # Intermediates between the projections and the output, and, per position of the chunk,
        # those of the decays and of the products of keys and queries.
        intermediates = 12 * (self.key_width + self.value_width) + 7 * self.heads * chunk
        return 2 * self.dim + mixed + intermediates + states

    def layer_flops(self, seq_len: int) -> int:
        """Return the forward FLOPs per token of one layer, with a sequential recurrence."""
        products = (
            self.dim * (self.mixed_width + 2 * self.value_width + 2 * self.heads)
            + self.has_conv * self.d_conv * self.mixed_width
        )
        # Two matrix-vector products with the state, its decay, and the outer product added.
        return 2 * products + (2 + 2 + 1 + 2) * self.layer_state_size(seq_len)

    @classmethod
    def dim_divisor(cls, settings: Mapping[str, object]) -> int:
        """Return 128 for the study's model, whose count is monotonic only in multiples of 128."""
        return HEAD_WIDTH if settings.get("variant") == STUDY else 1


def _largest_divisor(number: int, limit: int) -> int:
    return next(n for n in range(limit, 0, -1) if number % n == 0)
