"""Size computations and checks shared by several families."""

from collections.abc import Iterable
from dataclasses import dataclass
from typing import ClassVar

from elmanctl.errors import InvalidConfiguration
from elmanctl.kernels.matrix_recurrence.sizes import (
    VALUES,
    check_size,
    check_values,
    supported_sizes,
)
from elmanctl.models.config import Expansion, FamilyConfig, floor_exact, format_sizes


def count_values(n_keys: int, expansion: float, *, is_study: bool) -> int:
    """Return the number of values for `n_keys` keys; the study truncated any fraction."""
    values = n_keys * expansion
    return int(values) if is_study else floor_exact(values)


def expansions_around(n_keys: int, expansion: float) -> str:
    """Format the nearest expansions that give `n_keys` keys an integer number of values."""
    below = int(n_keys * expansion)
    return " and ".join(str(values / n_keys) for values in (below, below + 1) if values)


class HeadsConfig(FamilyConfig):
    """Family of heads with `n_state` keys each, and `expansion` values per key.

    A subclass declares the three as fields, in an order of its own.
    """

    __slots__ = ()

    n_heads: int
    n_state: int
    expansion: float

    @property
    def key_width(self) -> int:
        """Total keys of all heads."""
        return self.n_heads * self.n_state

    @property
    def value_width(self) -> int:
        """Total values of all heads."""
        return count_values(self.key_width, self.expansion, is_study=self.is_study)

    @property
    def head_values(self) -> int:
        """Values of one head."""
        return self.value_width // self.n_heads

    def check_values_are_even(self) -> None:
        """Raise InvalidConfiguration unless all heads have the same positive number of values.

        The documented variant requires an integer total; the study's truncates it.
        """
        exact, values = self.key_width * self.expansion, self.value_width
        is_fractional = not self.is_study and round(exact, 6) != values
        if is_fractional or values % self.n_heads or not values:
            shown = round(exact, 6) if is_fractional else values
            nearest = expansions_around(self.n_state, self.expansion)
            raise InvalidConfiguration(
                f"{self.level}: {shown:.12g} values (`expansion` {self.expansion:g}) cannot be "
                f"divided evenly among {self.n_heads} heads",
                hint=f"the nearest valid expansions are {nearest}",
            )

    def check_backend(self, backend: str) -> None:
        """Raise InvalidConfiguration unless the backend supports this state size."""
        check_size(backend, self.n_state)
        check_values(backend, self.head_values)

    @classmethod
    def backend_limits(cls, backend: str) -> str:
        """Describe the sizes that a backend supports."""
        return format_limits("`n_state`", supported_sizes(backend), backend)


def format_limits(names: str, sizes: Iterable[int], backend: str) -> str:
    """Describe the numbers of keys, labeled `names`, and of values that a backend supports.

    Values are omitted if any number of them is supported.
    """
    keys = f"{names} {format_sizes(sizes)}"
    if backend not in VALUES:
        return keys
    return f"{keys}; values of a head {format_sizes(VALUES[backend])}"


@dataclass(frozen=True, slots=True, kw_only=True)
class WidthConfig(FamilyConfig):
    """Settings of a family with `dim * expansion` units in its state or cell."""

    unit_of: ClassVar[str]

    expansion: Expansion = 1.0

    @property
    def width(self) -> int:
        """Number of units."""
        return floor_exact(self.dim * self.expansion)

    def check_together(self) -> None:
        """Raise InvalidConfiguration if there are no units."""
        if not self.width:
            raise InvalidConfiguration(
                f"{self.level}: `expansion` {self.expansion:g} gives a {self.unit_of} without "
                "units",
                hint=f"with dim {self.dim} it must be at least {1 / self.dim:.3g}",
            )


def check_inner_width(config: FamilyConfig, width: int, expansion: float) -> None:
    """Raise InvalidConfiguration for an empty inner projection."""
    if not width:
        raise InvalidConfiguration(
            f"{config.level}: `expansion` {expansion:g} of dim {config.dim} gives no inner width",
            hint=f"`expansion` must be at least 1/{config.dim}",
        )
