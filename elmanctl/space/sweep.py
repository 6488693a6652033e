"""Sweep of a search: a few values of some settings, searched apart under one budget.

Each combination of the values is a branch, with an optimizer of its own over the axes.
"""

from collections.abc import Mapping, Sequence
from itertools import product

from elmanctl import errors
from elmanctl.space.axis import Axis, Value

# Each takes its share of the budget.
MOST_BRANCHES = 100


def combinations(sweep: Mapping[str, Sequence[Value]]) -> list[dict[str, Value]]:
    """Return every combination of swept values, in order; one that is empty without a sweep."""
    return [dict(zip(sweep, values, strict=True)) for values in product(*sweep.values())]


def read_sweep(
    sweep: Mapping[str, object],
    *,
    axes: Mapping[str, object],
    shipped: Mapping[str, tuple[Value, ...]],
    constants: Mapping[str, object],
) -> dict[str, tuple[Value, ...]]:
    """Return the values of each swept setting; an empty list means those that the space has.

    `axes` are the tables of its axes, `shipped` what it has to sweep.  Raises ConfigError for a
    constant, for one value, for values that are not known, and for too many.
    """
    swept, faults = {}, errors.Faults()
    for name, values in sweep.items():
        with faults:
            if name in constants:
                raise errors.ConfigError(
                    f"`{name}` is swept and also a constant", hint="leave one of them out"
                )
            is_named = values not in ([], ())
            known = values if is_named else _known(name, axes.get(name), shipped)
            swept[name] = _checked(name, known)
    faults.raise_any()
    if len(combinations(swept)) > MOST_BRANCHES:
        raise errors.ConfigError(
            f"a sweep over {' and '.join(f'`{name}`' for name in swept)} is "
            f"{len(combinations(swept))} searches",
            hint=f"name at most {MOST_BRANCHES} combinations of values",
        )
    return swept


def _known(name: str, table: object, shipped: Mapping[str, tuple[Value, ...]]) -> Sequence[Value]:
    """Return the values that a space gives for a setting that is swept without naming any."""
    if name in shipped:
        return shipped[name]
    levels = Axis.decode(name, table).levels if table is not None else None
    if levels is None or len(levels) > MOST_BRANCHES:
        raise errors.ConfigError(
            f"a sweep over `{name}` needs its values", hint=f"e.g. `--sweep {name}=VALUE,VALUE`"
        )
    return levels


def _checked(name: str, values: object) -> tuple[Value, ...]:
    """Return the values to sweep; raise ConfigError unless they are two or more different ones."""
    listed = values if isinstance(values, list | tuple) else (values,)
    if not all(isinstance(value, Value) for value in listed):
        raise errors.ConfigError(f"the values of `{name}` are numbers, words, true or false")
    if len(set(listed)) < max(2, len(listed)):
        raise errors.ConfigError(
            f"a sweep over `{name}` needs two or more different values",
            hint=f"for one value: `{name}={listed[0]}` without `--sweep`" if listed else None,
        )
    return tuple(listed)
