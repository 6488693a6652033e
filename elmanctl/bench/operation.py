"""Benchmarked operation: inputs, reference, implementations and sizes."""

from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from elmanctl.bench.floors import Counts
from elmanctl.bench.size import Size
from elmanctl.models.backends import BACKENDS

Results = Mapping[str, Tensor]
Run = Callable[..., Results]


class Draw:
    """Generator of random inputs, reproducible for a seed, device and version of torch."""

    def __init__(self, seed: int, *, dtype: torch.dtype, device: torch.device) -> None:
        self._generator = torch.Generator(device).manual_seed(seed)
        self._device = device
        self.dtype = dtype
        self.state_dtype = torch.promote_types(dtype, torch.float32)

    def vectors(self, *shape: int) -> Tensor:
        """Return normal random values in the dtype of queries, keys and values."""
        return self.states(*shape).to(self.dtype)

    def states(self, *shape: int) -> Tensor:
        """Return normal random values in the dtype of states and decays."""
        return torch.randn(
            shape, generator=self._generator, device=self._device, dtype=self.state_dtype
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class Path:
    """An implementation of an operation.

    `unavailable_reason` takes cpu or cuda and returns why it cannot run there, or None.
    `tolerances` maps each supported dtype to the maximum relative error |x - truth| / |truth|.
    `is_ours` marks a kernel that must not be slower than the path `torch`, `is_for_tests` one that
    no model uses.  `gradient_unavailable` returns why its gradients must not be used here, or None;
    such gradients are timed inside `for_timing` but not compared.
    """

    name: str
    run: Run
    unavailable_reason: Callable[[str], str | None]
    tolerances: Mapping[str, float]
    is_ours: bool = False
    is_for_tests: bool = False
    gradient_unavailable: Callable[[], str | None] = lambda: None
    for_timing: Callable[[], AbstractContextManager[None]] = nullcontext


@dataclass(frozen=True, slots=True, kw_only=True)
class Operation:
    """An operation with its inputs, reference implementation `truth` and implementations `paths`.

    `draw` takes a size, a Draw and whether to include an initial state, and returns the inputs by
    name.  `test_sizes` are compared with the reference on a GPU, `tiny_sizes` in Triton's
    interpreter, and `sizes` are measured.  `is_tested` is false for operations that our models do
    not use.
    """

    name: str
    summary: str
    draw: Callable[[Size, Draw, bool], dict[str, Tensor]]
    truth: Run
    paths: tuple[Path, ...]
    counts: Counts
    sizes: tuple[Size, ...]
    test_sizes: tuple[Size, ...]
    tiny_sizes: tuple[Size, ...]
    is_tested: bool = True
    dtype: str = "bfloat16"

    def path(self, name: str) -> Path:
        """Return an implementation by name."""
        return next(path for path in self.paths if path.name == name)


def labels(operation: Operation, path: Path, size: str, dtype: str) -> dict[str, Any]:
    """Return the fields that name what a row or a check is about."""
    return {
        "operation": operation.name,
        "path": path.name,
        "is_ours": path.is_ours,
        "size": size,
        "dtype": dtype,
    }


def plain_torch(run: Run, float32: float) -> Path:
    """Return the implementation in plain torch, with its tolerance in float32."""
    return Path(
        name="torch",
        run=run,
        unavailable_reason=BACKENDS["torch"].unavailable_reason,
        tolerances={"bfloat16": 6e-3, "float32": float32},
    )


def output_and_state(function: Callable[..., tuple[Tensor, Tensor]], **settings: Any) -> Run:
    """Wrap a function that returns output and final state into one that returns results by name."""

    def run(**inputs: Tensor) -> Results:
        output, state = function(**inputs, **settings)
        return {"output": output, "state": state}

    return run
