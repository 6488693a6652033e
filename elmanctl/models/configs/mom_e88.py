"""MoM-E88: E88 memories of which a router writes and reads the few that suit a position best."""

from dataclasses import dataclass
from typing import Annotated, Literal

from elmanctl.errors import InvalidConfiguration
from elmanctl.kernels.matrix_recurrence.sizes import (
    check_size,
    check_values,
    flops_per_entry,
    saved_elements,
    supported_sizes,
)
from elmanctl.models.config import Between, Expansion, FamilyConfig, Heads
from elmanctl.models.configs.sizes import check_values_are_even, limits_in_words, values_of


@dataclass(frozen=True, slots=True, kw_only=True)
class MomE88Config(FamilyConfig):
    """MoM-E88: `n_heads` memories, of which a router writes and reads `top_k` at each position.

    `top_k` has no default: it decides what the model is.  `router_noise` is the standard deviation
    of what is added to the router's scores in training, `balance_weight` the weight of the loss
    that keeps memories equally used.  The study computed that loss and never trained by it: its
    variant ignores the weight.
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

    @property
    def key_width(self) -> int:
        """Keys of all heads together."""
        return self.n_heads * self.n_state

    @property
    def value_width(self) -> int:
        """Values of all heads together."""
        return values_of(self.key_width, self.expansion, is_study=self.is_study)

    @property
    def head_values(self) -> int:
        """Values of one head."""
        return self.value_width // self.n_heads

    def check_together(self) -> None:
        """Raise InvalidConfiguration for a size without code, or for what does not fit together."""
        check_size("auto", self.n_state)
        if self.top_k > self.n_heads:
            raise InvalidConfiguration(
                f"{self.level}: `top_k` is {self.top_k}, but there are {self.n_heads} heads",
                hint=f"`top_k` may be from 1 to {self.n_heads}",
            )
        check_values_are_even(self, self.n_heads, self.n_state, self.expansion)

    def check_backend(self, backend: str) -> None:
        """Raise InvalidConfiguration unless the backend computes states of this size."""
        check_size(backend, self.n_state)
        check_values(backend, self.head_values)

    @classmethod
    def backend_limits(cls, backend: str) -> str:
        """Return in words which sizes a backend computes."""
        return limits_in_words("`n_state`", supported_sizes(backend), backend)

    def layer_parameters(self) -> int:
        """Return the number of parameters of one layer, the norm before it left out."""
        router = self.dim * self.n_heads
        decay = self.dim * self.n_heads + 2 * self.n_heads
        projected = 2 * self.key_width + self.value_width * (1 + self.use_gate)
        return router + decay + self.dim * (projected + self.head_values)

    def layer_state_size(self, seq_len: int) -> int:
        """Return how many numbers one layer carries on: keys by values of each memory.

        There is a memory for each head, in the study one for each of the `top_k` ranks.
        """
        memories = self.top_k if self.is_study else self.n_heads
        return memories * self.n_state * self.head_values

    def layer_activations(self, seq_len: int) -> int:
        """Return about how many numbers of one token a layer keeps for its gradient."""
        mixed = 2 * self.key_width + self.value_width
        keys, values = self.key_width, self.value_width
        scores = 14 * self.n_heads
        if self.is_study:
            # The chosen heads are copied out of all, which stay, and then brought to unit length.
            keys, values = self.top_k * self.n_state, self.top_k * self.head_values
            mixed += 2 * keys + values + self.use_gate * self.value_width + 2 * keys
        recurrence = saved_elements(keys, values, self.layer_state_size(seq_len))
        summed = values * (1 + self.use_gate) + 4 * self.head_values
        return 2 * self.dim + mixed + recurrence + summed + scores

    def layer_flops(self, seq_len: int) -> int:
        """Return the forward FLOPs of one layer for one token.

        Projections are those of all heads, which are one matrix product whatever the router picks.
        The recurrence and the read-out are those of the `top_k` memories that are picked: the
        others stay as they are.
        """
        products = (
            2 * self.dim * self.n_heads
            + self.dim * (2 * self.key_width + self.value_width * (1 + self.use_gate))
            + self.dim * self.head_values
            # Read-outs and gates of the heads are summed by their weights.
            + self.top_k * self.head_values * (1 + self.use_gate)
        )
        chosen = self.top_k * self.n_state * self.head_values
        return 2 * products + flops_per_entry() * chosen
