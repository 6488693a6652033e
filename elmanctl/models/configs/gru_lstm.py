"""GRU and LSTM: a recurrent cell between two projections, in either of two conventions."""

from dataclasses import dataclass
from typing import ClassVar, Literal

from elmanctl.errors import InvalidConfiguration
from elmanctl.models.config import Expansion, FamilyConfig, whole


@dataclass(frozen=True, slots=True, kw_only=True)
class _CellConfig(FamilyConfig):
    """What GRU and LSTM share: a cell of width `dim * expansion` with blocks of gates."""

    norm: ClassVar[Literal["rms", "layer"]] = "layer"
    n_blocks: ClassVar[int]
    states: ClassVar[int]
    kept: ClassVar[int]
    """How many numbers of a unit the cell keeps for its gradient at one position."""
    convention: ClassVar[str]
    """The setting that chooses between the convention of PyTorch and cuDNN and the study's own."""

    expansion: Expansion = 1.0

    @property
    def width(self) -> int:
        """Units of the cell."""
        return whole(self.dim * self.expansion)

    @property
    def is_standard(self) -> bool:
        """Whether the cell is that of PyTorch and cuDNN, with two sets of biases."""
        standard: bool = getattr(self, self.convention)
        return standard

    def check_together(self) -> None:
        """Raise InvalidConfiguration for a cell without units."""
        if not self.width:
            raise InvalidConfiguration(
                f"{self.level}: `expansion` {self.expansion:g} leaves the cell without a unit",
                hint=f"with dim {self.dim} it takes at least {1 / self.dim:.3g}",
            )

    def check_backend(self, backend: str) -> None:
        """Raise InvalidConfiguration for a cell with one set of biases on cuDNN, which has two."""
        if backend == "cudnn" and not self.is_standard:
            raise InvalidConfiguration(
                f"{self.level}: cuDNN does not compute a cell with `{self.convention}` false",
                hint=f"take backend `torch`, or leave `{self.convention}` true",
            )

    @classmethod
    def backend_limits(cls, backend: str) -> str:
        """Return in words which cells a backend computes, empty where it computes all."""
        return f"`{cls.convention}` true" if backend == "cudnn" else ""

    def layer_parameters(self) -> int:
        """Return the number of parameters of one layer, the norm before it left out."""
        biases = 2 if self.is_standard else 1
        cell = self.n_blocks * self.width * (2 * self.width + biases)
        return 2 * self.dim * self.width + cell

    def layer_state_size(self, seq_len: int) -> int:
        """Return how many numbers one layer carries on."""
        return self.states * self.width

    def layer_activations(self, seq_len: int) -> int:
        """Return about how many numbers of one token a layer keeps for its gradient."""
        return self.dim + self.kept * self.width

    def layer_flops(self, seq_len: int) -> int:
        """Return the forward FLOPs of one layer for one token."""
        products = 2 * self.dim * self.width + 2 * self.n_blocks * self.width**2
        # In both cells three gates are multiplied with vectors of the width.
        return 2 * (products + 3 * self.width)


@dataclass(frozen=True, slots=True, kw_only=True)
class GRUConfig(_CellConfig):
    """GRU: `reset_after` resets the recurrent product, otherwise the state before the product."""

    n_blocks: ClassVar[int] = 3
    states: ClassVar[int] = 1
    kept: ClassVar[int] = 9
    convention: ClassVar[str] = "reset_after"

    level: Literal["gru"] = "gru"
    reset_after: bool = True


@dataclass(frozen=True, slots=True, kw_only=True)
class LSTMConfig(_CellConfig):
    """LSTM: with `two_biases`, one set for the input and one for the recurrent product."""

    n_blocks: ClassVar[int] = 4
    states: ClassVar[int] = 2
    # On a CPU oneDNN keeps twice what the cell with one set of biases does.
    kept: ClassVar[int] = 14
    convention: ClassVar[str] = "two_biases"

    level: Literal["lstm"] = "lstm"
    two_biases: bool = True
