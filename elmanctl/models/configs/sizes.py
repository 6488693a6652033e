"""What several families work out of their settings in the same way."""

from typing import TYPE_CHECKING

from elmanctl.errors import InvalidConfiguration
from elmanctl.models.config import whole

if TYPE_CHECKING:
    from elmanctl.models.configs.e75 import E75Config
    from elmanctl.models.configs.e87 import E87Config
    from elmanctl.models.configs.e88 import E88Config
    from elmanctl.models.configs.mom_e88 import MomE88Config


def values_of(n_keys: int, expansion: float, *, is_study: bool) -> int:
    """Return how many values go with so many keys; the study cut off any fraction."""
    values = n_keys * expansion
    return int(values) if is_study else whole(values)


def expansions_around(n_keys: int, expansion: float) -> str:
    """Return in words the nearest expansions that give so many keys a whole number of values."""
    below = int(n_keys * expansion)
    return " and ".join(str(values / n_keys) for values in (below, below + 1) if values)


def check_values_are_even(config: "E88Config | MomE88Config") -> None:
    """Raise InvalidConfiguration unless every head has the same number of values, one or more."""
    if config.value_width % config.n_heads or not config.value_width:
        around = expansions_around(config.n_state, config.expansion)
        raise InvalidConfiguration(
            f"{config.level}: {config.value_width} values (`expansion` {config.expansion:g}) "
            f"cannot be shared out evenly to {config.n_heads} heads",
            hint=f"the nearest expansions that can are {around}",
        )


def check_inner_width(config: "E75Config | E87Config") -> None:
    """Raise InvalidConfiguration for an inner projection without outputs."""
    if not config.inner_width:
        raise InvalidConfiguration(
            f"{config.level}: `expansion` {config.expansion:g} leaves nothing of dim {config.dim}",
            hint=f"`expansion` must be at least 1/{config.dim}",
        )
