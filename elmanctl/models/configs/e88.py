"""E88: heads with a squashed matrix state, key by value, and a delta-rule write."""

from dataclasses import dataclass
from typing import Literal

from elmanctl.errors import InvalidConfiguration
from elmanctl.kernels.matrix_recurrence.sizes import check_size
from elmanctl.models.config import ConvWidth, Expansion, FamilyConfig, Heads, whole


@dataclass(frozen=True, slots=True, kw_only=True)
class E88Config(FamilyConfig):
    """E88: heads with a squashed matrix state, key by value, and a delta-rule write."""

    level: Literal["e88"] = "e88"
    n_heads: Heads
    n_state: int
    expansion: Expansion = 1.0
    use_gate: bool = True
    gate_activation: Literal["silu", "sigmoid"] = "silu"
    decay: Literal["mamba", "simple", "none", "constant"] = "mamba"
    linear_state: bool = False
    write_gate: bool = False
    use_conv: bool = False
    d_conv: ConvWidth = 4
    output_norm: bool = False
    value_residual: bool = False
    tie_kv: bool = False

    @property
    def key_width(self) -> int:
        """Keys of all heads together."""
        return self.n_heads * self.n_state

    @property
    def value_width(self) -> int:
        """Values of all heads together."""
        return whole(self.key_width * self.expansion)

    @property
    def head_values(self) -> int:
        """Values of one head."""
        return self.value_width // self.n_heads

    @property
    def mixed_width(self) -> int:
        """Outputs of the joint projection to queries, keys and, unless tied, values."""
        return 2 * self.key_width + (0 if self.tie_kv else self.value_width)

    def check_together(self) -> None:
        """Raise InvalidConfiguration for a state size without code or values that do not fit."""
        check_size("auto", self.n_state)
        if self.value_width % self.n_heads or not self.value_width:
            below = int(self.n_state * self.expansion)
            around = [str(values / self.n_state) for values in (below, below + 1) if values]
            raise InvalidConfiguration(
                f"{self.level}: {self.value_width} values (`expansion` {self.expansion:g}) cannot "
                f"be shared out evenly to {self.n_heads} heads",
                hint=f"the nearest expansions that can are {' and '.join(around)}",
            )
        if self.tie_kv and self.value_width != self.key_width:
            raise InvalidConfiguration(
                f"{self.level}: `tie_kv` takes the keys for values and needs `expansion` 1, "
                f"not {self.expansion:g}"
            )

    def check_backend(self, backend: str) -> None:
        """Raise InvalidConfiguration unless the backend computes states of this size."""
        check_size(backend, self.n_state)

    def layer_parameters(self) -> int:
        """Return the number of parameters of one layer, the norm before it left out."""
        from_decay = {
            "mamba": self.dim * self.n_heads + 2 * self.n_heads,
            "simple": self.dim * self.n_heads,
            "constant": self.n_heads,
            "none": 0,
        }
        return (
            self.dim * self.mixed_width
            + self.value_width * self.dim
            + self.use_gate * self.dim * self.value_width
            + from_decay[self.decay]
            + self.write_gate * self.dim * self.n_heads
            + self.use_conv * self.d_conv * self.mixed_width
            + self.output_norm * self.head_values
            + self.value_residual * self.value_width
        )

    def layer_state_size(self, seq_len: int) -> int:
        """Return how many numbers one layer carries on: keys by values of each head."""
        return self.value_width * self.n_state

    def layer_flops(self, seq_len: int) -> int:
        """Return the forward FLOPs of one layer for one token."""
        scores = {"mamba": 1, "simple": 1, "constant": 0, "none": 0}[self.decay] + self.write_gate
        products = (
            self.dim * (self.mixed_width + self.value_width * (1 + self.use_gate))
            + self.dim * self.n_heads * scores
            + self.use_conv * self.d_conv * self.mixed_width
        )
        # Two products with the state, its decay, the outer product added to it, and the tanh.
        per_entry = 2 + 2 + 1 + 2 + (not self.linear_state)
        return 2 * products + per_entry * self.layer_state_size(seq_len)
