"""The dead axes of the study, each rebuilt, and the audit that must catch them."""

import sys
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Annotated, Any, Literal

import pytest
import torch
from torch import Tensor, nn

from elmanctl.constants import INSTALL_TRAIN
from elmanctl.errors import EnvironmentNotReady, InvalidConfiguration
from elmanctl.models import registry
from elmanctl.models.config import Between, FamilyConfig
from elmanctl.models.registry import Family
from elmanctl.space.audit import audit_space, refuse_dead_axes
from elmanctl.space.axis import Axis
from elmanctl.space.space import SearchSpace, load_space

STUDY = {"variant": "study-2026-01"}


def make_space(model: str, axes: dict[str, Any], fixed: dict[str, Any]) -> SearchSpace:
    decoded = tuple(Axis.decode(name, table) for name, table in axes.items())
    return SearchSpace(model=model, name="test", axes=decoded, fixed=fixed)


@pytest.mark.parametrize(
    ("model", "space", "dead"),
    [
        ("fla-gdn", "3d", "n_heads"),
        ("fla-gdn", "6d", "use_conv"),
        ("transformer", "3d", "expansion"),
        ("transformer", "4d", "head_dim"),
        ("mingru", "4d", "use_conv"),
        ("mingru", "4d", "d_conv"),
        ("minlstm", "4d", "use_conv"),
        ("e42", "4d", "spectral_radius"),
    ],
)
def test_axis_that_the_study_never_passed_on_is_caught_in_its_variant(
    model: str, space: str, dead: str
) -> None:
    as_it_ran = load_space(model, space, axes={}, fixed=STUDY)
    assert audit_space(as_it_ran)[dead] == "none"
    with pytest.raises(InvalidConfiguration, match=f"`{dead}`.* changes neither"):
        refuse_dead_axes(audit_space(as_it_ran))
    assert audit_space(load_space(model, space, axes={}, fixed={}))[dead] != "none"


@pytest.mark.parametrize(
    ("variant", "effect"), [("study-2026-01", "none"), ("documented", "output")]
)
def test_linear_state_that_no_kernel_read_is_caught(variant: str, effect: str) -> None:
    fixed = {"n_heads": 2, "n_state": 8, "depth": 1, "variant": variant}
    space = make_space("e88", {"linear_state": {"kind": "bool"}}, fixed)
    assert audit_space(space) == {"linear_state": effect}


@dataclass(frozen=True, slots=True, kw_only=True)
class DeafConfig(FamilyConfig):
    """A Mamba2 whose state size and expansion stop at the command line."""

    level: Literal["deaf"] = "deaf"
    d_state: Annotated[int, Between(1, 1_024)] = 64
    expand: Annotated[int, Between(1, 8)] = 2
    leak: Annotated[float, Between(0.0, 1.0)] = 0.5

    def layer_parameters(self) -> int:
        """What was built whatever the settings said."""
        return self.dim * self.dim

    def layer_state_size(self, seq_len: int) -> int:
        """None."""
        return 0

    def layer_flops(self, seq_len: int) -> int:
        """One product."""
        return 2 * self.dim * self.dim


class DeafLayer(nn.Module):
    """A layer that hears of `leak` alone."""

    def __init__(self, config: DeafConfig, backend: str) -> None:
        super().__init__()
        self.leak = config.leak
        # Zero at the start, as the output projections of some families are.
        self.weight = nn.Parameter(torch.zeros(config.dim, config.dim))

    def forward(self, x: Tensor, state: None = None) -> tuple[Tensor, None]:
        """Return y [B, T, dim] of x."""
        return torch.nn.functional.leaky_relu(x @ self.weight, self.leak), None


@dataclass(frozen=True, slots=True, kw_only=True)
class BoastfulConfig(DeafConfig):
    """One that declares parameters which the layer does not have."""

    level: Literal["deaf"] = "deaf"

    def layer_parameters(self) -> int:
        """What the settings would make it."""
        return self.dim * self.dim + self.d_state


@dataclass(frozen=True, slots=True, kw_only=True)
class ForgetfulConfig(DeafConfig):
    """One that declares a state which the layer does not carry."""

    level: Literal["deaf"] = "deaf"

    def layer_state_size(self, seq_len: int) -> int:
        """What the settings would make it."""
        return self.d_state


