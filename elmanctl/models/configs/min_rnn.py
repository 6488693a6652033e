"""MinGRU and MinLSTM: gates and candidates that do not see the state."""

from dataclasses import dataclass
from typing import ClassVar, Literal

from elmanctl.errors import InvalidConfiguration
from elmanctl.models.config import ConvWidth, Expansion, FamilyConfig, whole


@dataclass(frozen=True, slots=True, kw_only=True)
class MinRNNConfig(FamilyConfig):
    """What MinGRU and MinLSTM have in common.

    The study's models accepted `use_conv` and `d_conv` and had no convolution all the same.
    """

    norm: ClassVar[Literal["rms", "layer"]] = "layer"
    scores: ClassVar[int]
    """How many numbers a channel takes from the input: its candidate and its gates."""

    expansion: Expansion = 1.0
    use_conv: bool = False
    d_conv: ConvWidth = 4

    @property
    def n_channels(self) -> int:
        """Numbers in the state of one layer."""
        return whole(self.dim * self.expansion)

    @property
    def has_output(self) -> bool:
        """Whether the state is projected back; if not, it is the output itself."""
        return self.expansion != 1.0

    @property
    def has_convolution(self) -> bool:
        """Whether a convolution runs before the projection."""
        return self.use_conv and not self.is_study

    def check_together(self) -> None:
        """Raise InvalidConfiguration for an expansion that leaves no state."""
        if not self.n_channels:
            raise InvalidConfiguration(
                f"{self.level}: `expansion` {self.expansion:g} of dim {self.dim} leaves no channel",
                hint=f"the smallest expansion that can be is {1 / self.dim:.6g}",
            )

    def layer_parameters(self) -> int:
        """Return the number of parameters of one layer, the norm before it left out."""
        products = self.scores + self.has_output
        return products * self.dim * self.n_channels + self._taps

    def layer_state_size(self, seq_len: int) -> int:
        """Return how many numbers one layer carries on: one for each channel."""
        return self.n_channels

    def layer_activations(self, seq_len: int) -> int:
        """Return about how many numbers of one token a layer keeps for its gradient."""
        # Both shares, the candidate before and after, the state; MinLSTM: the scores twice.
        channels = 5 if self.scores == 2 else 10
        normed = self.dim * (1 + self.has_convolution)
        return normed + channels * self.n_channels + self.n_channels // 4

    def layer_flops(self, seq_len: int) -> int:
        """Return the forward FLOPs of one layer for one token."""
        # The state and the candidate are each multiplied by their gate, and added.
        return 2 * self.layer_parameters() + 3 * self.n_channels

    @property
    def _taps(self) -> int:
        return self.has_convolution * self.d_conv * self.dim


@dataclass(frozen=True, slots=True, kw_only=True)
class MinGRUConfig(MinRNNConfig):
    """MinGRU: one gate shares the state out between the past and a candidate."""

    scores: ClassVar[int] = 2

    level: Literal["mingru"] = "mingru"


@dataclass(frozen=True, slots=True, kw_only=True)
class MinLSTMConfig(MinRNNConfig):
    """MinLSTM: two gates, over their sum, share the state out."""

    scores: ClassVar[int] = 3

    level: Literal["minlstm"] = "minlstm"
