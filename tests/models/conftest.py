"""Equal draws for every test of a model, and asserts that say what they compared."""

import pytest
import torch

pytest.register_assert_rewrite("tests.models.layers")


@pytest.fixture(autouse=True)
def equal_draws() -> None:
    torch.manual_seed(0)
