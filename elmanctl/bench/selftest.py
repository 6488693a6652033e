"""Self-test: comparison of all implementations with their time loop in float64."""

import logging
import math
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from typing import Any
from zlib import crc32

import torch
from torch import Tensor

from elmanctl.bench.operation import Draw, Operation, Path, labels
from elmanctl.bench.operations import OPERATIONS
from elmanctl.bench.size import Size
from elmanctl.bench.third_party import suppress_warnings
from elmanctl.bench.timing import measure
from elmanctl.errors import InvalidConfiguration

logger = logging.getLogger(__name__)

_SECONDS_PER_TIMING = 0.2


@dataclass(frozen=True, slots=True, kw_only=True)
class Check:
    """Result of comparing one implementation at one size and dtype with the reference.

    `status` is ok, wrong (above the tolerance), failed (it raised) or not run.  `error` is the
    maximum of |x - truth| / |truth| over outputs and gradients, `worst` the name of that x, and
    `allowed` the tolerance; `reason` says why nothing was compared, or how it failed.
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
        """Whether results were wrong or missing."""
        return self.status in ("wrong", "failed")

    def encode(self) -> dict[str, Any]:
        """Encode as plain data, with None for an error that is not finite."""
        data = asdict(self)
        if self.error is not None and not math.isfinite(self.error):
            data["error"] = None
        return data


def check_all(device: torch.device) -> Iterator[Check]:
    """Check all implementations that models use, at their test sizes and in their dtypes.

    The main dtype is checked at all sizes, the others at the first two, since each size takes
    seconds to compile.
    """
    for operation in OPERATIONS:
        if not operation.is_tested:
            continue
        sizes = operation.test_sizes if device.type == "cuda" else operation.tiny_sizes
        for path in operation.paths:
            unavailable = path.unavailable_reason(device.type)
            if unavailable:
                named = labels(operation, path, "every size", ", ".join(path.tolerances))
                yield Check(**named, status="not run", reason=unavailable)
                continue
            for dtype in path.tolerances:
                few = 1 if path.is_for_tests else 2
                for size in sizes if dtype == operation.dtype else sizes[:few]:
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
    """Compare outputs, final state and all gradients of one implementation with the reference.

    An exception makes the check `failed`, InvalidConfiguration `not run`; neither propagates.
    """
    named = labels(operation, path, size.label, dtype)
    unavailable = path.unavailable_reason(device.type)
    if unavailable:
        return Check(**named, status="not run", reason=unavailable)
    try:
        return _compare(operation, path, size, dtype, device, named, with_times=with_times)
    except InvalidConfiguration as exc:
        return Check(**named, status="not run", reason=f"refused: {exc.message}")
    except Exception as exc:
        logger.debug("%s on %s failed", operation.name, path.name, exc_info=True)
        return Check(**named, status="failed", reason=f"{type(exc).__name__}: {exc}")


def _compare(
    operation: Operation,
    path: Path,
    size: Size,
    dtype: str,
    device: torch.device,
    named: Mapping[str, Any],
    *,
    with_times: bool,
) -> Check:
    inputs = draw_inputs(operation, size, dtype, device)
    exact = {name: _exact(x) for name, x in inputs.items()}
    no_gradients = path.gradient_unavailable()
    names = () if no_gradients else differentiable(inputs)
    with poisoned_memory(), suppress_warnings():
        start = time.perf_counter()
        outputs = path.run(**inputs)
        forward_end = time.perf_counter()
        found = results(outputs, inputs, names)
        both_ms = (time.perf_counter() - start) * 1e3 if names else None
        forward_ms: float | None = (forward_end - start) * 1e3
    expected = results(operation.truth(**exact), exact, names)
    errors = {name: relative_error(found[name], truth) for name, truth in expected.items()}
    # NaN is the worst error.
    worst = max(errors, key=lambda name: (errors[name] != errors[name], errors[name]))
    error, allowed = errors[worst], path.tolerances[dtype]
    # On a GPU the first call may include compilation; on a CPU a second call would gain nothing.
    if device.type == "cuda":
        forward_ms = both_ms = None
        if with_times:
            forward_ms, both_ms = _times(path, inputs, names, device)
    return Check(
        **named,
        status="ok" if error <= allowed else "wrong",
        error=error,
        worst=worst,
        allowed=allowed,
        forward_ms=forward_ms,
        forward_backward_ms=both_ms,
        reason=f"outputs only: {no_gradients}" if no_gradients else None,
    )


def draw_inputs(
    operation: Operation, size: Size, dtype: str, device: torch.device, *, with_state: bool = True
) -> dict[str, Tensor]:
    """Draw differentiable inputs, seeded by operation and size."""
    seed = crc32(f"{operation.name} {size.label}".encode())
    draw = Draw(seed, dtype=getattr(torch, dtype), device=device)
    return {name: leaf(x) for name, x in operation.draw(size, draw, with_state).items()}


def leaf(x: Tensor) -> Tensor:
    """Return x as a leaf with unchanged strides, which requires a gradient if floating-point."""
    return x.detach().requires_grad_(x.is_floating_point())


def _exact(x: Tensor) -> Tensor:
    """Return the same values in float64 on the CPU."""
    return leaf(x.detach().cpu().double() if x.is_floating_point() else x.cpu())


def differentiable(inputs: Mapping[str, Tensor]) -> tuple[str, ...]:
    """Return the names of the inputs that require gradients."""
    return tuple(name for name, x in inputs.items() if x.requires_grad)


def results(
    outputs: Mapping[str, Tensor], inputs: Mapping[str, Tensor], names: tuple[str, ...]
) -> dict[str, Tensor]:
    """Return the outputs, and the gradients of a weighted sum of them for the named inputs."""
    if not names:
        return dict(outputs)
    weights = [_weights(name, x) for name, x in outputs.items()]
    gradients = torch.autograd.grad(
        list(outputs.values()), [inputs[name] for name in names], weights
    )
    return {**outputs, **{f"d_{n}": x for n, x in zip(names, gradients, strict=True)}}


def _weights(name: str, output: Tensor) -> Tensor:
    """Draw weights on the CPU, so that the reference there uses the same."""
    generator = torch.Generator().manual_seed(crc32(name.encode()))
    # Rounded to bfloat16, so that all dtypes represent the same weights.
    drawn = torch.randn(output.shape, generator=generator).bfloat16()
    return drawn.to(output)


def relative_error(found: Tensor, truth: Tensor) -> float:
    """Return |found - truth| / |truth|, which is NaN if any element found is."""
    found, truth = found.detach().double().cpu(), truth.detach().double().cpu()
    return float((found - truth).norm() / truth.norm().clamp_min(1e-30))


@contextmanager
def poisoned_memory() -> Iterator[None]:
    """Fill new tensors with NaN, so that elements that are never written are detected."""
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
    """Return the milliseconds of a forward pass, and of a forward and backward pass."""
    with suppress_warnings():
        forward = measure(lambda _: path.run(**inputs), device, _SECONDS_PER_TIMING)
        if not names:
            return forward.ms, None
        both = measure(
            lambda _: results(path.run(**inputs), inputs, names), device, _SECONDS_PER_TIMING
        )
    return forward.ms, both.ms
