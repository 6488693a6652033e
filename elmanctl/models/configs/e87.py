"""E87: blocks of memory, of which a router lets every position write a few."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Annotated, Any, Literal

from elmanctl.errors import InvalidConfiguration
from elmanctl.kernels.matrix_recurrence.sizes import (
    check_size,
    flops_per_entry,
    numbers_kept,
    sizes_of,
)
from elmanctl.models.config import Between, ConvWidth, Expansion, FamilyConfig, in_words, whole
from elmanctl.models.configs.sizes import check_inner_width

Blocks = Annotated[int, Between(1, 1_024)]

LEVEL_STATES = {4: 32, 6: 32, 8: 24, 16: 16, 32: 16}
"""The state size that a level with this many blocks and no size stands for, as 87b8k2."""


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

    @classmethod
    def backend_limits(cls, backend: str) -> str:
        """Return in words which sizes a backend computes."""
        return f"`n_state` {in_words(sizes_of(backend))}"

    @classmethod
    def complete_level(cls, settings: Mapping[str, Any]) -> dict[str, Any]:
        """Return the state size of a level that names a known number of blocks and no size."""
        blocks = settings.get("n_blocks")
        if blocks in LEVEL_STATES and "n_state" not in settings:
            return {"n_state": LEVEL_STATES[blocks]}
        return {}

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
        return 2 * self.dim + inner + numbers_kept(width, width, state_size) + around

    def layer_flops(self, seq_len: int) -> int:
        """Return the forward FLOPs of one layer for one token.

        All blocks count, since all are computed and those not chosen then kept as they were.
        """
        # To move a part of the way takes a difference, its share and a sum.
        per_entry = flops_per_entry() + 3 * self.is_study
        weighed = 2 * self.block_width
        return 2 * self._weights() + per_entry * self.layer_state_size(seq_len) + weighed

    def _weights(self) -> int:
        """Entries of the matrices and taps of the convolution: a multiplication each, and token."""
        per_inner = self.dim + self.n_blocks + 3 * self.block_width + self.n_state
        taps = self.use_conv * self.d_conv * self.inner_width
        return per_inner * self.inner_width + taps + self.n_state * self.dim
