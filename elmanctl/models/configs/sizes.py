"""What several families work out of their settings in the same way."""

from collections.abc import Iterable

from elmanctl.errors import InvalidConfiguration
from elmanctl.kernels.matrix_recurrence.sizes import VALUES
from elmanctl.models.config import FamilyConfig, in_words, whole


def values_of(n_keys: int, expansion: float, *, is_study: bool) -> int:
    """Return how many values go with so many keys; the study cut off any fraction."""
    values = n_keys * expansion
    return int(values) if is_study else whole(values)


def expansions_around(n_keys: int, expansion: float) -> str:
    """Return in words the nearest expansions that give so many keys a whole number of values."""
    below = int(n_keys * expansion)
    return " and ".join(str(values / n_keys) for values in (below, below + 1) if values)


def check_values_are_even(
    config: FamilyConfig, n_heads: int, n_state: int, expansion: float
) -> None:
    """Raise InvalidConfiguration unless every head has the same number of values, one or more.

    The documented variant demands a whole number for all heads together too; the study's cuts it.
    """
    exact = n_heads * n_state * expansion
    values = values_of(n_heads * n_state, expansion, is_study=config.is_study)
    is_cut = not config.is_study and round(exact, 6) != values
    if is_cut or values % n_heads or not values:
        told = round(exact, 6) if is_cut else values
        raise InvalidConfiguration(
            f"{config.level}: {told:.12g} values (`expansion` {expansion:g}) cannot be shared out "
            f"evenly to {n_heads} heads",
            hint=f"the nearest expansions that can are {expansions_around(n_state, expansion)}",
        )


def limits_in_words(names: str, sizes: Iterable[int], backend: str) -> str:
    """Return which keys, told by `names`, and values of a state a backend computes.

    Values are left out where any number of them is computed.
    """
    keys = f"{names} {in_words(sizes)}"
    if backend not in VALUES:
        return keys
    return f"{keys}; values of a head {in_words(VALUES[backend])}"


def check_inner_width(config: FamilyConfig, width: int, expansion: float) -> None:
    """Raise InvalidConfiguration for an inner projection without outputs."""
    if not width:
        raise InvalidConfiguration(
            f"{config.level}: `expansion` {expansion:g} leaves nothing of dim {config.dim}",
            hint=f"`expansion` must be at least 1/{config.dim}",
        )
