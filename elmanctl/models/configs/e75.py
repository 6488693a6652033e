"""E75: heads with a tanh matrix state, one decay per value, and a self-gated read-out."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

from elmanctl.errors import InvalidConfiguration
from elmanctl.kernels.matrix_recurrence import sizes
from elmanctl.models import config
from elmanctl.models.configs.sizes import check_inner_width

SIZES = (8, 16, 24, 32, 40, 48, 56, 64)
"""State sizes that E75 is defined for, fewer than the matrix recurrence supports."""

LEVEL_STATE = 32
"""State size of a level with heads but no size, such as E75h15."""


@dataclass(frozen=True, slots=True, kw_only=True)
class E75Config(config.FamilyConfig):
    """E75: heads with a tanh matrix state, one decay per value, and a self-gated read-out.

    `use_conv` convolves the output of the inner projection.  `post_conv` convolves keys, values and
    queries instead, which are then projected directly from the model's width.
    """

    level: Literal["e75"] = "e75"
    n_heads: config.Heads
    n_state: int
    expansion: config.Expansion = 1.0
    use_conv: bool = False
    d_conv: config.ConvWidth = 4
    post_conv: bool = False

    @property
    def head_width(self) -> int:
        """Total keys of all heads; as many values and queries."""
        return self.n_heads * self.n_state

    @property
    def inner_width(self) -> int:
        """Input width of the heads: that of the inner projection, or `dim` without one."""
        return self.dim if self.post_conv else config.floor_exact(self.dim * self.expansion)

    @property
    def conv_channels(self) -> int:
        """Channels of the short convolution, 0 without one."""
        if self.post_conv:
            return 3 * self.head_width
        return self.inner_width if self.use_conv else 0

    def check_together(self) -> None:
        """Raise InvalidConfiguration for an unsupported state size or an empty inner width.

        Also for both convolutions at once, and for an expansion of the inner projection that
        `post_conv` omits.
        """
        if self.n_state not in SIZES:
            around = [size for size in SIZES if size < self.n_state][-1:]
            around += [size for size in SIZES if size > self.n_state][:1]
            raise InvalidConfiguration(
                f"{self.level}: `n_state` is {self.n_state}, but must be one of "
                f"{', '.join(str(size) for size in SIZES)}",
                hint=f"nearest: {' and '.join(str(size) for size in around)}",
            )
        sizes.check_size("auto", self.n_state)
        if self.post_conv and self.use_conv:
            raise InvalidConfiguration(
                f"{self.level}: `use_conv` and `post_conv` exclude each other",
                hint="post_conv convolves keys, values and queries, use_conv their input",
            )
        # The study's post-conv runs had an expansion of 2, which had no effect.
        if self.post_conv and self.expansion != 1 and not self.is_study:
            raise InvalidConfiguration(
                f"{self.level}: `expansion` is {self.expansion:g}, but with `post_conv` there is "
                "no inner projection to expand",
                hint="leave `expansion` at 1",
            )
        check_inner_width(self, self.inner_width, self.expansion)

    def check_backend(self, backend: str) -> None:
        """Raise InvalidConfiguration unless the backend supports this state size."""
        sizes.check_size(backend, self.n_state)
        sizes.check_values(backend, self.n_state)

    @classmethod
    def backend_limits(cls, backend: str) -> str:
        """Describe the sizes that a backend supports."""
        supported = set(SIZES).intersection(sizes.supported_sizes(backend))
        return f"`n_state` {config.format_sizes(supported)}"

    @classmethod
    def complete_level(cls, settings: Mapping[str, Any]) -> dict[str, Any]:
        """Return the default state size of a level with heads but no size."""
        if "n_heads" in settings and "n_state" not in settings:
            return {"n_state": LEVEL_STATE}
        return {}

    def layer_parameters(self) -> int:
        """Return the parameter count of one layer, excluding the norm before it."""
        biases = self.head_width + self.conv_channels
        return self._weights() + biases

    def layer_state_size(self, seq_len: int) -> int:
        """Return the state size of one layer: keys by values of each head."""
        return self.head_width * self.n_state

    def layer_activations(self, seq_len: int) -> int:
        """Estimate the elements per token that a layer saves for the backward pass."""
        width, state_size = self.head_width, self.layer_state_size(seq_len)
        inner = 0 if self.post_conv else (2 + self.use_conv) * self.inner_width
        # Keys, values, queries and pre-activations of decays; with `post_conv` also around it.
        mixed = (4 + 6 * self.post_conv) * width
        # Decays twice, and the read-out, its gate and their product.
        others = 5 * width + sizes.saved_elements(width, width, state_size)
        return 2 * self.dim + inner + mixed + others

    def layer_flops(self, seq_len: int) -> int:
        """Return the forward FLOPs per token of one layer."""
        return 2 * self._weights() + sizes.flops_per_entry() * self.layer_state_size(seq_len)

    def _weights(self) -> int:
        """Weights of matrices and convolution: one multiplication each per token."""
        inner = 0 if self.post_conv else self.dim * self.inner_width
        cell = 4 * self.head_width * self.inner_width
        return inner + cell + self.d_conv * self.conv_channels + self.head_width * self.dim
