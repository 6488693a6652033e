"""Checks of a space before its first point is drawn."""

from typing import Any

import pytest

from elmanctl.errors import ConfigError, InvalidConfiguration
from elmanctl.run.training import Training
from elmanctl.search.limits import check_learning_rates
from elmanctl.settings import (
    SearchSettings,
    Settings,
)
from elmanctl.space.axis import Axis
from elmanctl.space.candidates import CandidateBuilder, ask_candidates
from elmanctl.space.preflight import check_space
from elmanctl.space.space import load_space
from tests.search.test_preflight import space_of
from tests.space.test_candidates import Scripted


@pytest.mark.parametrize(
    ("model", "axis", "table", "message"),
    [
        ("e88", "n_state", {"kind": "choice", "values": [16, 20, 33]}, "axis `n_state` at 33"),
        ("e88", "gate_activation", {"kind": "choice", "values": ["silu", "relu"]}, "at relu"),
        ("mamba2", "head_dim", {"kind": "pow2", "low": 32, "high": 256}, "`head_dim` at 256"),
    ],
)
def test_value_that_no_model_has_is_refused_by_axis_and_value(
    model: str, axis: str, table: dict[str, Any], message: str
) -> None:
    space = load_space(model, "3d", axes={axis: table}, fixed={})
    with pytest.raises(InvalidConfiguration, match=message) as caught:
        check_space(space, Settings(), "slurm")
    assert caught.value.hint


def test_value_that_the_named_backend_never_computes_is_refused_by_axis_and_value() -> None:
    # False is the middle of the axis, too, and `depth` beside it is not to blame.
    axes = {"depth": {"kind": "int", "low": 1, "high": 3}, "reset_after": {"kind": "bool"}}
    space = space_of("gru", axes, {})
    with pytest.raises(InvalidConfiguration, match=r"axis `reset_after` at False: .*cuDNN"):
        check_space(space, Settings(train=Training(backend="cudnn")), "slurm")
    check_space(space, Settings(), "slurm")


def test_value_that_runs_with_some_values_of_another_axis_is_left_to_the_points() -> None:
    # 33 values cannot be divided among 2 heads of 16 keys; with 32 keys there are 66.
    axes = {
        "n_state": {"kind": "choice", "values": [16, 32]},
        "expansion": {"kind": "choice", "values": [1.0, 1.03125]},
    }
    space = space_of("e88", axes, {"dim": 32, "depth": 1, "n_heads": 2})
    check_space(space, Settings(), "slurm")
    builder = CandidateBuilder(space, Settings(search=SearchSettings(params=None)), "slurm")
    assert builder.build((1.0, 1.0)).config["expansion"] == 1.03125
    with pytest.raises(InvalidConfiguration, match="cannot be divided evenly"):
        builder.build((0.0, 1.0))


def test_constant_that_no_model_has_is_not_blamed_on_an_axis() -> None:
    space = load_space("e88", "3d", axes={}, fixed={"n_state": 33})
    with pytest.raises(InvalidConfiguration, match=r"^n_state=33 is not supported"):
        check_space(space, Settings(), "slurm")


def test_axis_above_its_limit_refuses_the_point_and_not_the_space() -> None:
    axes = {
        "n_blocks": {"kind": "choice", "values": [2, 8]},
        "top_k": {"kind": "int", "low": 1, "high": 8, "at_most": "n_blocks"},
    }
    space = space_of("e87", axes, {"dim": 32, "depth": 1, "n_state": 8})
    check_space(space, Settings(), "slurm")
    builder = CandidateBuilder(space, Settings(search=SearchSettings(params=None)), "slurm")
    assert builder.build((1.0, 7.0)).config["top_k"] == 8
    with pytest.raises(InvalidConfiguration, match="`top_k` 8 is above `n_blocks` 2"):
        builder.build((0.0, 7.0))
    optimizer = Scripted([(0.0, 7.0), (1.0, 7.0), (0.0, 2.0), (0.0, 1.0)])
    built, refused = ask_candidates(optimizer.ask, builder, 2)
    assert [(c.config["n_blocks"], c.config["top_k"]) for c in built] == [(8, 8), (2, 2)]
    assert refused == 2


