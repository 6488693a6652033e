"""Search spaces, shipped or the user's own: axes, constants, and known best values."""

import tomllib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from importlib import resources
from itertools import islice

from elmanctl import codec, errors
from elmanctl.codec import json_field
from elmanctl.space.axis import Axis, Value
from elmanctl.space.coordinate import Coordinate
from elmanctl.space.sweep import combinations, read_sweep

# An axis or constant of the training, not a field of any model.
LEARNING_RATE = "lr"

_MOST_BASES = 48


@dataclass(frozen=True, slots=True, kw_only=True)
class SearchSpace:
    """Axes and constants; `best` holds the known best values of the axes.

    `sweep` holds the values of settings that are swept: each combination of them is a branch, a
    space of its own in which they are constants.
    """

    model: str
    name: str
    summary: str = ""
    is_shipped: bool = False
    axes: tuple[Axis, ...]
    fixed: Mapping[str, object] = field(default_factory=dict)
    sweep: Mapping[str, tuple[Value, ...]] = field(default_factory=dict)
    best: Mapping[str, object] = field(default_factory=dict)
    best_source: str | None = None

    @property
    def branches(self) -> tuple["SearchSpace", ...]:
        """The space of every combination of swept values, in order; itself where none is swept."""
        return tuple(
            replace(self, fixed={**self.fixed, **values}, sweep={})
            for values in combinations(self.sweep)
        )

    @property
    def whole(self) -> "SearchSpace":
        """The space in which what is swept is an axis like the others."""
        swept = (Axis(name=k, kind="choice", values=values) for k, values in self.sweep.items())
        return replace(self, axes=(*self.axes, *swept), sweep={})

    @property
    def coordinates(self) -> tuple[Coordinate, ...]:
        """The optimizer's coordinates, one an axis."""
        return tuple(axis.coordinate for axis in self.axes)

    @property
    def middle(self) -> tuple[float, ...]:
        """The point halfway along every axis."""
        return tuple(axis.middle for axis in self.axes)

    @property
    def centre(self) -> tuple[float, ...]:
        """The point halfway between the bounds, which may be between two values of an axis."""
        return tuple((c.low + c.high) / 2 for c in self.coordinates)

    def values(self, point: Sequence[float]) -> dict[str, object]:
        """Return the constants and the values of every axis at `point`."""
        return {
            **self.fixed,
            **{axis.name: axis.value(x) for axis, x in zip(self.axes, point, strict=True)},
        }

    def bases(self, moved: Axis) -> Iterator[dict[str, object]]:
        """Yield values from which to move one axis: the middle, then one other axis elsewhere.

        A switch may matter only while another one is on, so several points are needed; there are
        48 at most.
        """
        return islice(self._bases(moved), _MOST_BASES)

    def _bases(self, moved: Axis) -> Iterator[dict[str, object]]:
        middle = self.values(self.middle)
        yield middle
        others = [axis for axis in self.axes if axis is not moved]
        for axis in others:
            for value in axis.samples:
                if value != middle[axis.name]:
                    yield {**middle, axis.name: value}
        # Last, all others low or high at once, for an effect that needs several of them.
        for end in (0, -1):
            yield {**middle, **{axis.name: axis.samples[end] for axis in others}}

    def check(self, values: Mapping[str, object]) -> None:
        """Raise InvalidConfiguration for a value above its `at_most`.

        A limit that has no value yet, such as `dim` before it is solved, is skipped.
        """
        for axis in self.axes:
            limit, value = values.get(axis.at_most or ""), values.get(axis.name)
            if isinstance(limit, int | float) and isinstance(value, int | float) and value > limit:
                raise errors.InvalidConfiguration(
                    f"`{axis.name}` {value} is above `{axis.at_most}` {limit}"
                )

    def allows(self, values: Mapping[str, object]) -> bool:
        """Whether no value is above its `at_most`."""
        try:
            self.check(values)
        except errors.InvalidConfiguration:
            return False
        return True

    def point(self, values: Mapping[str, object]) -> tuple[float, ...]:
        """Return the point of the given values; raise ConfigError for one outside its axis."""
        return tuple(axis.position(values[axis.name]) for axis in self.axes)

    def encode(self) -> dict[str, object]:
        """Return the space as plain data, for the ledger."""
        axes = {axis.name: axis.encode() for axis in self.axes}
        record = _Recorded(
            model=self.model, name=self.name, axes=axes, fixed=self.fixed, sweep=self.sweep
        )
        return codec.encode(record)  # type: ignore[no-any-return]

    @classmethod
    def decode(cls, data: object) -> "SearchSpace":
        """Return the space that `encode` wrote; raise LedgerError for anything else."""
        record = codec.decode(_Recorded, data, "space", errors.LedgerError)
        axes = tuple(Axis.decode(name, axis) for name, axis in record.axes.items())
        return cls(
            model=record.model,
            name=record.name,
            axes=axes,
            fixed=record.fixed,
            sweep=record.sweep,
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class _Recorded:
    """A space as it stands in the ledger."""

    model: str
    name: str
    axes: Mapping[str, object]
    fixed: Mapping[str, object]
    sweep: Mapping[str, tuple[Value, ...]] = json_field(default_factory=dict, omit=True)


@dataclass(frozen=True, slots=True, kw_only=True)
class _Best:
    source: str
    values: Mapping[str, object]


@dataclass(frozen=True, slots=True, kw_only=True)
class _Shipped:
    """A space as it stands in spaces.toml; each value in `sweep` is a search of its own."""

    summary: str
    axes: Mapping[str, object]
    fixed: Mapping[str, object] = json_field(default_factory=dict, omit=True)
    sweep: Mapping[str, tuple[Value, ...]] = json_field(default_factory=dict, omit=True)
    best: _Best | None = json_field(default=None, omit=True)


def model_fields(values: Mapping[str, object]) -> dict[str, object]:
    """Return those values of axes and constants that are fields of the model."""
    return {name: value for name, value in values.items() if name != LEARNING_RATE}


def space_names(model: str) -> list[str]:
    """Return the names of the shipped spaces of a model."""
    return list(_shipped(model))


def load_space(
    model: str,
    name: str,
    *,
    axes: Mapping[str, object],
    fixed: Mapping[str, object],
    sweep: Mapping[str, object] | None = None,
    has_budget: bool = False,
) -> SearchSpace:
    """Return a shipped space, overridden by the user's own axes, constants and swept values.

    Under a parameter budget (`has_budget`) `dim` is solved, so a shipped axis `dim` is dropped.
    Raises NotFound for an unknown name, ConfigError for an axis that is also a constant, for a
    swept setting without a value, and for a sweep that cannot be made.
    """
    spaces = _shipped(model)
    if name not in spaces:
        known = f"spaces: {', '.join(spaces)}" if spaces else "spaces.toml has none for it"
        raise errors.NotFound(
            f"no search space named `{name}` for {model}",
            hint=errors.meant(name, spaces, known),
        )
    found = spaces[name]
    swept = read_sweep(
        sweep or {}, axes={**found.axes, **axes}, shipped=found.sweep, constants=fixed
    )
    _check_swept(model, name, found.sweep, {**axes, **fixed, **swept})
    # A constant of the user drops the shipped axis of that name.
    both = set(axes) & set(fixed)
    if both:
        raise errors.ConfigError(
            f"`{both.pop()}` is both a constant in `[model]` and an axis in `[search.axes]`"
        )
    shipped = {k: v for k, v in found.axes.items() if not (has_budget and k == "dim")}
    tables = {k: v for k, v in {**shipped, **axes}.items() if k not in {**fixed, **swept}}
    constants = {k: v for k, v in {**found.fixed, **fixed}.items() if k not in {**tables, **swept}}
    decoded, faults = [], errors.Faults()
    for axis, data in tables.items():
        with faults:
            decoded.append(Axis.decode(axis, data))
    faults.raise_any()
    return SearchSpace(
        model=model,
        name=name,
        summary=found.summary,
        is_shipped=not axes and {*fixed, *swept} <= set(found.sweep),
        axes=tuple(decoded),
        fixed=constants,
        sweep=swept,
        best=found.best.values if found.best else {},
        best_source=found.best.source if found.best else None,
    )


def shipped_space(model: str, name: str) -> SearchSpace:
    """Return a space as it ships, with the last value of each swept setting."""
    swept = {setting: values[-1] for setting, values in swept_values(model, name).items()}
    return load_space(model, name, axes={}, fixed=swept)


def swept_values(model: str, name: str) -> dict[str, tuple[Value, ...]]:
    """Return the settings of a shipped space that have to be held fixed or be swept."""
    return dict(_shipped(model)[name].sweep)


def _check_swept(
    model: str, name: str, sweep: Mapping[str, tuple[Value, ...]], given: Mapping[str, object]
) -> None:
    faults = errors.Faults()
    for setting, values in sweep.items():
        if setting not in given:
            fault = errors.ConfigError(
                f"space `{name}` of {model} is one search for each value of `{setting}`: "
                f"{', '.join(map(str, values))}",
                hint=f"add `{setting}={values[0]}` for one of them, or `--sweep {setting}` for all "
                "in one run",
            )
            faults.add(fault)
    faults.raise_any()


def _shipped(model: str) -> dict[str, _Shipped]:
    text = resources.files("elmanctl.space").joinpath("spaces.toml").read_text(encoding="utf-8")
    tables = tomllib.loads(text).get(model, {})
    return {
        name: codec.decode(_Shipped, table, f"{model}.{name}", errors.ConfigError)
        for name, table in tables.items()
    }
