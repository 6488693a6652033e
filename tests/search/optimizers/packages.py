"""The packages of optimizers that an environment may lack."""

import pytest

from elmanctl.search.optimizers.registry import packages_of


def need_packages_of(name: str) -> None:
    """Skip the test of an optimizer whose packages are not here."""
    for package in packages_of(name):
        module = {"scikit-learn": "sklearn"}.get(package, package)
        pytest.importorskip(module, reason=f"`{package}` of the extra `optimizers` is missing")
