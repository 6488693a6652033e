"""Axes and spaces as a user writes them, and the ones that ship."""

from typing import Any

import pytest

from elmanctl.errors import ConfigError, NotFound
from elmanctl.models.registry import FAMILIES
from elmanctl.settings import Settings
from elmanctl.space.audit import audit_space, refuse_dead_axes
from elmanctl.space.axis import Axis
from elmanctl.space.preflight import check_space
from elmanctl.space.space import SearchSpace, load_space, shipped_space, space_names

SPACES = [(model, name) for model in FAMILIES for name in space_names(model)]

# Nobody has searched these.
WITHOUT_BEST = {("e87", "3d"), ("e0", "3d")}


def shipped(name: str, **changes: Any) -> SearchSpace:
    return load_space("e88", name, axes=changes.get("axes", {}), fixed=changes.get("fixed", {}))


@pytest.mark.parametrize(("model", "name"), SPACES)
def test_every_value_of_a_shipped_space_builds_a_model(model: str, name: str) -> None:
    space = shipped_space(model, name)
    check_space(space, Settings(), "slurm")
    assert space.axes


@pytest.mark.parametrize(("model", "name"), SPACES)
def test_known_best_of_a_shipped_space_lies_in_it_and_names_its_source(
    model: str, name: str
) -> None:
    space = shipped_space(model, name)
    if not space.best:
        assert (model, name) in WITHOUT_BEST
        return
    values = space.values(space.point(space.best))
    assert {axis.name: values[axis.name] for axis in space.axes} == pytest.approx(dict(space.best))
    assert bool(space.best_source) == ((model, name) not in WITHOUT_BEST)


@pytest.mark.parametrize(("model", "name"), SPACES)
def test_space_in_the_ledger_decodes_to_the_same_axes_and_constants(model: str, name: str) -> None:
    space = shipped_space(model, name)
    again = SearchSpace.decode(space.encode())
    assert (again.axes, again.fixed, again.coordinates) == (
        space.axes,
        space.fixed,
        space.coordinates,
    )


def test_every_kind_of_axis_reaches_both_its_ends() -> None:
    tables: dict[str, dict[str, Any]] = {
        "heads": {"kind": "int", "low": 3, "high": 17, "multiple_of": 4},
        "state": {"kind": "choice", "values": [16, 32, 48]},
        "gate": {"kind": "bool"},
        "expansion": {"kind": "float", "low": 0.5, "high": 2.0},
        "lr": {"kind": "log", "low": 1e-4, "high": 1e-2},
    }
    ends = {}
    for name, table in tables.items():
        axis = Axis.decode(name, table)
        low, high = axis.coordinate.low, axis.coordinate.high
        ends[name] = (axis.value(low), axis.value(high))
    # A logarithm and its exponential may differ from the number in the last digit.
    assert ends.pop("lr") == pytest.approx((1e-4, 1e-2))
    assert ends == {
        "heads": (4, 16),
        "state": (16, 48),
        "gate": (False, True),
        "expansion": (0.5, 2.0),
    }


def test_middle_of_a_logarithmic_axis_is_its_geometric_mean() -> None:
    axis = Axis.decode("lr", {"kind": "log", "low": 1e-4, "high": 1e-2})
    assert axis.value(axis.middle) == pytest.approx(1e-3)


def test_integer_axis_with_a_step_has_only_multiples_of_it() -> None:
    axis = Axis.decode("heads", {"kind": "int", "low": 10, "high": 33, "multiple_of": 8})
    assert tuple(axis.levels or ()) == (16, 24, 32)
    assert axis.describe() == "10 to 33, multiples of 8"


