"""E88: heads with a tanh matrix state, key by value, and a delta-rule write."""

from dataclasses import dataclass
from typing import Literal

from elmanctl.errors import InvalidConfiguration
from elmanctl.kernels.matrix_recurrence import sizes
from elmanctl.models.config import STUDY, ConvWidth, Expansion, Heads
from elmanctl.models.configs.sizes import HeadsConfig


@dataclass(frozen=True, slots=True, kw_only=True)
class E88Config(HeadsConfig):
    """E88: heads with a tanh matrix state, key by value, and a delta-rule write.

    `head_mix` combines the heads: concatenated and projected by one matrix (`concat`), projected by
    a matrix each and summed (`per_head`, the same function with wider initial weights), or summed
    first and projected by one small matrix, with equal weights (`sum`), softmax weights from
    learned scores (`weighted_sum`) or from scores of the input (`input_weighted`).

    The study's layer differs: it ignored `linear_state` and always applied the tanh; with
    `output_norm` its gate was always silu; it rounded the values of a fractional `expansion` down,
    which can be counted but not run; and an early revision had an unused norm weight
    (`unused_norm_weight`).
    """

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
    head_mix: Literal["concat", "weighted_sum", "per_head", "input_weighted", "sum"] = "concat"
    unused_norm_weight: bool = False

    @property
    def mixed_width(self) -> int:
        """Output width of the joint projection to queries, keys and, unless tied, values."""
        return 2 * self.key_width + (0 if self.tie_kv else self.value_width)

    @property
    def squashes(self) -> bool:
        """Whether a tanh follows every write, as in all kernels of the study."""
        return self.is_study or not self.linear_state

    @property
    def gate_function(self) -> Literal["silu", "sigmoid"]:
        """Activation of the gate; the study's fused norm and gate supported only silu."""
        return "silu" if self.is_study and self.output_norm else self.gate_activation

    def check_together(self) -> None:
        """Raise InvalidConfiguration for an unsupported state size or mismatched values."""
        sizes.check_size("auto", self.n_state)
        if not self.head_values or not self.is_study:
            self.check_values_are_even()
        if self.tie_kv and self.value_width != self.key_width:
            raise InvalidConfiguration(
                f"{self.level}: `tie_kv` uses the keys as values and needs `expansion` 1, "
                f"not {self.expansion:g}"
            )
        if self.unused_norm_weight and not self.is_study:
            raise InvalidConfiguration(
                f"{self.level}: `unused_norm_weight` adds unused parameters, which only variant "
                f"`{STUDY}` may have",
                hint="`output_norm` adds a norm that is used",
            )
        if self.unused_norm_weight and self.output_norm:
            raise InvalidConfiguration(
                f"{self.level}: with `output_norm` the norm weight is used, so "
                f"`unused_norm_weight` must be false"
            )

    def check_backend(self, backend: str) -> None:
        """Raise InvalidConfiguration unless the backend supports this state size.

        No backend supports heads with unequal numbers of values, which the study could count.
        """
        self.check_values_are_even()
        HeadsConfig.check_backend(self, backend)
        if backend == "gluon" and not self.squashes:
            raise InvalidConfiguration(
                f"{self.level}: backend `gluon` does not support `linear_state`",
                hint="use backend `triton`",
            )

    def layer_parameters(self) -> int:
        """Return the parameter count of one layer, excluding the norm before it."""
        from_decay = {
            "mamba": self.dim * self.n_heads + 2 * self.n_heads,
            "simple": self.dim * self.n_heads,
            "constant": self.n_heads,
            "none": 0,
        }
        return (
            self.dim * self.mixed_width
            + self._output_parameters
            + self.use_gate * self.dim * self.value_width
            + from_decay[self.decay]
            + self.write_gate * self.dim * self.n_heads
            + self.use_conv * self.d_conv * self.mixed_width
            + (self.output_norm + self.unused_norm_weight) * self.head_values
            + self.value_residual * self.n_heads * self.head_values
        )

    @property
    def _output_parameters(self) -> int:
        """Parameters of the head mix and the output projection."""
        if self.head_mix in ("concat", "per_head"):
            return self.value_width * self.dim
        scores = {"sum": 0, "weighted_sum": self.n_heads, "input_weighted": self.dim * self.n_heads}
        return scores[self.head_mix] + self.head_values * self.dim

    def layer_state_size(self, seq_len: int) -> int:
        """Return the state size of one layer: keys by values of each head."""
        return self.n_heads * self.head_values * self.n_state

    def layer_activations(self, seq_len: int) -> int:
        """Estimate the elements per token that a layer saves for the backward pass."""
        state_size = self.layer_state_size(seq_len)
        gates_outside = self.gate_function != "silu" or self.output_norm or self.value_residual
        values = self.use_gate * (3 if gates_outside else 1) + 2 * self.output_norm
        if self.head_mix not in ("sum", "concat", "per_head"):
            values += 1
        mixed = self.mixed_width * (1 + self.use_conv)
        mixed += self.value_residual * self.value_width
        joined = self.value_width if self.head_mix in ("concat", "per_head") else self.head_values
        recurrence = sizes.saved_elements(self.key_width, self.value_width, state_size)
        return 2 * self.dim + mixed + recurrence + values * self.value_width + joined

    def layer_flops(self, seq_len: int) -> int:
        """Return the forward FLOPs per token of one layer."""
        scores = (self.decay in ("mamba", "simple")) + self.write_gate
        read_outs = self.n_heads * self.head_values
        products = (
            self.dim * (self.mixed_width + self.use_gate * self.value_width)
            + self.dim * self.n_heads * scores
            + self.use_conv * self.d_conv * self.mixed_width
            + self.value_residual * read_outs
        )
        # Output projections; the plain sum of heads has additions instead of products.
        products += {
            "concat": self.dim * self.value_width,
            "per_head": self.dim * self.value_width,
            "sum": self.dim * self.head_values,
            "weighted_sum": self.dim * self.head_values + read_outs,
            "input_weighted": self.dim * (self.head_values + self.n_heads) + read_outs,
        }[self.head_mix]
        additions = read_outs if self.head_mix == "sum" else 0
        per_entry = sizes.flops_per_entry(squashes=self.squashes)
        return 2 * products + additions + per_entry * self.layer_state_size(seq_len)
