"""Kernels run in Triton's interpreter where there is no GPU, and are compiled beside the tests."""

import pytest

from tests.kernels.compilation import compilation, compilation_at_work
from tests.kernels.interpreted import interpret_without_gpu

__all__ = ["compilation", "compilation_at_work"]

interpret_without_gpu()


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Put the tests that wait for a compilation last, so that others run meanwhile.

    Behind them come those that execute kernels: most of these are compiled by then.
    """

    def place(item: pytest.Item) -> int:
        names = getattr(item, "fixturenames", ())
        return 2 if "machines" in names else "compilation" in names

    items.sort(key=place)
