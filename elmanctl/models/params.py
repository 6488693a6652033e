"""Exact sizes of models, and the width that meets a parameter budget, as pure arithmetic."""

import re
from bisect import bisect_left
from collections.abc import Callable, Mapping
from contextlib import suppress
from fractions import Fraction
from functools import cached_property
from math import ceil, inf, lcm
from typing import Literal

from elmanctl.errors import InvalidConfiguration
from elmanctl.models.config import DOCUMENTED, MAX_DIM, VOCABULARY
from elmanctl.models.registry import decode_config, resolve_level

DEFAULT_SEQ_LEN = 512

_UNITS = {"": 1, "K": 10**3, "M": 10**6, "G": 10**9, "B": 10**9}
_COUNT = re.compile(r"(\d+|\d{1,3}(?:[_,]\d{3})+)(\.\d+)?\s*([KMGB]?)", re.IGNORECASE)

_FINER = (64, 32, 16, 8)
"""What dims may be multiples of instead, where no multiple of what was asked for fits."""


def count_parameters(level: str, config: Mapping[str, object], variant: str = DOCUMENTED) -> int:
    """Return the exact number of parameters of the model that a configuration builds.

    `variant` is `documented`, or `study-2026-01` for the model that ran in the study, whose
    spellings of levels and settings are then understood; a `variant` in `config` says the same.
    Raises NotFound on an unknown level, InvalidConfiguration on a model that cannot be built.
    """
    return sum(parameter_breakdown(level, config, variant).values())


def parameter_breakdown(
    level: str, config: Mapping[str, object], variant: str = DOCUMENTED
) -> dict[str, int]:
    """Return the parameters of each part; the head has none, since it shares the embedding."""
    decoded = decode_config(level, config, variant)
    return {
        "embedding": VOCABULARY * decoded.dim,
        "blocks": decoded.depth * decoded.layer_parameters(),
        "norms": decoded.norm_parameters(),
        "head": 0,
    }


def state_size(
    level: str,
    config: Mapping[str, object],
    variant: str = DOCUMENTED,
    *,
    seq_len: int = DEFAULT_SEQ_LEN,
    of: Literal["layer", "model"] = "layer",
) -> int:
    """Return how many numbers a layer, or the whole model, carries to the next position.

    For an attention these are the keys and values of `seq_len` positions; every other state has
    the same size at any position.
    """
    decoded = decode_config(level, config, variant)
    each = decoded.layer_state_size(seq_len)
    return each if of == "layer" else decoded.depth * each


def flops_per_token(
    level: str,
    config: Mapping[str, object],
    variant: str = DOCUMENTED,
    *,
    seq_len: int = DEFAULT_SEQ_LEN,
    training: bool = False,
) -> int:
    """Return the FLOPs of one token, on average over sequences of `seq_len`.

    A multiplication and an addition count one each.  Training is taken as three forward passes:
    one, and two of the same size for the gradients of inputs and weights; what a backward pass
    computes again to save memory is left out, as in model FLOPs utilisation (Chowdhery et al.,
    2022, arXiv 2204.02311, appendix B).
    """
    decoded = decode_config(level, config, variant)
    forward = decoded.depth * decoded.layer_flops(seq_len) + 2 * VOCABULARY * decoded.dim
    return 3 * forward if training else forward