@pytest.fixture
def deaf_family(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    register_deaf(monkeypatch, "DeafConfig")
    yield


def register_deaf(monkeypatch: pytest.MonkeyPatch, config: str) -> None:
    family = Family(
        name="deaf",
        summary="A model that does not listen",
        config=f"{__name__}:{config}",
        layer=f"{__name__}:DeafLayer",
    )
    assert isinstance(registry.FAMILIES, dict)
    monkeypatch.setitem(registry.FAMILIES, "deaf", family)
    monkeypatch.setattr(
        registry,
        "_load",
        lambda path: globals()[path.partition(":")[2]] if path.startswith(__name__) else load(path),
    )


load = registry._load

MAMBA_AXES = {
    "d_state": {"kind": "int", "low": 64, "high": 256, "multiple_of": 16},
    "expand": {"kind": "int", "low": 1, "high": 3},
    "depth": {"kind": "int", "low": 16, "high": 40},
}


def test_state_size_and_expansion_that_stop_at_the_command_line_are_caught(
    deaf_family: None,
) -> None:
    space = make_space("deaf", MAMBA_AXES, {})
    assert audit_space(space) == {"d_state": "none", "expand": "none", "depth": "parameters"}
    with pytest.raises(InvalidConfiguration, match="`d_state` or `expand`"):
        refuse_dead_axes(audit_space(space))
    real = make_space("mamba2", MAMBA_AXES, {})
    assert audit_space(real) == dict.fromkeys(("d_state", "expand", "depth"), "parameters")


def test_parameters_that_are_told_and_not_built_are_caught(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    register_deaf(monkeypatch, "BoastfulConfig")
    with pytest.raises(InvalidConfiguration, match="and its configuration declares") as caught:
        audit_space(make_space("deaf", MAMBA_AXES, {}))
    assert caught.value.hint is not None and "layer_parameters" in caught.value.hint


def test_state_that_is_told_and_not_carried_does_not_make_an_axis_alive(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    register_deaf(monkeypatch, "ForgetfulConfig")
    found = audit_space(make_space("deaf", MAMBA_AXES, {}))
    assert found == {"d_state": "none", "expand": "none", "depth": "parameters"}


def test_axis_behind_a_weight_that_starts_at_zero_is_alive(deaf_family: None) -> None:
    space = make_space("deaf", {"leak": {"kind": "float", "low": 0.0, "high": 1.0}}, {"depth": 1})
    assert audit_space(space) == {"leak": "output"}


def test_switch_that_matters_where_another_is_on_is_alive() -> None:
    axes = {"use_conv": {"kind": "bool"}, "d_conv": {"kind": "int", "low": 2, "high": 4}}
    fixed = {"n_heads": 2, "n_state": 8, "depth": 1}
    assert audit_space(make_space("e88", axes, fixed))["d_conv"] == "parameters"
    axes.pop("use_conv")
    assert audit_space(make_space("e88", axes, fixed)) == {"d_conv": "none"}


def test_gate_activation_without_a_gate_is_dead() -> None:
    axes = {"gate_activation": {"kind": "choice", "values": ["silu", "sigmoid"]}}
    fixed = {"n_heads": 2, "n_state": 8, "depth": 1}
    assert audit_space(make_space("e88", axes, fixed)) == {"gate_activation": "output"}
    assert audit_space(make_space("e88", axes, {**fixed, "use_gate": False})) == {
        "gate_activation": "none"
    }


def test_number_that_changes_the_state_alone_is_alive_by_its_state() -> None:
    axes = {"top_k": {"kind": "int", "low": 1, "high": 4}}
    fixed = {"n_heads": 5, "n_state": 16, "depth": 1}
    assert audit_space(make_space("mom-e88", axes, fixed | STUDY)) == {"top_k": "state"}
    assert audit_space(make_space("mom-e88", axes, fixed)) == {"top_k": "output"}


def test_dropout_is_seen_although_it_acts_in_training_only() -> None:
    axes = {"dropout": {"kind": "float", "low": 0.0, "high": 0.15}}
    assert audit_space(make_space("transformer", axes, {"depth": 1})) == {"dropout": "output"}


def test_learning_rate_reaches_training_and_not_the_model() -> None:
    axes = {"lr": {"kind": "log", "low": 1e-4, "high": 1e-2}}
    assert audit_space(make_space("gru", axes, {"depth": 1})) == {"lr": "training"}


def test_without_torch_sizes_are_audited_and_the_rest_is_an_error(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setitem(sys.modules, "torch", None)
    assert set(audit_space(load_space("e88", "3d", axes={}, fixed={})).values()) == {"parameters"}
    axes = {"top_k": {"kind": "int", "low": 1, "high": 4}}
    space = make_space("mom-e88", axes, {"n_heads": 5, "n_state": 16, "depth": 1})
    with pytest.raises(EnvironmentNotReady, match="`top_k` changes no size") as caught:
        audit_space(space)
    assert caught.value.hint is not None and INSTALL_TRAIN in caught.value.hint
    shipped = load_space("mom-e88", "3d", axes={}, fixed={})
    assert audit_space(shipped)["top_k"] == "tested"
    changed = load_space("mom-e88", "3d", axes={}, fixed={"use_gate": False})
    with pytest.raises(EnvironmentNotReady):
        audit_space(changed)


@pytest.mark.parametrize(
    ("model", "axes", "fixed", "reason"),
    [
        (
            "e88",
            {"n_heads": {"kind": "log", "low": 16, "high": 64}},
            {"n_state": 16, "depth": 1},
            "axis `n_heads`: no model can be built along it.*must be a whole number",
        ),
        (
            "mom-e88",
            {"top_k": {"kind": "int", "low": 41, "high": 60, "at_most": "n_heads"}},
            {"n_heads": 40, "n_state": 16, "depth": 1},
            "axis `top_k`: no model can be built along it",
        ),
    ],
)
def test_axis_along_which_nothing_can_be_built_is_not_called_dead(
    model: str, axes: dict[str, Any], fixed: dict[str, Any], reason: str
) -> None:
    with pytest.raises(InvalidConfiguration, match=reason):
        audit_space(make_space(model, axes, fixed))


def test_axis_of_the_loss_that_is_not_reported_reaches_training() -> None:
    axes = {"balance_weight": {"kind": "log", "low": 1e-3, "high": 0.5}}
    fixed = {"n_heads": 5, "n_state": 16, "top_k": 2, "depth": 1}
    assert audit_space(make_space("mom-e88", axes, fixed)) == {"balance_weight": "training"}
    assert audit_space(make_space("mom-e88", axes, fixed | STUDY)) == {"balance_weight": "none"}
