"""Exact parameter counts, state sizes and FLOPs of models, and the `dim` that meets a budget."""

import re
from bisect import bisect_left
from collections.abc import Callable, Mapping
from contextlib import suppress
from fractions import Fraction
from functools import cached_property, partial
from math import ceil, inf, lcm
from typing import Literal

from elmanctl.constants import VOCABULARY
from elmanctl.errors import InvalidConfiguration
from elmanctl.models.config import DOCUMENTED, MAX_DIM
from elmanctl.models.registry import decode_config, resolve_level

DEFAULT_SEQ_LEN = 512

_UNITS = {"": 1, "K": 10**3, "M": 10**6, "G": 10**9, "B": 10**9}
_COUNT = re.compile(r"(\d+|\d{1,3}(?:[_,]\d{3})+)(\.\d+)?\s*([KMGB]?)", re.IGNORECASE)

_FINER = (64, 32, 16, 8)
"""Finer values of `multiple_of` to suggest where none of its multiples fits."""


def count_parameters(level: str, config: Mapping[str, object], variant: str = DOCUMENTED) -> int:
    """Return the exact parameter count of the model that a configuration builds.

    `variant` is `documented`, or `study-2026-01` for the model that ran in the study, which also
    accepts the study's names of levels and settings; it may instead be set in `config`.
    Raises NotFound for an unknown level, InvalidConfiguration for a model that cannot be built.
    """
    return decode_config(level, config, variant).parameters()


def parameter_breakdown(
    level: str, config: Mapping[str, object], variant: str = DOCUMENTED
) -> dict[str, int]:
    """Return the parameter count of each part; the head has none, since it is tied."""
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
    """Return the recurrent state size of a layer, or of the whole model, in elements.

    For attention it is the cache of keys and values of `seq_len` positions; all other states have
    the same size at every position.
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
    """Return the FLOPs per token, averaged over sequences of `seq_len`.

    A multiplication and an addition count as one FLOP each.  Training counts as three forward
    passes: one, and two of the same size for the gradients of inputs and weights; recomputation
    in the backward pass is not counted, as in model FLOPs utilization (Chowdhery et al., 2022,
    arXiv 2204.02311, appendix B).  Raises InvalidConfiguration for a family without a count.
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
    """Return the dim with the exact parameter count nearest to `target`, the smaller one on a tie.

    `config` has no `dim`; candidates are the multiples of `multiple_of` from `low` to `high` that
    the family supports.
    Raises InvalidConfiguration if the nearest count is off by more than `tolerance`, relative to
    the target.  The message names the nearest dims on both sides and their counts, and the hint a
    finer `multiple_of` that succeeds, if 64, 32, 16 or 8 does.
    """
    if "dim" in config:
        raise InvalidConfiguration("`dim` is set, so it cannot be solved for")
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

    # In every family the count increases with dim.
    index = bisect_left(dims, target, key=count)
    counts = {dim: count(dim) for dim in dims[max(0, index - 1) : index + 1]}
    if not counts:
        raise InvalidConfiguration(f"there is no multiple of {step} from {low} to {high}")
    best = min(counts, key=lambda dim: abs(counts[dim] - target))
    error = abs(counts[best] - target)
    if error <= tolerance * target:
        return best

    solve = partial(
        solve_dim, family.name, settings, target=target, tolerance=tolerance, low=low, high=high
    )
    nearest = " and ".join(f"dim {dim} has {counts[dim]:,}" for dim in counts)
    raise _NoDimFits(
        f"no dim that is a multiple of {step} gives {target:,} parameters "
        f"within {tolerance:.2%}: {nearest}",
        lambda: _suggestions(solve, multiple_of, best, error / target),
    )


class _NoDimFits(InvalidConfiguration):
    """No dim fits; the hint is computed on demand, since finding it repeats the search."""

    def __init__(self, message: str, find_hint: Callable[[], str]) -> None:
        super().__init__(message)
        self._find_hint = find_hint
        # An instance attribute would shadow the cached property.
        del self.hint

    @cached_property
    def hint(self) -> str | None:  # type: ignore[override]
        return self._find_hint()


def _suggestions(solve: Callable[..., int], multiple_of: int, best: int, error: float) -> str:
    """Suggest the coarsest `multiple_of` of `_FINER` that succeeds, and a tolerance for `best`."""
    # Rounded up, so that the suggested tolerance suffices.
    tolerance = ceil(error * 1e4) / 1e4
    suggestions = [f"with `tolerance` {tolerance:g} dim {best} fits"]
    if tolerance >= 1:
        suggestions = ["no dim comes near; change `depth`, the other sizes or the target"]
    for finer in _FINER:
        if finer < multiple_of:
            with suppress(InvalidConfiguration):
                solve(multiple_of=finer)
                suggestions.insert(0, f"with `multiple_of` {finer} a dim fits")
                break
    return "; ".join(suggestions)


def parse_count(text: str) -> int:
    """Parse a parameter count such as `480M`, `1.5M`, `2B`, `65_536` or `480,000,000`.

    Raises InvalidConfiguration for anything else and for counts that are not positive integers.
    """
    match = _COUNT.fullmatch(text.strip())
    if match is None:
        raise InvalidConfiguration(
            f"`{text}` is not a number of parameters", hint="write for example 480M or 65_536"
        )
    integer, fraction, unit = match.groups()
    digits = integer.replace("_", "").replace(",", "") + (fraction or "")
    value = Fraction(digits) * _UNITS[unit.upper()]
    if value.denominator != 1 or value < 1:
        raise InvalidConfiguration(f"`{text}` is not a whole positive number of parameters")
    return int(value)


def format_count(count: int) -> str:
    """Format a parameter count for display, such as 480.3M; counts below a thousand are exact."""
    if count < 1_000:
        return str(count)
    for unit in ("K", "M"):
        size = _UNITS[unit]
        # 999,950 would round to 1000.0K.
        if count < 999.95 * size:
            return f"{count / size:.1f}{unit}"
    return f"{count / _UNITS['B']:.1f}B"
