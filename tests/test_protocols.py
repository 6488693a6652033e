"""Protocols: those that ship with elmanctl, and files of a user's own."""

from pathlib import Path

import pytest

from elmanctl.config import resolve
from elmanctl.errors import ConfigError, NotFound
from elmanctl.run.training import BUDGET_KINDS, Training
from elmanctl.settings import Settings
from elmanctl.sources import protocol_source, tables

NAMES = ("fair", "convergence", "study-2026-01", "study-2026-03", "study-100m", "tiny")


def settings(name: str, folder: Path, **flags: object) -> Settings:
    """Return the settings under a protocol that the command line names."""
    given = {"train.protocol": name, **{f"train.{key}": value for key, value in flags.items()}}
    return resolve(given, folder=folder, environment={}).settings


def test_shipped_protocols_are_these() -> None:
    assert tuple(tables("protocol")) == NAMES


@pytest.mark.parametrize("name", NAMES)
def test_shipped_protocol_is_in_force_whole(name: str, tmp_path: Path) -> None:
    train = settings(name, tmp_path).train
    assert train.protocol == name
    for key, value in protocol_source(name).values.items():
        assert getattr(train, key.removeprefix("train.")) == value
    train.check_together()


def test_fair_is_what_holds_without_a_name(tmp_path: Path) -> None:
    assert settings("fair", tmp_path).train == Training() == Settings().train
    # A protocol says all that it is about, so that it holds over a file that named another one.
    said = {key.removeprefix("train.") for key in protocol_source("fair").values}
    budgets = {*BUDGET_KINDS, "converge_window", "converge_cap_min"}
    for name in set(NAMES) - {"fair"}:
        keys = {key.removeprefix("train.") for key in protocol_source(name).values}
        assert keys - budgets <= said | {"batch_rule", "lr"}
        assert said - {"val_windows", "val_every", "batch"} <= keys


def test_what_else_is_set_overrides_a_protocol(tmp_path: Path) -> None:
    train = settings("study-2026-01", tmp_path, steps=7, sampler="windows").train
    assert (train.minutes, train.steps, train.sampler) == (None, 7, "windows")
    assert (train.objective, train.batch_rule) == ("last100", "study-2026-01")


def test_protocol_may_be_a_file(tmp_path: Path) -> None:
    path = tmp_path / "mine.toml"
    path.write_text("[train]\nholdout = 0.1\nsteps = 5\n")
    train = settings(str(path), tmp_path).train
    assert (train.holdout, train.steps, train.protocol) == (0.1, 5, str(path))


@pytest.mark.parametrize(
    ("text", "fault"),
    [
        ("[train]\nholdut = 0.1\n", r"line 2: unknown key `train.holdut`"),
        ("[train]\nholdout = 3\n", r"line 2: `train.holdout` must be at most 0.5"),
        ("[search]\nsigma = 0.2\n", r"line 2: `search.sigma` is no part of a protocol"),
        ("holdout = 0.1\n", r"unknown section `holdout`"),
        ("[train\n", r"cannot read"),
    ],
)
def test_wrong_protocol_file_is_refused_with_its_line(
    tmp_path: Path, text: str, fault: str
) -> None:
    path = tmp_path / "mine.toml"
    path.write_text(text)
    with pytest.raises(ConfigError, match=fault):
        settings(str(path), tmp_path)


@pytest.mark.parametrize("name", ["fare", "nothing.toml"])
def test_unknown_protocol_is_refused(tmp_path: Path, name: str) -> None:
    with pytest.raises(NotFound, match=name):
        settings(name, tmp_path)
