"""E87: blocks of memory with a router that lets each position write a few."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Annotated, Any, Literal

from elmanctl.errors import InvalidConfiguration
from elmanctl.kernels.matrix_recurrence import sizes
from elmanctl.models import config
from elmanctl.models.configs.sizes import check_inner_width

Blocks = Annotated[int, config.Between(1, 1_024)]

LEVEL_STATES = {4: 32, 6: 32, 8: 24, 16: 16, 32: 16}
"""State size by number of blocks, for a level without a size, such as 87b8k2."""

UNSIZED = 0
"""Placeholder for the state size of a level with another number of blocks and no size."""

READ_FLOPS = 2
"""FLOPs per state element for reading; the rest of `flops_per_entry` is for writing."""


@dataclass(frozen=True, slots=True, kw_only=True)
class E87Config(config.FamilyConfig):
    """E87: blocks of memory with a router that lets each position write a few.

    The documented model overwrites the selected blocks; that of the study interpolates each of
    them by its normalized router weight.
    """

    level: Literal["e87"] = "e87"
    n_blocks: Blocks = 4
    top_k: Blocks = 2
    n_state: int = 32
    expansion: config.Expansion = 1.0
    use_conv: bool = False
    d_conv: config.ConvWidth = 4

    @property
    def inner_width(self) -> int:
        """Output width of the inner projection, the input of everything else."""
        return config.floor_exact(self.dim * self.expansion)

    @property
    def block_width(self) -> int:
        """Total keys of all blocks; as many values and decays."""
        return self.n_blocks * self.n_state

    def check_together(self) -> None:
        """Raise InvalidConfiguration for an unsupported state, too large a `top_k` or no width."""
        if self.n_state == UNSIZED and self.n_blocks not in LEVEL_STATES:
            near = min(LEVEL_STATES, key=lambda blocks: abs(blocks - self.n_blocks))
            top_k = min(self.top_k, self.n_blocks)
            spelled = f"87b{self.n_blocks}k{top_k}n{LEVEL_STATES[near]}"
            known = ", ".join(map(str, LEVEL_STATES))
            raise InvalidConfiguration(
                f"{self.level}: a level with {self.n_blocks} blocks needs a state size; "
                f"only {known} blocks have a default",
                hint=f"add it to the level, as in `{spelled}`, or set `n_state`",
            )
        sizes.check_size("auto", self.n_state)
        if self.top_k > self.n_blocks:
            raise InvalidConfiguration(
                f"{self.level}: `top_k` is {self.top_k}, but there are {self.n_blocks} blocks",
                hint=f"`top_k` may be from 1 to {self.n_blocks}",
            )
        check_inner_width(self, self.inner_width, self.expansion)

    def check_backend(self, backend: str) -> None:
        """Raise InvalidConfiguration unless the backend supports this state size."""
        sizes.check_size(backend, self.n_state)
        sizes.check_values(backend, self.n_state)

    @classmethod
    def backend_limits(cls, backend: str) -> str:
        """Describe the sizes that a backend supports."""
        return f"`n_state` {config.format_sizes(sizes.supported_sizes(backend))}"

    @classmethod
    def complete_level(cls, settings: Mapping[str, Any]) -> dict[str, Any]:
        """Return the default state size of a level with a number of blocks but no size."""
        if "n_blocks" not in settings or "n_state" in settings:
            return {}
        return {"n_state": LEVEL_STATES.get(settings["n_blocks"], UNSIZED)}

    def layer_parameters(self) -> int:
        """Return the parameter count of one layer, excluding the norm before it."""
        biases = self.block_width + self.use_conv * self.inner_width
        return self._weights() + biases

    def layer_state_size(self, seq_len: int) -> int:
        """Return the state size of one layer: keys by values of each block."""
        return self.block_width * self.n_state

    def layer_activations(self, seq_len: int) -> int:
        """Estimate the elements per token that a layer saves for the backward pass."""
        width, state_size = self.block_width, self.layer_state_size(seq_len)
        inner = (2 + 3 * self.use_conv) * self.inner_width
        # Keys, values and pre-activations of decays; decays twice; three factors of the read-out.
        others = (3 + 2 + 3) * width + 8 * self.n_blocks + 2 * self.n_state
        return 2 * self.dim + inner + sizes.saved_elements(width, width, state_size) + others

    def layer_flops(self, seq_len: int) -> int:
        """Return the forward FLOPs per token of one layer.

        Projections, read-outs and their sum are counted for all blocks, writes only for the `top_k`
        selected blocks, since the others are unchanged.
        """
        # Interpolation takes a difference, a product and a sum.
        writing = sizes.flops_per_entry() - READ_FLOPS + 3 * self.is_study
        written = writing * self.top_k * self.n_state**2
        read = READ_FLOPS * self.layer_state_size(seq_len) + 2 * self.block_width
        return 2 * self._weights() + written + read

    def _weights(self) -> int:
        """Weights of matrices and convolution: one multiplication each per token."""
        per_inner = self.dim + self.n_blocks + 3 * self.block_width + self.n_state
        taps = self.use_conv * self.d_conv * self.inner_width
        return per_inner * self.inner_width + taps + self.n_state * self.dim