def test_axis_may_be_limited_by_a_constant() -> None:
    axes = {"top_k": {"kind": "int", "low": 1, "high": 8, "at_most": "n_blocks"}}
    space = space_of("e87", axes, {"dim": 32, "depth": 1, "n_state": 8, "n_blocks": 4})
    check_space(space, Settings(), "slurm")
    assert space.allows(space.values((3.0,)))
    assert not space.allows(space.values((4.0,)))


def test_power_of_two_axis_has_the_powers_in_its_range_and_survives_the_ledger() -> None:
    axis = Axis.decode("head_dim", {"kind": "pow2", "low": 10, "high": 128})
    assert axis.levels == (16, 32, 64, 128)
    assert axis.describe() == "10 to 128, powers of two"
    low, high = axis.coordinate.low, axis.coordinate.high
    assert (axis.value(low), axis.value(high)) == (16, 128)
    assert axis.value(axis.position(64)) == 64
    assert Axis.decode("head_dim", axis.encode()) == axis
    with pytest.raises(ConfigError, match="does not reach `48`"):
        axis.position(48)
    with pytest.raises(ConfigError, match="two or more different values"):
        Axis.decode("head_dim", {"kind": "pow2", "low": 9, "high": 31})


NO_RATE = r"`train\.lr` must be (above 0|at most 10)|`lr` is a number, not"


@pytest.mark.parametrize(
    "table",
    [
        {"kind": "float", "low": 0.0, "high": 1e-2},
        {"kind": "int", "low": 1, "high": 11},
        {"kind": "choice", "values": [-1e-3, 1e-3]},
        {"kind": "choice", "values": ["small", "large"]},
        {"kind": "bool"},
    ],
)
def test_learning_rates_that_are_none_are_refused_before_the_search(table: dict[str, Any]) -> None:
    space = load_space("e88", "tiny", axes={"lr": table}, fixed={})
    with pytest.raises(ConfigError, match=NO_RATE):
        check_learning_rates(space)


@pytest.mark.parametrize("lr", [0, -1e-3, float("nan"), float("inf"), "fast", True])
def test_learning_rate_that_is_held_fixed_is_checked_too(lr: object) -> None:
    space = load_space("e88", "tiny", axes={}, fixed={"lr": lr})
    with pytest.raises(ConfigError, match=NO_RATE):
        check_learning_rates(space)


@pytest.mark.parametrize(
    ("limit", "message"),
    [
        ("n_stat", "e88 has no setting `n_stat` to be limited by"),
        ("gate_activation", "at_most names `gate_activation`, which is no number"),
        ("use_gate", "at_most names `use_gate`, which is no number"),
    ],
)
def test_limit_that_is_no_number_of_the_model_is_refused(limit: str, message: str) -> None:
    axes = {"n_heads": {"kind": "int", "low": 2, "high": 8, "at_most": limit}}
    space = load_space("e88", "tiny", axes=axes, fixed={})
    with pytest.raises(ConfigError, match=message):
        check_space(space, Settings(), "local")


def test_axis_limited_by_the_dim_that_is_solved_is_held_to_it() -> None:
    axes = {"n_heads": {"kind": "int", "low": 2, "high": 512, "at_most": "dim"}}
    settings = Settings(
        search=SearchSettings(params="100K", tolerance=0.5, multiple_of=8),
        train=Training(steps=1),
    )
    space = load_space("e88", "tiny", axes=axes, fixed={"n_state": 4, "depth": 1, "lr": 1e-2})
    check_space(space, settings, "local")
    builder = CandidateBuilder(space, settings, "local")
    assert builder.build((6.0,)).config["n_heads"] == 8
    with pytest.raises(InvalidConfiguration, match="`n_heads` 202 is above `dim`"):
        builder.build((200.0,))
