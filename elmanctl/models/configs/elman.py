"""E1, E0 and E42: vector recurrences, gated by a projection or by themselves."""

from dataclasses import dataclass
from typing import Annotated, ClassVar, Literal

from elmanctl.errors import InvalidConfiguration
from elmanctl.models.config import Between, ConvWidth
from elmanctl.models.configs.sizes import WidthConfig

STUDY_RADIUS = 0.999
"""Spectral norm of every E42 in the study."""


@dataclass(frozen=True, slots=True, kw_only=True)
class _ElmanConfig(WidthConfig):
    """Settings of all three: one state vector of width `dim * expansion`."""

    unit_of: ClassVar[str] = "state"

    def layer_state_size(self, seq_len: int) -> int:
        """Return the state size of one layer."""
        return self.width


@dataclass(frozen=True, slots=True, kw_only=True)
class _TanhElmanConfig(_ElmanConfig):
    """Settings of E1 and E0: an Elman network with tanh."""

    use_conv: bool = False
    d_conv: ConvWidth = 4

    projections: ClassVar[int]
    """Matrices between `dim` and the state."""
    squares: ClassVar[int]
    """Matrices between units of the state."""
    n_biases: ClassVar[int]
    """Biases per unit, excluding the convolution's."""

    @property
    def matrix_weights(self) -> int:
        """Matrix weights of one layer."""
        return self.projections * self.dim * self.width + self.squares * self.width**2

    def layer_parameters(self) -> int:
        """Return the parameter count of one layer, excluding the norm before it."""
        conv = self.use_conv * (self.d_conv + 1) * self.width
        return self.matrix_weights + self.n_biases * self.width + conv

    def layer_flops(self, seq_len: int) -> int:
        """Return the forward FLOPs per token of one layer.

        The power iteration of the spectral norm is not counted: it runs per call, not per token.
        """
        return 2 * (self.matrix_weights + self.use_conv * self.d_conv * self.width)


@dataclass(frozen=True, slots=True, kw_only=True)
class E1Config(_TanhElmanConfig):
    """E1: an Elman network whose gate is the second half of the input projection."""

    # Inputs of state and gate, and the output; input and recurrence; that of the state.
    projections: ClassVar[int] = 3
    squares: ClassVar[int] = 2
    n_biases: ClassVar[int] = 1

    level: Literal["e1"] = "e1"
    spectral_norm: bool = True

    def layer_activations(self, seq_len: int) -> int:
        """Estimate the elements per token that a layer saves for the backward pass."""
        # Both halves, the input of the network, the state, the gate, the output; a convolution
        # saves its input and its output.
        return 2 * self.dim + (6 + 2 * self.use_conv) * self.width


@dataclass(frozen=True, slots=True, kw_only=True)
class E0Config(_TanhElmanConfig):
    """E0: an Elman network whose gate is computed from the network's input."""

    # Input and output; input, recurrence and gate; those of state and gate.
    projections: ClassVar[int] = 2
    squares: ClassVar[int] = 3
    n_biases: ClassVar[int] = 2

    level: Literal["e0"] = "e0"
    spectral_norm: bool = False

    def layer_activations(self, seq_len: int) -> int:
        """Estimate the elements per token that a layer saves for the backward pass."""
        # The input of network and gate, the state, the gate before and after silu, the output.
        return 2 * self.dim + (5 + 3 * self.use_conv) * self.width


@dataclass(frozen=True, slots=True, kw_only=True)
class E42Config(_ElmanConfig):
    """E42: a self-gated linear recurrence with one tied matrix for input and state.

    The study's model ignores `spectral_radius`, which never reached the trainer; it used 0.999.
    """

    level: Literal["e42"] = "e42"
    spectral_radius: Annotated[float, Between(0.0, 1.0)] = STUDY_RADIUS

    @property
    def matrix_norm(self) -> float:
        """Spectral norm of the matrix."""
        return STUDY_RADIUS if self.is_study else self.spectral_radius

    def check_together(self) -> None:
        """Raise InvalidConfiguration for a zero matrix or a state without units."""
        # super() without arguments fails here: dataclass(slots=True) creates a new class.
        WidthConfig.check_together(self)
        if not self.spectral_radius:
            raise InvalidConfiguration(f"{self.level}: `spectral_radius` must be more than 0")

    def layer_activations(self, seq_len: int) -> int:
        """Estimate the elements per token that a layer saves for the backward pass."""
        # The input before and after silu, the state, its gate, the output.
        return 2 * self.dim + 5 * self.width

    def layer_parameters(self) -> int:
        """Return the parameter count of one layer, excluding the norm before it."""
        return 2 * self.dim * self.width + self.width**2 + self.width

    def layer_flops(self, seq_len: int) -> int:
        """Return the forward FLOPs per token of one layer, with the tied matrix used twice."""
        return 2 * (2 * self.dim * self.width + 2 * self.width**2)
