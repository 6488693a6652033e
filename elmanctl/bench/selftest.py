"""Whether the implementations of an operation compute it: each against its time loop in float64."""

import logging
import math
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from typing import Any
from zlib import crc32

import torch
from torch import Tensor

from elmanctl.bench.foreign import quiet
from elmanctl.bench.operation import Draw, Operation, Path
from elmanctl.bench.operations import OPERATIONS
from elmanctl.bench.size import Size
from elmanctl.bench.timing import measure
from elmanctl.errors import InvalidConfiguration

logger = logging.getLogger(__name__)

_SECONDS_A_TIMING = {"cuda": 0.2, "cpu": 0.02}


@dataclass(frozen=True, slots=True, kw_only=True)
class Check:
    """One implementation at one size and dtype, held to the truth.

    `status` is ok, wrong (too far from the truth), failed (it raised) or not run.  `error` is the
    greatest of |x - truth| / |truth| over outputs and gradients, `worst` the name of that x,
    `allowed` what may be; `reason` says why nothing was compared, or how it failed.
    """

    operation: str
    path: str
    is_ours: bool
    size: str
    dtype: str
    status: str
    error: float | None = None
    worst: str | None = None
    allowed: float | None = None
    forward_ms: float | None = None
    forward_backward_ms: float | None = None
    reason: str | None = None

    @property
    def is_wrong(self) -> bool:
        """Whether results were wrong, or there were none where there should have been."""
        return self.status in ("wrong", "failed")

    def encode(self) -> dict[str, Any]:
        """Return it as plain data; an error that is not a number is None."""
        data = asdict(self)
        if self.error is not None and not math.isfinite(self.error):
            data["error"] = None
        return data


def check_all(device: torch.device) -> Iterator[Check]:
    """Check every implementation that models use, at every size of its tests and in every dtype."""
    for operation in OPERATIONS:
        if not operation.is_tested:
            continue
        sizes = operation.test_sizes if device.type == "cuda" else operation.tiny_sizes
        for path in operation.paths:
            fault = path.find_fault(device.type)
            if fault:
                yield Check(
                    operation=operation.name,
                    path=path.name,
                    is_ours=path.is_ours,
                    size="every size",
                    dtype=", ".join(path.tolerances),
                    status="not run",
                    reason=fault,
                )
                continue
            for size in sizes:
                for dtype in path.tolerances:
                    yield check(operation, path, size, dtype, device)


def check(
    operation: Operation,
    path: Path,
    size: Size,
    dtype: str,
    device: torch.device,
    *,
    with_times: bool = True,
) -> Check:
    """Compare one implementation with the truth: outputs, final state and every gradient.

    Whatever it raises is its failure and ends no other check; what it refuses as not its own is
    `not run`, with its words.
    """
    what: dict[str, Any] = {
        "operation": operation.name,
        "path": path.name,
        "is_ours": path.is_ours,
        "size": size.label,
        "dtype": dtype,
    }
    fault = path.find_fault(device.type)
    if fault:
        return Check(**what, status="not run", reason=fault)
    try:
        return _compare(operation, path, size, dtype, device, what, with_times=with_times)
    except InvalidConfiguration as exc:
        return Check(**what, status="not run", reason=f"refused: {exc.message}")
    except Exception as exc:
        logger.debug("%s on %s failed", operation.name, path.name, exc_info=True)
        return Check(**what, status="failed", reason=f"{type(exc).__name__}: {exc}")


def _compare(
    operation: Operation,
    path: Path,
    size: Size,
    dtype: str,
    device: torch.device,
    what: dict[str, Any],
    *,
    with_times: bool,
) -> Check:
    inputs = drawn_inputs(operation, size, dtype, device)
    exact = {name: leaf(x.double().cpu()) for name, x in inputs.items()}
    gradient_fault = path.gradient_fault()
    names = () if gradient_fault else tuple(inputs)
    with poisoned(), quiet():
        found = results(path.run(**inputs), inputs, names)
    expected = results(operation.truth(**exact), exact, names)
    errors = {name: relative_error(found[name], truth) for name, truth in expected.items()}
    # Whatever is not a number is the worst of all.
    worst = max(errors, key=lambda name: (errors[name] != errors[name], errors[name]))
    error, allowed = errors[worst], path.tolerances[dtype]
    forward_ms = forward_backward_ms = None
    if with_times:
        forward_ms, forward_backward_ms = _times(path, inputs, names, device)
    return Check(
        **what,
        status="ok" if error <= allowed else "wrong",
        error=error,
        worst=worst,
        allowed=allowed,
        forward_ms=forward_ms,
        forward_backward_ms=forward_backward_ms,
        reason=f"outputs only: {gradient_fault}" if gradient_fault else None,
    )


def drawn_inputs(
    operation: Operation, size: Size, dtype: str, device: torch.device, *, with_state: bool = True
) -> dict[str, Tensor]:
    """Return inputs that gradients are taken by, other ones for every operation and size."""
    seed = crc32(f"{operation.name} {size.label}".encode())
    draw = Draw(seed, dtype=getattr(torch, dtype), device=device)
    return {name: leaf(x) for name, x in operation.draw(size, draw, with_state).items()}


def leaf(x: Tensor) -> Tensor:
    """Return x, as it lies in memory, as something that gradients are taken by."""
    return x.detach().requires_grad_()


def results(
    outputs: Mapping[str, Tensor], inputs: Mapping[str, Tensor], names: tuple[str, ...]
) -> dict[str, Tensor]:
    """Return the outputs and the gradients, by the inputs of these names, of a weighted sum."""
    if not names:
        return dict(outputs)
    weights = [_weights(name, x) for name, x in outputs.items()]
    gradients = torch.autograd.grad(
        list(outputs.values()), [inputs[name] for name in names], weights
    )
    return {**outputs, **{f"d_{n}": x for n, x in zip(names, gradients, strict=True)}}


def _weights(name: str, output: Tensor) -> Tensor:
    """Draw on the CPU: the truth is there, and must be given the same."""
    generator = torch.Generator().manual_seed(crc32(name.encode()))
    # Rounded to bfloat16, every dtype holds the same weights.
    drawn = torch.randn(output.shape, generator=generator).bfloat16()
    return drawn.to(output)


def relative_error(found: Tensor, truth: Tensor) -> float:
    """Return |found - truth| / |truth|, which is NaN where anything found is."""
    found, truth = found.detach().double().cpu(), truth.detach().double().cpu()
    return float((found - truth).norm() / truth.norm().clamp_min(1e-30))


@contextmanager
def poisoned() -> Iterator[None]:
    """Fill new memory with NaN, so that an element that nobody writes cannot look right."""
    before = torch.are_deterministic_algorithms_enabled()
    warns = torch.is_deterministic_algorithms_warn_only_enabled()
    torch.use_deterministic_algorithms(True, warn_only=True)
    try:
        yield
    finally:
        torch.use_deterministic_algorithms(before, warn_only=warns)


def _times(
    path: Path, inputs: Mapping[str, Tensor], names: tuple[str, ...], device: torch.device
) -> tuple[float, float | None]:
    """Return the milliseconds of a forward pass, and of one with its backward pass."""
    seconds = _SECONDS_A_TIMING[device.type]
    with quiet():
        forward = measure(lambda _: path.run(**inputs), device, seconds)
        if not names:
            return forward.ms, None
        both = measure(lambda _: results(path.run(**inputs), inputs, names), device, seconds)
    return forward.ms, both.ms
