"""E90: E88 with two matrix states per head, one with fast and one with slow decay."""

import math
from dataclasses import dataclass
from typing import Literal

from elmanctl.errors import InvalidConfiguration
from elmanctl.kernels.matrix_recurrence import sizes
from elmanctl.models.config import Expansion, FamilyConfig, Heads, floor_exact
from elmanctl.models.configs.sizes import count_values, expansions_around, format_limits


@dataclass(frozen=True, slots=True, kw_only=True)
class E90Config(FamilyConfig):
    """E90: a fast and a slow state per head, with `k_fast` and `k_slow` keys.

    Each state has `expansion` values per key.  The documented variant requires integer numbers of
    values, the study's rounds them down; there is no other difference.
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
        return count_values(n_key, self.expansion, is_study=self.is_study)

    @property
    def head_values(self) -> int:
        """Read-out width of one head: the larger of its two states' values."""
        return max(self.v_fast, self.v_slow)

    @property
    def fast_width(self) -> int:
        """Total queries, keys and values of all fast states."""
        return self.n_heads * (2 * self.k_fast + self.v_fast)

    @property
    def slow_width(self) -> int:
        """Total queries, keys and values of all slow states."""
        return self.n_heads * (2 * self.k_slow + self.v_slow)

    @property
    def value_width(self) -> int:
        """Total read-out width of all heads."""
        return self.n_heads * self.head_values

    def check_together(self) -> None:
        """Raise InvalidConfiguration for an unsupported state size or a fraction of a value."""
        self._check_sizes("auto")
        for name in ("k_fast", "k_slow"):
            values = getattr(self, name) * self.expansion
            is_fractional = not self.is_study and round(values, 6) != floor_exact(values)
            if is_fractional or self._values(getattr(self, name)) < 1:
                # Both products are integers if and only if that of their gcd is.
                nearest = expansions_around(math.gcd(self.k_fast, self.k_slow), self.expansion)
                raise InvalidConfiguration(
                    f"{self.level}: `expansion` {self.expansion:g} of `{name}` "
                    f"{getattr(self, name)} gives {values:g} values, not a positive integer",
                    hint=f"the nearest valid expansions are {nearest}",
                )

    def check_backend(self, backend: str) -> None:
        """Raise InvalidConfiguration unless the backend supports both state sizes."""
        self._check_sizes(backend)

    @classmethod
    def backend_limits(cls, backend: str) -> str:
        """Describe the sizes that a backend supports."""
        return format_limits("`k_fast` and `k_slow`", sizes.supported_sizes(backend), backend)

    def _check_sizes(self, backend: str) -> None:
        for name in ("k_fast", "k_slow"):
            try:
                sizes.check_size(backend, getattr(self, name))
                sizes.check_values(backend, self._values(getattr(self, name)))
            except InvalidConfiguration as exc:
                message = f"{self.level}: `{name}`: {exc}"
                raise InvalidConfiguration(message, hint=exc.hint) from exc

    def layer_parameters(self) -> int:
        """Return the parameter count of one layer, excluding the norm before it."""
        scores = self.dim * self.n_heads
        decays = 2 * (scores + 2 * self.n_heads)
        slow_rate = scores + self.n_heads
        mix = 2 * (scores + self.n_heads)
        values = self.dim * self.value_width * (1 + self.use_gate)
        return self.dim * (self.fast_width + self.slow_width) + values + decays + slow_rate + mix

    def layer_state_size(self, seq_len: int) -> int:
        """Return the state size of one layer: keys by values of both states."""
        return self.n_heads * (self.k_fast * self.v_fast + self.k_slow * self.v_slow)

    def layer_activations(self, seq_len: int) -> int:
        """Estimate the elements per token that a layer saves for the backward pass."""
        recurrences = sizes.saved_elements(
            self.n_heads * (self.k_fast + self.k_slow),
            self.n_heads * (self.v_fast + self.v_slow),
            self.layer_state_size(seq_len),
        )
        # Both read-outs and the layer's output; with a gate, its two factors and its input.
        values = (3 + 3 * self.use_gate) * self.value_width
        scores = 16 * self.n_heads
        return 2 * self.dim + self.fast_width + self.slow_width + recurrences + values + scores

    def layer_flops(self, seq_len: int) -> int:
        """Return the forward FLOPs per token of one layer."""
        products = (
            self.dim * (self.fast_width + self.slow_width)
            + self.dim * self.value_width * (1 + self.use_gate)
            # Two decays, one write rate and two mixing weights per head.
            + 5 * self.dim * self.n_heads
            + self.n_heads * (self.v_fast + self.v_slow)
        )
        return 2 * products + sizes.flops_per_entry() * self.layer_state_size(seq_len)
