"""E1, E0 and E42: recurrences of one vector, gated by a projection or by themselves."""

from dataclasses import dataclass
from typing import Annotated, Literal

from elmanctl.errors import InvalidConfiguration
from elmanctl.models.config import Between, ConvWidth, Expansion, FamilyConfig, whole

STUDY_RADIUS = 0.999
"""The spectral norm at which every E42 of the study was held."""


@dataclass(frozen=True, slots=True, kw_only=True)
class _ElmanConfig(FamilyConfig):
    """What the three share: one state vector of width `dim * expansion`."""

    expansion: Expansion = 1.0

    @property
    def width(self) -> int:
        """Units of the state."""
        return whole(self.dim * self.expansion)

    def check_together(self) -> None:
        """Raise InvalidConfiguration for a state without units."""
        if not self.width:
            raise InvalidConfiguration(
                f"{self.level}: `expansion` {self.expansion:g} leaves the state without a unit",
                hint=f"with dim {self.dim} it takes at least {1 / self.dim:.3g}",
            )

    def layer_state_size(self, seq_len: int) -> int:
        """Return how many numbers one layer carries on."""
        return self.width


@dataclass(frozen=True, slots=True, kw_only=True)
class _TanhElmanConfig(_ElmanConfig):
    """E1 and E0: an Elman network with tanh, apart from where its gate comes from."""

    use_conv: bool = False
    d_conv: ConvWidth = 4

    @property
    def matrix_weights(self) -> int:
        """Entries of the matrices of one layer."""
        raise NotImplementedError

    @property
    def biases(self) -> int:
        """Entries of the biases of one layer, that of the convolution left out."""
        raise NotImplementedError

    def layer_parameters(self) -> int:
        """Return the number of parameters of one layer, the norm before it left out."""
        conv = self.use_conv * (self.d_conv + 1) * self.width
        return self.matrix_weights + self.biases + conv

    def layer_flops(self, seq_len: int) -> int:
        """Return the forward FLOPs of one layer for one token, its matrices once each.

        The power iteration of the spectral norm is left out: it is per call, not per token.
        """
        return 2 * (self.matrix_weights + self.use_conv * self.d_conv * self.width)


@dataclass(frozen=True, slots=True, kw_only=True)
class E1Config(_TanhElmanConfig):
    """E1: an Elman network whose gate is a second half of the projection into it."""

    level: Literal["e1"] = "e1"
    spectral_norm: bool = True

    def layer_activations(self, seq_len: int) -> int:
        """Return about how many numbers of one token a layer keeps for its gradient."""
        # Both halves, the input of the network, the state, the gate, what leaves; a convolution
        # keeps its input and its output.
        return 2 * self.dim + (6 + 2 * self.use_conv) * self.width

    @property
    def matrix_weights(self) -> int:
        """Entries of the matrices: into state and gate, input, recurrence, and out."""
        return 2 * self.dim * self.width + 2 * self.width**2 + self.width * self.dim

    @property
    def biases(self) -> int:
        """The bias of the state."""
        return self.width


@dataclass(frozen=True, slots=True, kw_only=True)
class E0Config(_TanhElmanConfig):
    """E0: an Elman network whose gate sees what the network sees."""

    level: Literal["e0"] = "e0"
    spectral_norm: bool = False

    def layer_activations(self, seq_len: int) -> int:
        """Return about how many numbers of one token a layer keeps for its gradient."""
        # The input of network and gate, the state, the gate before and after, what leaves.
        return 2 * self.dim + (5 + 3 * self.use_conv) * self.width

    @property
    def matrix_weights(self) -> int:
        """Entries of the matrices: in, input, recurrence, gate, and out."""
        return self.dim * self.width + 3 * self.width**2 + self.width * self.dim

    @property
    def biases(self) -> int:
        """The biases of the state and of the gate."""
        return 2 * self.width


@dataclass(frozen=True, slots=True, kw_only=True)
class E42Config(_ElmanConfig):
    """E42: a linear recurrence with one matrix for input and state, gated by itself.

    The study's model ignores `spectral_radius`: it never reached the trainer, which held 0.999.
    """

    level: Literal["e42"] = "e42"
    spectral_radius: Annotated[float, Between(0.0, 1.0)] = STUDY_RADIUS

    @property
    def held_norm(self) -> float:
        """The spectral norm that the matrix is held at."""
        return STUDY_RADIUS if self.is_study else self.spectral_radius

    def check_together(self) -> None:
        """Raise InvalidConfiguration for a matrix that is zero, or a state without units."""
        # Without arguments super() fails in a dataclass with slots, which is made anew.
        _ElmanConfig.check_together(self)
        if not self.spectral_radius:
            raise InvalidConfiguration(f"{self.level}: `spectral_radius` must be more than 0")

    def layer_activations(self, seq_len: int) -> int:
        """Return about how many numbers of one token a layer keeps for its gradient."""
        # The input before and after silu, the state, its gate, what leaves.
        return 2 * self.dim + 5 * self.width

    def layer_parameters(self) -> int:
        """Return the number of parameters of one layer, the norm before it left out."""
        return 2 * self.dim * self.width + self.width**2 + self.width

    def layer_flops(self, seq_len: int) -> int:
        """Return the forward FLOPs of one layer for one token; the tied matrix works twice."""
        return 2 * (2 * self.dim * self.width + 2 * self.width**2)
