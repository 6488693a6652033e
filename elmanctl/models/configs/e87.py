"""E87: blocks of memory, of which a router lets every position write a few."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Annotated, Any, Literal

from elmanctl.errors import InvalidConfiguration
from elmanctl.kernels.matrix_recurrence.sizes import (
    check_size,
    check_values,
    flops_per_entry,
    saved_elements,
    supported_sizes,
)
from elmanctl.models.config import Between, ConvWidth, Expansion, FamilyConfig, in_words, whole
from elmanctl.models.configs.sizes import check_inner_width

Blocks = Annotated[int, Between(1, 1_024)]

LEVEL_STATES = {4: 32, 6: 32, 8: 24, 16: 16, 32: 16}
"""The state size that a level with this many blocks and no size stands for, as 87b8k2."""

UNSIZED = 0
"""The state size of a level that names another number of blocks and no size: it has none."""

READ_FLOPS = 2
"""Of the FLOPs for each number of a state, those of reading it; the others write it."""


@dataclass(frozen=True, slots=True, kw_only=True)
class E87Config(FamilyConfig):
    """E87: blocks of memory, of which a router lets every position write a few.

    The documented model overwrites the chosen blocks; the one of the study moves each of them a
    part of the way, by its share of the router's weights.
    """

    level: Literal["e87"] = "e87"
    n_blocks: Blocks = 4
    top_k: Blocks = 2
    n_state: int = 32
    expansion: Expansion = 1.0
    use_conv: bool = False
    d_conv: ConvWidth = 4

    @property
    def inner_width(self) -> int:
        """Outputs of the inner projection, which everything else is made of."""
        return whole(self.dim * self.expansion)

    @property
    def block_width(self) -> int:
        """Keys of all blocks together; as many values and decays."""
        return self.n_blocks * self.n_state

    def check_together(self) -> None:
        """Raise InvalidConfiguration for a state without code, too many choices or no width."""
        if self.n_state == UNSIZED and self.n_blocks not in LEVEL_STATES:
            near = min(LEVEL_STATES, key=lambda blocks: abs(blocks - self.n_blocks))
            top_k = min(self.top_k, self.n_blocks)
            spelled = f"87b{self.n_blocks}k{top_k}n{LEVEL_STATES[near]}"
            known = ", ".join(map(str, LEVEL_STATES))
            raise InvalidConfiguration(
                f"{self.level}: a level with {self.n_blocks} blocks needs a state size; "
                f"it goes without saying for {known} blocks alone",
                hint=f"write it into the level, as `{spelled}`, or set `n_state`",
            )
        check_size("auto", self.n_state)
        if self.top_k > self.n_blocks:
            raise InvalidConfiguration(
                f"{self.level}: `top_k` is {self.top_k}, but there are {self.n_blocks} blocks",
                hint=f"from 1 to {self.n_blocks} can be written at a position",
            )
        check_inner_width(self, self.inner_width, self.expansion)

    def check_backend(self, backend: str) -> None:
        """Raise InvalidConfiguration unless the backend computes states of this size."""
        check_size(backend, self.n_state)
        check_values(backend, self.n_state)

    @classmethod
    def backend_limits(cls, backend: str) -> str:
        """Return in words which sizes a backend computes."""
        return f"`n_state` {in_words(supported_sizes(backend))}"

    @classmethod
    def complete_level(cls, settings: Mapping[str, Any]) -> dict[str, Any]:
        """Return the state size of a level that names a number of blocks and no size."""
        if "n_blocks" not in settings or "n_state" in settings:
            return {}
        return {"n_state": LEVEL_STATES.get(settings["n_blocks"], UNSIZED)}

    def layer_parameters(self) -> int:
        """Return the number of parameters of one layer, the norm before it left out."""
        biases = self.block_width + self.use_conv * self.inner_width
        return self._weights() + biases

    def layer_state_size(self, seq_len: int) -> int:
        """Return how many numbers one layer carries on: keys by values of each block."""
        return self.block_width * self.n_state

    def layer_activations(self, seq_len: int) -> int:
        """Return about how many numbers of one token a layer keeps for its gradient."""
        width, state_size = self.block_width, self.layer_state_size(seq_len)
        inner = (2 + 3 * self.use_conv) * self.inner_width
        # Keys, values and scores of the decays; decays twice; three factors of what is read.
        around = (3 + 2 + 3) * width + 8 * self.n_blocks + 2 * self.n_state
        return 2 * self.dim + inner + saved_elements(width, width, state_size) + around

    def layer_flops(self, seq_len: int) -> int:
        """Return the forward FLOPs of one layer for one token.

        Projections are those of all blocks, as are the read-outs and their sum; of the writes
        those of the `top_k` blocks that are chosen count: the others stay as they are.
        """
        # To move a part of the way takes a difference, its share and a sum.
        writing = flops_per_entry() - READ_FLOPS + 3 * self.is_study
        written = writing * self.top_k * self.n_state**2
        read = READ_FLOPS * self.layer_state_size(seq_len) + 2 * self.block_width
        return 2 * self._weights() + written + read

    def _weights(self) -> int:
        """Entries of the matrices and taps of the convolution: a multiplication each, and token."""
        per_inner = self.dim + self.n_blocks + 3 * self.block_width + self.n_state
        taps = self.use_conv * self.d_conv * self.inner_width
        return per_inner * self.inner_width + taps + self.n_state * self.dim
