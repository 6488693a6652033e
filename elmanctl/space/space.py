"""Search spaces: axes, constants, and where a search may start."""

import tomllib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from importlib import resources
from typing import Any

from elmanctl.errors import ConfigError, Faults, InvalidConfiguration, NotFound, nearest
from elmanctl.space.axis import Axis
from elmanctl.space.coordinate import Coordinate

# The name of an axis or a constant that is no field of any model: the worker trains by it.
LEARNING_RATE = "lr"


@dataclass(frozen=True, slots=True, kw_only=True)
class SearchSpace:
    """Axes, constants, and where a search may start."""

    model: str
    name: str
    summary: str = ""
    is_shipped: bool = False
    axes: tuple[Axis, ...]
    fixed: Mapping[str, Any] = field(default_factory=dict)
    best: Mapping[str, Any] = field(default_factory=dict)
    best_source: str | None = None

    @property
    def coordinates(self) -> tuple[Coordinate, ...]:
        """The optimizer's coordinates, one an axis."""
        return tuple(axis.coordinate for axis in self.axes)

    @property
    def middle(self) -> tuple[float, ...]:
        """The point halfway along every axis."""
        return tuple(axis.middle for axis in self.axes)

    def values(self, point: Sequence[float]) -> dict[str, Any]:
        """Return the constants and the values of every axis at `point`."""
        return {
            **self.fixed,
            **{axis.name: axis.value(x) for axis, x in zip(self.axes, point, strict=True)},
        }

    def check(self, values: Mapping[str, Any]) -> None:
        """Raise InvalidConfiguration for a value above the one that limits it.

        A limit that is not among the values, as `dim` before it is solved, is not looked at.
        """
        for axis in self.axes:
            limit = values.get(axis.at_most) if axis.at_most else None
            if limit is not None and values[axis.name] > limit:
                raise InvalidConfiguration(
                    f"`{axis.name}` {values[axis.name]} is above `{axis.at_most}` {limit}"
                )

    def allows(self, values: Mapping[str, Any]) -> bool:
        """Whether no value is above the one that limits it."""
        try:
            self.check(values)
        except InvalidConfiguration:
            return False
        return True

    def point(self, values: Mapping[str, Any]) -> tuple[float, ...]:
        """Return the point of the given values; raise ConfigError when one lies outside."""
        return tuple(axis.position(values[axis.name]) for axis in self.axes)

    def encode(self) -> dict[str, Any]:
        """Return the space as plain data, for the ledger."""
        return {
            "model": self.model,
            "name": self.name,
            "axes": {axis.name: axis.encode() for axis in self.axes},
            "fixed": dict(self.fixed),
        }

    @classmethod
    def decode(cls, data: Mapping[str, Any]) -> "SearchSpace":
        """Return the space that `encode` wrote."""
        return cls(
            model=data["model"],
            name=data["name"],
            axes=tuple(Axis.decode(name, axis) for name, axis in data["axes"].items()),
            fixed=data["fixed"],
        )


def model_fields(values: Mapping[str, Any]) -> dict[str, Any]:
    """Return those values of axes and constants that are fields of the model."""
    return {name: value for name, value in values.items() if name != LEARNING_RATE}


def space_names(model: str) -> list[str]:
    """Return the names of the spaces that ship for a model."""
    return list(_shipped().get(model, {}))


def load_space(
    model: str,
    name: str,
    *,
    axes: Mapping[str, Any],
    fixed: Mapping[str, Any],
    has_budget: bool = False,
) -> SearchSpace:
    """Return a shipped space with the user's own axes and constants laid over it.

    Under a parameter budget (`has_budget`) `dim` is solved to meet it, so a shipped axis of that
    name is left out: nearly every point of it would be off the budget.

    Raises NotFound for an unknown name, ConfigError for an axis that is also a constant and for a
    swept setting that has no value.
    """
    spaces = _shipped().get(model, {})
    if name not in spaces:
        near = nearest(name, spaces)
        known = f"spaces: {', '.join(spaces)}" if spaces else "spaces.toml has none for it"
        raise NotFound(
            f"no search space named `{name}` for {model}",
            hint=f"did you mean `{near}`?" if near else known,
        )
    table = spaces[name]
    _check_swept(model, name, table.get("sweep", {}), {**axes, **fixed})
    # A constant set by the user takes its axis out of the search, unless the axis is theirs too.
    both = set(axes) & set(fixed)
    if both:
        raise ConfigError(
            f"`{both.pop()}` is both a constant in `[model]` and an axis in `[search.axes]`"
        )
    shipped = {k: v for k, v in table["axes"].items() if not (has_budget and k == "dim")}
    tables = {k: v for k, v in {**shipped, **axes}.items() if k not in fixed}
    constants = {k: v for k, v in {**table.get("fixed", {}), **fixed}.items() if k not in tables}
    decoded, faults = [], Faults()
    for axis, data in tables.items():
        with faults:
            decoded.append(Axis.decode(axis, data))
    faults.raise_any()
    best = table.get("best", {})
    return SearchSpace(
        model=model,
        name=name,
        summary=table["summary"],
        is_shipped=not axes and set(fixed) <= set(table.get("sweep", {})),
        axes=tuple(decoded),
        fixed=constants,
        best=best.get("values", {}),
        best_source=best.get("source"),
    )


def shipped_space(model: str, name: str) -> SearchSpace:
    """Return a space as it ships; of what is swept, the last value."""
    swept = {setting: values[-1] for setting, values in swept_values(model, name).items()}
    return load_space(model, name, axes={}, fixed=swept)


def swept_values(model: str, name: str) -> dict[str, list[Any]]:
    """Return the settings of a shipped space of which each value is a search of its own."""
    return dict(_shipped()[model][name].get("sweep", {}))


def _check_swept(
    model: str, name: str, sweep: Mapping[str, list[Any]], given: Mapping[str, Any]
) -> None:
    faults = Faults()
    for setting, values in sweep.items():
        if setting not in given:
            fault = ConfigError(
                f"space `{name}` of {model} is one search for each value of `{setting}`: "
                f"{', '.join(map(str, values))}",
                hint=f"add e.g. `{setting}={values[0]}` to the command, or set it in `[model]`",
            )
            faults.add(fault)
    faults.raise_any()


def _shipped() -> dict[str, Any]:
    text = resources.files("elmanctl.space").joinpath("spaces.toml").read_text(encoding="utf-8")
    return tomllib.loads(text)