BAD_AXES: list[tuple[Any, str]] = [
    (3, "must be a table"),
    ({}, "unknown kind `None`"),
    ({"kind": ["int"]}, "unknown kind"),
    ({"kind": "inte", "low": 1, "high": 4}, "unknown kind `inte`"),
    ({"kind": "int", "low": 1}, "lacks `high`"),
    ({"kind": "int", "low": 1, "high": 4, "values": [1]}, "has no `values`"),
    ({"kind": "int", "low": 4, "high": 4}, "low must be under high"),
    ({"kind": "int", "low": 1.5, "high": 4}, "whole numbers"),
    ({"kind": "int", "low": True, "high": 4}, "are numbers"),
    ({"kind": "int", "low": "1", "high": 4}, "are numbers"),
    ({"kind": "int", "low": 1, "high": 9, "multiple_of": 0}, "at least 1"),
    ({"kind": "int", "low": 1, "high": 9, "multiple_of": 8}, "two or more different values"),
    ({"kind": "float", "low": 0.0, "high": float("inf")}, "finite"),
    ({"kind": "float", "low": float("nan"), "high": 1.0}, "finite"),
    ({"kind": "log", "low": 0.0, "high": 1.0}, "starts above 0"),
    ({"kind": "choice", "values": [16]}, "two or more different values"),
    ({"kind": "choice", "values": [16, 16]}, "two or more different values"),
    ({"kind": "choice", "values": "ab"}, "values must be a list"),
    ({"kind": "choice", "values": [[1], [2]]}, "numbers, words"),
]


@pytest.mark.parametrize(("table", "message"), BAD_AXES)
def test_axis_that_cannot_be_searched_is_refused_by_name(table: Any, message: str) -> None:
    with pytest.raises(ConfigError, match="axis `heads`") as caught:
        Axis.decode("heads", table)
    assert message in caught.value.message


def test_misspelled_kind_of_axis_is_answered_with_the_nearest() -> None:
    with pytest.raises(ConfigError) as caught:
        Axis.decode("heads", {"kind": "chioce", "values": [1, 2]})
    assert caught.value.hint == "did you mean `choice`?"


@pytest.mark.parametrize(
    ("table", "value"),
    [
        ({"kind": "int", "low": 1, "high": 4}, 5),
        ({"kind": "choice", "values": [16, 32]}, 24),
        ({"kind": "float", "low": 0.0, "high": 1.0}, 1.5),
        ({"kind": "log", "low": 1e-4, "high": 1e-2}, 1.0),
        ({"kind": "float", "low": 0.0, "high": 1.0}, "word"),
    ],
)
def test_value_outside_an_axis_has_no_position(table: dict[str, Any], value: object) -> None:
    with pytest.raises(ConfigError, match="does not reach") as caught:
        Axis.decode("heads", table).position(value)
    assert caught.value.hint


def test_users_axis_replaces_the_shipped_one_and_new_ones_are_added() -> None:
    axes = {
        "n_heads": {"kind": "int", "low": 4, "high": 6},
        "expansion": {"kind": "float", "low": 0.5, "high": 1.0},
    }
    space = shipped("3d", axes=axes)
    found = {axis.name: axis for axis in space.axes}
    assert tuple(found["n_heads"].levels or ()) == (4, 5, 6)
    assert list(found) == ["n_heads", "n_state", "depth", "expansion"]
    assert "expansion" not in space.fixed


def test_constant_of_the_user_takes_its_axis_out_of_the_search() -> None:
    space = shipped("3d", fixed={"n_state": 32})
    assert [axis.name for axis in space.axes] == ["n_heads", "depth"]
    assert space.values(space.middle)["n_state"] == 32


def test_axis_that_is_also_a_constant_is_refused() -> None:
    axes = {"n_state": {"kind": "choice", "values": [16, 32]}}
    with pytest.raises(ConfigError, match="both a constant"):
        shipped("3d", axes=axes, fixed={"n_state": 32})


def test_unknown_space_is_answered_with_the_nearest() -> None:
    with pytest.raises(NotFound) as caught:
        shipped("tyni")
    assert caught.value.hint == "did you mean `tiny`?"


@pytest.mark.parametrize(("model", "name"), SPACES)
def test_no_shipped_space_has_a_dead_axis(model: str, name: str) -> None:
    space = shipped_space(model, name)
    effects = audit_space(space, multiple_of=8 if name == "tiny" else 128)
    refuse_dead_axes(effects)
    assert set(effects) == {axis.name for axis in space.axes}
