"""MinGRU and MinLSTM: gates and candidates that do not depend on the state."""

from dataclasses import dataclass
from typing import ClassVar, Literal

from elmanctl.errors import InvalidConfiguration
from elmanctl.models.config import ConvWidth, Expansion, FamilyConfig, floor_exact


@dataclass(frozen=True, slots=True, kw_only=True)
class MinRNNConfig(FamilyConfig):
    """Settings of MinGRU and MinLSTM.

    The study's models accepted but ignored `use_conv` and `d_conv`.
    """

    norm: ClassVar[Literal["rms", "layer"]] = "layer"
    scores: ClassVar[int]
    """Projected inputs per channel: its candidate and its gates."""

    expansion: Expansion = 1.0
    use_conv: bool = False
    d_conv: ConvWidth = 4

    @property
    def n_channels(self) -> int:
        """Channels of the state of one layer."""
        return floor_exact(self.dim * self.expansion)

    @property
    def has_output(self) -> bool:
        """Whether the state is projected back to `dim`; otherwise it is the output."""
        return self.expansion != 1.0

    @property
    def has_convolution(self) -> bool:
        """Whether a convolution precedes the projection."""
        return self.use_conv and not self.is_study

    def check_together(self) -> None:
        """Raise InvalidConfiguration for an expansion without a channel."""
        if not self.n_channels:
            raise InvalidConfiguration(
                f"{self.level}: `expansion` {self.expansion:g} of dim {self.dim} gives no channels",
                hint=f"`expansion` must be at least {1 / self.dim:.6g}",
            )

    def layer_parameters(self) -> int:
        """Return the parameter count of one layer, excluding the norm before it."""
        products = self.scores + self.has_output
        taps = self.has_convolution * self.d_conv * self.dim
        return products * self.dim * self.n_channels + taps

    def layer_state_size(self, seq_len: int) -> int:
        """Return the state size of one layer: one element per channel."""
        return self.n_channels

    def layer_activations(self, seq_len: int) -> int:
        """Estimate the elements per token that a layer saves for the backward pass."""
        # Both weights, the candidate before and after phi, the state; MinLSTM: the scores twice.
        channels = 5 if self.scores == 2 else 10
        normed = self.dim * (1 + self.has_convolution)
        return normed + channels * self.n_channels + self.n_channels // 4

    def layer_flops(self, seq_len: int) -> int:
        """Return the forward FLOPs per token of one layer."""
        # State and candidate are multiplied by their weights and added.
        return 2 * self.layer_parameters() + 3 * self.n_channels


@dataclass(frozen=True, slots=True, kw_only=True)
class MinGRUConfig(MinRNNConfig):
    """MinGRU: one gate interpolates between the old state and a candidate."""

    scores: ClassVar[int] = 2

    level: Literal["mingru"] = "mingru"


@dataclass(frozen=True, slots=True, kw_only=True)
class MinLSTMConfig(MinRNNConfig):
    """MinLSTM: two normalized gates weight the old state and a candidate."""

    scores: ClassVar[int] = 3

    level: Literal["minlstm"] = "minlstm"
