"""Mamba2: heads with a key-by-value state and one scalar decay per head and position."""

from collections.abc import Mapping
from dataclasses import dataclass
from math import gcd
from typing import Annotated, ClassVar, Literal, get_args

from elmanctl.errors import InvalidConfiguration
from elmanctl.kernels.state_space_dual.sizes import CHUNK
from elmanctl.models.config import Between, ConvWidth, FamilyConfig, format_sizes

HeadDim = Literal[8, 16, 32, 64, 128]


@dataclass(frozen=True, slots=True, kw_only=True)
class Mamba2Config(FamilyConfig):
    """Mamba2 with one group: all heads share B and C.

    Both variants are the same model: the study varied `d_state` and `expand` only in its search
    script, without effect on the trainer.
    """

    norm: ClassVar[Literal["rms", "layer"]] = "layer"

    level: Literal["mamba2"] = "mamba2"
    d_state: Annotated[int, Between(1, 1_024)] = 64
    expand: Annotated[int, Between(1, 8)] = 2
    head_dim: HeadDim = 64
    d_conv: ConvWidth = 4

    @property
    def inner_width(self) -> int:
        """Total channels of all heads."""
        return self.expand * self.dim

    @property
    def n_heads(self) -> int:
        """Heads of one layer."""
        return self.inner_width // self.head_dim

    @property
    def mixed_width(self) -> int:
        """Channels of the convolution: x, B and C."""
        return self.inner_width + 2 * self.d_state

    @property
    def projected_width(self) -> int:
        """Output width of the input projection: gate, channels of the convolution, steps."""
        return self.inner_width + self.mixed_width + self.n_heads

    def check_together(self) -> None:
        """Raise InvalidConfiguration for an inner width that is not a multiple of `head_dim`."""
        if self.inner_width % self.head_dim:
            step = self.dim_divisor({"expand": self.expand, "head_dim": self.head_dim})
            below = self.dim // step * step
            nearest = [str(dim) for dim in (below, below + step) if dim]
            raise InvalidConfiguration(
                f"{self.level}: the inner width {self.inner_width} (`expand` {self.expand} times "
                f"`dim` {self.dim}) is not a multiple of `head_dim` {self.head_dim}",
                hint=f"nearest `dim`: {' and '.join(nearest)}",
            )

    @classmethod
    def backend_limits(cls, backend: str) -> str:
        """Describe the sizes that a backend supports."""
        return f"`head_dim` {format_sizes(get_args(HeadDim))}"

    def layer_parameters(self) -> int:
        """Return the parameter count of one layer, excluding the norm before it."""
        return (
            self.dim * self.projected_width
            + (self.d_conv + 1) * self.mixed_width
            + 3 * self.n_heads
            + self.inner_width
            + self.inner_width * self.dim
        )

    def layer_state_size(self, seq_len: int) -> int:
        """Return the state size of one layer: a vector of `d_state` per channel."""
        return self.inner_width * self.d_state

    def layer_activations(self, seq_len: int) -> int:
        """Estimate the elements per token that a layer saves for the backward pass."""
        chunk = min(CHUNK, seq_len)
        states = 2 * self.layer_state_size(seq_len) // chunk
        within = 2 * (self.n_heads + 1) * chunk
        # Intermediates between the projection and the output.
        return self.dim + 14 * self.inner_width + 11 * self.d_state + states + within

    def layer_flops(self, seq_len: int) -> int:
        """Return the forward FLOPs per token of one layer."""
        products = (
            self.dim * (self.projected_width + self.inner_width) + self.d_conv * self.mixed_width
        )
        # A matrix-vector product with the state, its decay, the outer product added; per channel
        # the step and the skip.
        recurrence = (2 + 1 + 2) * self.layer_state_size(seq_len) + 3 * self.inner_width
        return 2 * products + recurrence

    @classmethod
    def dim_divisor(cls, settings: Mapping[str, object]) -> int:
        """Return the divisor of `dim` that makes the inner width a multiple of `head_dim`."""
        head_dim = settings.get("head_dim", 64)
        expand = settings.get("expand", 2)
        # Validation rejects non-integers later, with a better message.
        if not isinstance(head_dim, int) or not isinstance(expand, int) or head_dim < 1:
            return 1
        return head_dim // gcd(head_dim, expand)
