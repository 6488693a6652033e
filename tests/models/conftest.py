"""Equal draws for every test of a model, asserts that say what they compared, kernels that run."""

import pytest
import torch

from tests.kernels.interpreted import interpret_without_gpu

pytest.register_assert_rewrite("tests.models.layers")
interpret_without_gpu()


@pytest.fixture(autouse=True)
def equal_draws() -> None:
    torch.manual_seed(0)
