"""Kernels run in Triton's interpreter where there is no GPU, and are compiled beside the tests."""

import pytest

from tests.kernels.compilation import compilation, compilation_at_work
from tests.kernels.interpreted import interpret_without_gpu

__all__ = ["compilation", "compilation_at_work"]

interpret_without_gpu()


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Put the tests that wait for a compilation last, so that others run meanwhile."""
    items.sort(key=lambda item: "compilation" in getattr(item, "fixturenames", ()))