def solve_dim(
    level: str,
    config: Mapping[str, object],
    *,
    target: int,
    tolerance: float,
    multiple_of: int = 128,
    low: int = 1,
    high: int = MAX_DIM,
    variant: str = DOCUMENTED,
) -> int:
    """Return the dim whose exact count is nearest to `target`, of two equally near the smaller.

    `config` has no `dim`; dims are the multiples of `multiple_of` from `low` to `high` that the
    family can have.
    Raises InvalidConfiguration when the nearest count is further off than `tolerance`, relative
    to the target; the message names the nearest dims on both sides and their counts, the hint a
    `multiple_of` among whose dims one is near enough, if 64, 32, 16 or 8 is one.
    """
    if "dim" in config:
        raise InvalidConfiguration("`dim` is set, and cannot be solved for as well")
    for name, number in (("target", target), ("multiple_of", multiple_of), ("low", low)):
        if number < 1:
            raise InvalidConfiguration(f"`{name}` is {number}, but must be at least 1")
    if not 0 <= tolerance < inf:
        raise InvalidConfiguration(
            f"`tolerance` is {tolerance:g}, but must be a finite number, at least 0",
            hint="0.02 accepts 2% more or fewer parameters than asked for",
        )
    family, settings = resolve_level(level, config, variant)
    step = lcm(multiple_of, family.load_config().dim_divisor(settings))
    dims = range(-(-low // step) * step, high + 1, step)

    def count(dim: int) -> int:
        return count_parameters(family.name, {**settings, "dim": dim})

    # Counts grow with dim in every family.
    place = bisect_left(dims, target, key=count)
    counts = {dim: count(dim) for dim in dims[max(0, place - 1) : place + 1]}
    if not counts:
        raise InvalidConfiguration(f"there is no multiple of {step} from {low} to {high}")
    best = min(counts, key=lambda dim: abs(counts[dim] - target))
    off = abs(counts[best] - target)
    if off <= tolerance * target:
        return best

    def solve(finer: int) -> int:
        return solve_dim(
            family.name,
            settings,
            target=target,
            tolerance=tolerance,
            multiple_of=finer,
            low=low,
            high=high,
        )

    around = " and ".join(f"dim {dim} has {counts[dim]:,}" for dim in counts)
    raise _OffBudget(
        f"no dim that is a multiple of {step} gives {target:,} parameters "
        f"within {tolerance:.2%}: {around}",
        lambda: _ways_to_fit(solve, multiple_of, best, off / target),
    )


class _OffBudget(InvalidConfiguration):
    """No dim fits.  The hint takes a search, which a thousand refused points need not pay for."""

    def __init__(self, message: str, find_hint: Callable[[], str]) -> None:
        super().__init__(message)
        self._find_hint = find_hint
        # What stands in the instance would hide the property.
        del self.hint

    @cached_property
    def hint(self) -> str | None:  # type: ignore[override]
        return self._find_hint()


def _ways_to_fit(solve: Callable[[int], int], multiple_of: int, best: int, off: float) -> str:
    """Name the coarsest finer multiple that `solve` finds a dim for, and what would take `best`."""
    # Rounded up, or the hint could be wrong by its last digit.
    wider = ceil(off * 1e4) / 1e4
    ways = [f"with `tolerance` {wider:g} dim {best} fits"]
    if wider >= 1:
        ways = ["no dim comes near; change `depth`, the other sizes or the target"]
    for finer in _FINER:
        if finer < multiple_of:
            with suppress(InvalidConfiguration):
                solve(finer)
                ways.insert(0, f"with `multiple_of` {finer} a dim fits")
                break
    return "; ".join(ways)


def parse_count(text: str) -> int:
    """Return the number that `480M`, `1.5M`, `2B`, `65_536` or `480,000,000` stands for.

    Raises InvalidConfiguration on anything else and on what is not a whole positive number.
    """
    match = _COUNT.fullmatch(text.strip())
    if match is None:
        raise InvalidConfiguration(
            f"`{text}` is not a number of parameters", hint="write for example 480M or 65_536"
        )
    whole, rest, unit = match.groups()
    digits = whole.replace("_", "").replace(",", "") + (rest or "")
    value = Fraction(digits) * _UNITS[unit.upper()]
    if value.denominator != 1 or value < 1:
        raise InvalidConfiguration(f"`{text}` is not a whole positive number of parameters")
    return int(value)


def format_count(count: int) -> str:
    """Write a number of parameters for people, as in 480.3M; below a thousand it is exact."""
    if count < 1_000:
        return str(count)
    for unit in ("K", "M"):
        size = _UNITS[unit]
        # 999,950 would be written 1000.0K.
        if count < 999.95 * size:
            return f"{count / size:.1f}{unit}"
    return f"{count / _UNITS['B']:.1f}B"
