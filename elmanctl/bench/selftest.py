"""Whether the implementations of an operation compute it: each against its time loop in float64."""

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

from elmanctl.bench.foreign import quiet
from elmanctl.bench.operation import Draw, Operation, Path
from elmanctl.bench.operations import OPERATIONS
from elmanctl.bench.size import Size
from elmanctl.bench.timing import measure
from elmanctl.errors import InvalidConfiguration

logger = logging.getLogger(__name__)

_SECONDS_A_TIMING = 0.2


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
    """Check every implementation that models use, at the sizes of its tests and in its dtypes.

    What models train on is checked at every size, and other dtypes at the first two: each takes
    seconds to compile.
    """
    for operation in OPERATIONS:
        if not operation.is_tested:
            continue
        sizes = operation.test_sizes if device.type == "cuda" else operation.tiny_sizes
        for path in operation.paths:
            fault = path.unavailable_reason(device.type)
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
    fault = path.unavailable_reason(device.type)
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
    exact = {name: _exact(x) for name, x in inputs.items()}
    gradient_unavailable = path.gradient_unavailable()
    names = () if gradient_unavailable else differentiable(inputs)
    with poisoned(), quiet():
        start = time.perf_counter()
        outputs = path.run(**inputs)
        ahead = time.perf_counter()
        found = results(outputs, inputs, names)
        once = Times(
            forward_ms=(ahead - start) * 1e3,
            forward_backward_ms=(time.perf_counter() - start) * 1e3 if names else None,
        )
    expected = results(operation.truth(**exact), exact, names)
    errors = {name: relative_error(found[name], truth) for name, truth in expected.items()}
    # Whatever is not a number is the worst of all.
    worst = max(errors, key=lambda name: (errors[name] != errors[name], errors[name]))
    error, allowed = errors[worst], path.tolerances[dtype]
    # On a GPU the first call may compile; on a CPU a second one would only take as long again.
    times = once
    if device.type == "cuda":
        times = _times(path, inputs, names, device) if with_times else Times()
    return Check(
        **what,
        status="ok" if error <= allowed else "wrong",
        error=error,
        worst=worst,
        allowed=allowed,
        forward_ms=times.forward_ms,
        forward_backward_ms=times.forward_backward_ms,
        reason=f"outputs only: {gradient_unavailable}" if gradient_unavailable else None,
    )


def drawn_inputs(
    operation: Operation, size: Size, dtype: str, device: torch.device, *, with_state: bool = True
) -> dict[str, Tensor]:
    """Return inputs that gradients are taken by, other ones for every operation and size."""
    seed = crc32(f"{operation.name} {size.label}".encode())
    draw = Draw(seed, dtype=getattr(torch, dtype), device=device)
    return {name: leaf(x) for name, x in operation.draw(size, draw, with_state).items()}


def leaf(x: Tensor) -> Tensor:
    """Return x, as it lies in memory, as something that gradients are taken by if it has any."""
    return x.detach().requires_grad_(x.is_floating_point())


def _exact(x: Tensor) -> Tensor:
    """Return the same numbers in float64 on the CPU."""
    return leaf(x.detach().cpu().double() if x.is_floating_point() else x.cpu())


def differentiable(inputs: Mapping[str, Tensor]) -> tuple[str, ...]:
    """Return the names of the inputs that gradients are taken by."""
    return tuple(name for name, x in inputs.items() if x.requires_grad)


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


@dataclass(frozen=True, slots=True, kw_only=True)
class Times:
    """The milliseconds of a forward pass, and of one with its backward pass."""

    forward_ms: float | None = None
    forward_backward_ms: float | None = None


def _times(
    path: Path, inputs: Mapping[str, Tensor], names: tuple[str, ...], device: torch.device
) -> Times:
    with quiet():
        forward = measure(lambda _: path.run(**inputs), device, _SECONDS_A_TIMING)
        if not names:
            return Times(forward_ms=forward.ms)
        both = measure(
            lambda _: results(path.run(**inputs), inputs, names), device, _SECONDS_A_TIMING
        )
    return Times(forward_ms=forward.ms, forward_backward_ms=both.ms)
