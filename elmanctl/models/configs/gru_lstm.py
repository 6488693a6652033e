"""GRU and LSTM: a recurrent cell between two projections, in one of two conventions."""

from dataclasses import dataclass
from typing import ClassVar, Literal

from elmanctl.errors import InvalidConfiguration
from elmanctl.models.configs.sizes import WidthConfig


@dataclass(frozen=True, slots=True, kw_only=True)
class _CellConfig(WidthConfig):
    """Settings of both: a cell of width `dim * expansion` with blocks of gates."""

    norm: ClassVar[Literal["rms", "layer"]] = "layer"
    unit_of: ClassVar[str] = "cell"
    n_blocks: ClassVar[int]
    states: ClassVar[int]
    saved: ClassVar[int]
    """Elements per unit and position that the cell saves for the backward pass."""
    convention: ClassVar[str]
    """Name of the setting that selects the convention of PyTorch and cuDNN over the study's."""

    @property
    def is_standard(self) -> bool:
        """Whether the cell is that of PyTorch and cuDNN, with two sets of biases."""
        standard: bool = getattr(self, self.convention)
        return standard

    def check_backend(self, backend: str) -> None:
        """Raise InvalidConfiguration for one set of biases on cuDNN, which has two."""
        if backend == "cudnn" and not self.is_standard:
            raise InvalidConfiguration(
                f"{self.level}: cuDNN does not support a cell with `{self.convention}` false",
                hint=f"use backend `torch`, or leave `{self.convention}` true",
            )

    @classmethod
    def backend_limits(cls, backend: str) -> str:
        """Describe the cells that a backend supports; empty if it supports all."""
        return f"`{cls.convention}` true" if backend == "cudnn" else ""

    def layer_parameters(self) -> int:
        """Return the parameter count of one layer, excluding the norm before it."""
        biases = 2 if self.is_standard else 1
        cell = self.n_blocks * self.width * (2 * self.width + biases)
        return 2 * self.dim * self.width + cell

    def layer_state_size(self, seq_len: int) -> int:
        """Return the state size of one layer."""
        return self.states * self.width

    def layer_activations(self, seq_len: int) -> int:
        """Estimate the elements per token that a layer saves for the backward pass."""
        return self.dim + self.saved * self.width

    def layer_flops(self, seq_len: int) -> int:
        """Return the forward FLOPs per token of one layer."""
        products = 2 * self.dim * self.width + 2 * self.n_blocks * self.width**2
        # Both cells multiply three gates with vectors of this width.
        return 2 * (products + 3 * self.width)


@dataclass(frozen=True, slots=True, kw_only=True)
class GRUConfig(_CellConfig):
    """GRU; the reset gate applies after the recurrent product with `reset_after`, else before."""

    n_blocks: ClassVar[int] = 3
    states: ClassVar[int] = 1
    saved: ClassVar[int] = 9
    convention: ClassVar[str] = "reset_after"

    level: Literal["gru"] = "gru"
    reset_after: bool = True


@dataclass(frozen=True, slots=True, kw_only=True)
class LSTMConfig(_CellConfig):
    """LSTM; with `two_biases` the input and the recurrent product each have a bias."""

    n_blocks: ClassVar[int] = 4
    states: ClassVar[int] = 2
    # On a CPU oneDNN saves twice as much as the cell with one set of biases.
    saved: ClassVar[int] = 14
    convention: ClassVar[str] = "two_biases"

    level: Literal["lstm"] = "lstm"
    two_biases: bool = True
