"""E90: E88 with two matrix states in each head, one that decays fast and one that decays slowly."""

import math
from dataclasses import dataclass
from typing import Literal

from elmanctl.errors import InvalidConfiguration
from elmanctl.kernels.matrix_recurrence.sizes import (
    check_size,
    check_values,
    flops_per_entry,
    saved_elements,
    supported_sizes,
)
from elmanctl.models.config import Expansion, FamilyConfig, Heads, whole
from elmanctl.models.configs.sizes import expansions_around, limits_in_words, values_of


@dataclass(frozen=True, slots=True, kw_only=True)
class E90Config(FamilyConfig):
    """E90: a fast and a slow state in each head, of `k_fast` and `k_slow` keys.

    Each state has `expansion` values for each key.  The documented variant demands that both
    products are whole; the study's cuts them down.  Nothing else differs between the two.
    """

    level: Literal["e90"] = "e90"
    n_heads: Heads
    k_fast: int = 16
    k_slow: int = 48
    expansion: Expansion = 1.0
    use_gate: bool = True
    gate_activation: Literal["silu", "sigmoid"] = "silu"

    @property
    def v_fast(self) -> int:
        """Values of the fast state of one head."""
        return self._values(self.k_fast)

    @property
    def v_slow(self) -> int:
        """Values of the slow state of one head."""
        return self._values(self.k_slow)

    def _values(self, n_key: int) -> int:
        return values_of(n_key, self.expansion, is_study=self.is_study)

    @property
    def head_values(self) -> int:
        """Values that one head reads: the wider of its two states'."""
        return max(self.v_fast, self.v_slow)

    @property
    def fast_width(self) -> int:
        """Queries, keys and values of the fast states of all heads."""
        return self.n_heads * (2 * self.k_fast + self.v_fast)

    @property
    def slow_width(self) -> int:
        """Queries, keys and values of the slow states of all heads."""
        return self.n_heads * (2 * self.k_slow + self.v_slow)

    @property
    def value_width(self) -> int:
        """What all heads read together."""
        return self.n_heads * self.head_values

    def check_together(self) -> None:
        """Raise InvalidConfiguration for a state size without code or values that are not whole."""
        self._check_sizes("auto")
        for name in ("k_fast", "k_slow"):
            values = getattr(self, name) * self.expansion
            is_cut = not self.is_study and round(values, 6) != whole(values)
            if is_cut or self._values(getattr(self, name)) < 1:
                # Both products are whole just when that of their greatest common divisor is.
                around = expansions_around(math.gcd(self.k_fast, self.k_slow), self.expansion)
                raise InvalidConfiguration(
                    f"{self.level}: `expansion` {self.expansion:g} of `{name}` "
                    f"{getattr(self, name)} gives {values:g} values, not a whole positive number",
                    hint=f"the nearest expansions that fit are {around}",
                )

    def check_backend(self, backend: str) -> None:
        """Raise InvalidConfiguration unless the backend computes states of both sizes."""
        self._check_sizes(backend)

    @classmethod
    def backend_limits(cls, backend: str) -> str:
        """Return in words which sizes a backend computes."""
        return limits_in_words("`k_fast` and `k_slow`", supported_sizes(backend), backend)

    def _check_sizes(self, backend: str) -> None:
        for name in ("k_fast", "k_slow"):
            try:
                check_size(backend, getattr(self, name))
                check_values(backend, self._values(getattr(self, name)))
            except InvalidConfiguration as exc:
                message = f"{self.level}: `{name}`: {exc}"
                raise InvalidConfiguration(message, hint=exc.hint) from exc

    def layer_parameters(self) -> int:
        """Return the number of parameters of one layer, the norm before it left out."""
        scores = self.dim * self.n_heads
        decays = 2 * (scores + 2 * self.n_heads)
        slow_rate = scores + self.n_heads
        mix = 2 * (scores + self.n_heads)
        values = self.dim * self.value_width * (1 + self.use_gate)
        return self.dim * (self.fast_width + self.slow_width) + values + decays + slow_rate + mix

    def layer_state_size(self, seq_len: int) -> int:
        """Return how many numbers one layer carries on: keys by values of both states."""
        return self.n_heads * (self.k_fast * self.v_fast + self.k_slow * self.v_slow)

    def layer_activations(self, seq_len: int) -> int:
        """Return about how many numbers of one token a layer keeps for its gradient."""
        recurrences = saved_elements(
            self.n_heads * (self.k_fast + self.k_slow),
            self.n_heads * (self.v_fast + self.v_slow),
            self.layer_state_size(seq_len),
        )
        # Both read-outs, what leaves the layer and, with a gate, its two sides and the gate before.
        values = (3 + 3 * self.use_gate) * self.value_width
        scores = 16 * self.n_heads
        return 2 * self.dim + self.fast_width + self.slow_width + recurrences + values + scores

    def layer_flops(self, seq_len: int) -> int:
        """Return the forward FLOPs of one layer for one token."""
        products = (
            self.dim * (self.fast_width + self.slow_width)
            + self.dim * self.value_width * (1 + self.use_gate)
            # Two decays, one write rate and two weights of the mix for each head.
            + 5 * self.dim * self.n_heads
            + self.n_heads * (self.v_fast + self.v_slow)
        )
        return 2 * products + flops_per_entry() * self.layer_state_size(seq_len)
