"""What torch is told of the kernels of the matrix recurrence: to trace, differentiate, compile."""

import pytest
import torch
from torch import Tensor

from elmanctl.kernels.matrix_recurrence.sizes import choose_backend


@pytest.mark.parametrize(("n_key", "backend"), [(32, "triton"), (24, "torch")])
def test_choice_of_a_backend_breaks_no_graph(n_key: int, backend: str) -> None:
    def add_choice(x: Tensor) -> Tensor:
        chosen = choose_backend("auto", n_key=n_key, n_value=32, device="cuda", dtype="bfloat16")
        return x + (chosen == backend)

    compiled = torch.compile(add_choice, backend="eager", fullgraph=True)
    assert compiled(torch.zeros(())) == 1
