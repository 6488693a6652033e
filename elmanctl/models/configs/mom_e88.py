"""MoM-E88: E88 memories with a router that selects a few per position to write and read."""

from dataclasses import dataclass
from typing import Annotated, Literal

from elmanctl.errors import InvalidConfiguration
from elmanctl.kernels.matrix_recurrence import sizes
from elmanctl.models.config import Between, Expansion, Heads
from elmanctl.models.configs.sizes import HeadsConfig


@dataclass(frozen=True, slots=True, kw_only=True)
class MomE88Config(HeadsConfig):
    """MoM-E88: `n_heads` memories, of which each position writes and reads `top_k`.

    `top_k` has no default because it defines the model.  `router_noise` is the standard deviation
    of the noise on router scores in training, `balance_weight` the weight of the load-balancing
    loss.  The study computed that loss but did not train with it; its variant ignores the weight.
    """

    level: Literal["mom-e88"] = "mom-e88"
    n_heads: Heads
    top_k: Heads
    n_state: int
    expansion: Expansion = 1.0
    use_gate: bool = True
    gate_activation: Literal["silu", "sigmoid"] = "silu"
    balance_weight: Annotated[float, Between(0.0, 1.0)] = 0.01
    router_noise: Annotated[float, Between(0.0, 1.0)] = 0.1

    def check_together(self) -> None:
        """Raise InvalidConfiguration for an unsupported size or contradictory settings."""
        sizes.check_size("auto", self.n_state)
        if self.top_k > self.n_heads:
            raise InvalidConfiguration(
                f"{self.level}: `top_k` is {self.top_k}, but there are {self.n_heads} heads",
                hint=f"`top_k` may be from 1 to {self.n_heads}",
            )
        self.check_values_are_even()

    def layer_parameters(self) -> int:
        """Return the parameter count of one layer, excluding the norm before it."""
        router = self.dim * self.n_heads
        decay = self.dim * self.n_heads + 2 * self.n_heads
        projected = 2 * self.key_width + self.value_width * (1 + self.use_gate)
        return router + decay + self.dim * (projected + self.head_values)

    def layer_state_size(self, seq_len: int) -> int:
        """Return the state size of one layer: keys by values of each memory.

        There is one memory per head, in the study one per rank up to `top_k`.
        """
        memories = self.top_k if self.is_study else self.n_heads
        return memories * self.n_state * self.head_values

    def layer_activations(self, seq_len: int) -> int:
        """Estimate the elements per token that a layer saves for the backward pass."""
        mixed = 2 * self.key_width + self.value_width
        keys, values = self.key_width, self.value_width
        scores = 14 * self.n_heads
        if self.is_study:
            # Selected heads are gathered from all, which are also saved, and then normalized.
            keys, values = self.top_k * self.n_state, self.top_k * self.head_values
            mixed += 2 * keys + values + self.use_gate * self.value_width + 2 * keys
        recurrence = sizes.saved_elements(keys, values, self.layer_state_size(seq_len))
        combined = values * (1 + self.use_gate) + 4 * self.head_values
        return 2 * self.dim + mixed + recurrence + combined + scores

    def layer_flops(self, seq_len: int) -> int:
        """Return the forward FLOPs per token of one layer.

        Projections are counted for all heads, since they are one matrix product, the recurrence
        and the read-out only for the `top_k` selected memories.
        """
        products = (
            2 * self.dim * self.n_heads
            + self.dim * (2 * self.key_width + self.value_width * (1 + self.use_gate))
            + self.dim * self.head_values
            # Weighted sums of the heads' read-outs and gates.
            + self.top_k * self.head_values * (1 + self.use_gate)
        )
        selected = self.top_k * self.n_state * self.head_values
        return 2 * products + sizes.flops_per_entry() * selected
