"""E75: heads with a squashed matrix state, a decay for each value, a self-gated read-out."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

from elmanctl.errors import InvalidConfiguration
from elmanctl.kernels.matrix_recurrence.sizes import (
    check_size,
    check_values,
    flops_per_entry,
    saved_elements,
    supported_sizes,
)
from elmanctl.models.config import ConvWidth, Expansion, FamilyConfig, Heads, in_words, whole
from elmanctl.models.configs.sizes import check_inner_width

SIZES = (8, 16, 24, 32, 40, 48, 56, 64)
"""E75 is defined for these states alone; the matrix recurrence itself computes more of them."""

LEVEL_STATE = 32
"""The state size that a level with heads and no size stands for, as E75h15."""


@dataclass(frozen=True, slots=True, kw_only=True)
class E75Config(FamilyConfig):
    """E75: heads with a squashed matrix state, a decay for each value, a self-gated read-out.

    `use_conv` convolves what every head reads, `post_conv` the keys, values and queries, which
    are then taken from the model's width without the inner projection.
    """

    level: Literal["e75"] = "e75"
    n_heads: Heads
    n_state: int
    expansion: Expansion = 1.0
    use_conv: bool = False
    d_conv: ConvWidth = 4
    post_conv: bool = False

    @property
    def head_width(self) -> int:
        """Keys of all heads together; as many values and queries."""
        return self.n_heads * self.n_state

    @property
    def inner_width(self) -> int:
        """What the heads read: outputs of the inner projection, or the model's width without it."""
        return self.dim if self.post_conv else whole(self.dim * self.expansion)

    @property
    def conv_channels(self) -> int:
        """Channels of the short convolution, none without it."""
        if self.post_conv:
            return 3 * self.head_width
        return self.inner_width if self.use_conv else 0

    def check_together(self) -> None:
        """Raise InvalidConfiguration for a state size or an inner width that E75 has not.

        Also for both convolutions at once, and for an expansion of what `post_conv` leaves out.
        """
        if self.n_state not in SIZES:
            around = [size for size in SIZES if size < self.n_state][-1:]
            around += [size for size in SIZES if size > self.n_state][:1]
            raise InvalidConfiguration(
                f"{self.level}: `n_state` is {self.n_state}, but must be one of "
                f"{', '.join(str(size) for size in SIZES)}",
                hint=f"nearest: {' and '.join(str(size) for size in around)}",
            )
        check_size("auto", self.n_state)
        if self.post_conv and self.use_conv:
            raise InvalidConfiguration(
                f"{self.level}: `use_conv` and `post_conv` exclude each other",
                hint="post_conv convolves keys, values and queries, use_conv what they are made of",
            )
        # The study gave its post-conv runs an expansion of 2, which did nothing.
        if self.post_conv and self.expansion != 1 and not self.is_study:
            raise InvalidConfiguration(
                f"{self.level}: `expansion` is {self.expansion:g}, but `post_conv` has no inner "
                "projection that could be wider than the model",
                hint="leave `expansion` at 1",
            )
        check_inner_width(self, self.inner_width, self.expansion)

    def check_backend(self, backend: str) -> None:
        """Raise InvalidConfiguration unless the backend computes states of this size."""
        check_size(backend, self.n_state)
        check_values(backend, self.n_state)

    @classmethod
    def backend_limits(cls, backend: str) -> str:
        """Return in words which sizes a backend computes."""
        return f"`n_state` {in_words(set(SIZES).intersection(supported_sizes(backend)))}"

    @classmethod
    def complete_level(cls, settings: Mapping[str, Any]) -> dict[str, Any]:
        """Return the state size of a level that names heads and no size."""
        if "n_heads" in settings and "n_state" not in settings:
            return {"n_state": LEVEL_STATE}
        return {}

    def layer_parameters(self) -> int:
        """Return the number of parameters of one layer, the norm before it left out."""
        biases = self.head_width + self.conv_channels
        return self._weights() + biases

    def layer_state_size(self, seq_len: int) -> int:
        """Return how many numbers one layer carries on: keys by values of each head."""
        return self.head_width * self.n_state

    def layer_activations(self, seq_len: int) -> int:
        """Return about how many numbers of one token a layer keeps for its gradient."""
        width, state_size = self.head_width, self.layer_state_size(seq_len)
        inner = 0 if self.post_conv else (2 + self.use_conv) * self.inner_width
        # Keys, values, queries and scores of the decays; with `post_conv` around it too.
        mixed = (4 + 6 * self.post_conv) * width
        # Decays twice, and the read-out, its gate and their product.
        around = 5 * width
        return 2 * self.dim + inner + mixed + saved_elements(width, width, state_size) + around

    def layer_flops(self, seq_len: int) -> int:
        """Return the forward FLOPs of one layer for one token."""
        return 2 * self._weights() + flops_per_entry() * self.layer_state_size(seq_len)

    def _weights(self) -> int:
        """Entries of the matrices and taps of the convolution: a multiplication each, and token."""
        inner = 0 if self.post_conv else self.dim * self.inner_width
        cell = 4 * self.head_width * self.inner_width
        return inner + cell + self.d_conv * self.conv_channels + self.head_width * self.dim
