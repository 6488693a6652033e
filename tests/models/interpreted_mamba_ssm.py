"""The kernels of mamba-ssm in Triton's interpreter, on a machine without a GPU.

`python -m tests.models.interpreted_mamba_ssm` prints, as JSON, how far each result of the backend
`mamba-ssm` is from plain torch.  It is a program because the interpreter must be chosen before
Triton is imported, and because what it replaces in torch and Triton would harm other tests.
"""

import contextlib
import json
import os
import types
from typing import Any

os.environ["TRITON_INTERPRET"] = "1"

import torch
import triton

from elmanctl.kernels.state_space_dual.naive import naive_state_space_dual
from elmanctl.models import mamba_ssm
from tests.kernels.test_state_space_dual import as_float64, draw, results

CASES: dict[str, dict[str, Any]] = {
    "two chunks, the second not full, from a state": {"length": 20},
    "one chunk, not full": {"length": 7, "without": ("initial_state",)},
}


class SmallestBlocks:
    """A kernel with its smallest blocks, instead of those that are fastest on a GPU."""

    def __init__(self, kernel: Any, configs: list[Any]) -> None:
        self.kernel, self.configs = kernel, configs
        self.best_config = min(configs, key=lambda config: sum(config.kwargs.values()))

    def __getitem__(self, grid: Any) -> Any:
        def run(*arguments: Any, **options: Any) -> Any:
            told = {**options, **self.best_config.kwargs}
            if self.best_config.pre_hook:
                # It clears what the kernel adds to.
                named = dict(zip(self.kernel.arg_names, arguments, strict=False))
                self.best_config.pre_hook(named | told)
            return self.kernel[grid(told)](*arguments, **told)

        return run


def pretend_to_have_a_gpu() -> None:
    """Let the package launch its kernels on tensors of the CPU."""
    triton.autotune = lambda configs, **_: lambda kernel: SmallestBlocks(kernel, configs)
    cuda: Any = torch.cuda
    cuda.device = lambda index: contextlib.nullcontext()
    cuda.get_device_properties = lambda device: types.SimpleNamespace(multi_processor_count=2)
    tensor: Any = torch.Tensor
    tensor.is_cuda = True
    mamba_ssm.CHUNK = 16


def errors(**case: Any) -> dict[str, float]:
    """Return the relative error of every output and gradient against the loop in float64."""
    arguments = draw(**case, batch=1, heads=2, width=8, dtype=torch.float32)
    found = results(mamba_ssm.scan_on_cuda, arguments)
    truth = results(naive_state_space_dual, as_float64(arguments))
    return {
        name: ((found[name] - expected).norm() / expected.norm()).item()
        for name, expected in truth.items()
    }


if __name__ == "__main__":
    pretend_to_have_a_gpu()
    print(json.dumps({name: errors(**case) for name, case in CASES.items()}))
