"""Optimizers by name: what each needs, and what is said when it is missing."""

import importlib.util
from importlib import metadata

import pytest

from elmanctl.constants import INSTALL_OPTIMIZERS, INSTALL_TRAIN, OPTIMIZERS
from elmanctl.errors import EnvironmentNotReady, UsageError
from elmanctl.search.optimizers.registry import packages_of, start_optimizer
from tests.search.optimizers.problems import CASES, problem


def test_every_word_of_the_setting_is_an_optimizer() -> None:
    for name in OPTIMIZERS:
        assert "numpy" in packages_of(name)


@pytest.mark.parametrize(
    ("name", "missing", "hint"),
    [
        ("catcma", "cmaes", INSTALL_OPTIMIZERS),
        ("tpe", "optuna", INSTALL_OPTIMIZERS),
        ("gp", "scikit-learn", INSTALL_OPTIMIZERS),
        ("sobol", "scipy", INSTALL_OPTIMIZERS),
        ("gp-optuna", "torch", INSTALL_TRAIN),
    ],
)
def test_missing_package_is_named_with_what_installs_it(
    name: str, missing: str, hint: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    module = missing.replace("scikit-learn", "sklearn")
    monkeypatch.setattr(
        importlib.util, "find_spec", lambda package: None if package == module else True
    )
    with pytest.raises(EnvironmentNotReady, match=f"`{missing}` is not installed") as caught:
        start_optimizer(name, problem(CASES["three integers"]))
    assert caught.value.hint == hint
    assert start_optimizer("random", problem(CASES["three integers"]))


def test_packages_are_named_as_they_are_installed() -> None:
    """Their versions go into the ledger."""
    for package in {package for name in OPTIMIZERS for package in packages_of(name)}:
        if importlib.util.find_spec(package.replace("scikit-learn", "sklearn")) is not None:
            assert metadata.version(package)


def test_unknown_name_is_refused_with_the_nearest() -> None:
    with pytest.raises(UsageError, match="no optimizer named `catcm`") as caught:
        start_optimizer("catcm", problem(CASES["three integers"]))
    assert "catcma" in str(caught.value.hint)
