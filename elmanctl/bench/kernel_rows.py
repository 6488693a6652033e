"""One row for each implementation and size of an operation: times, floor, memory, error."""

import logging
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from elmanctl.bench.device import loss_of, release
from elmanctl.bench.floors import Floor, Rates, floor_of
from elmanctl.bench.foreign import TIMING_ONLY, quiet
from elmanctl.bench.operation import Draw, Operation, Path
from elmanctl.bench.operations import OPERATIONS
from elmanctl.bench.selftest import Check, check, differentiable, leaf
from elmanctl.bench.size import Size
from elmanctl.bench.timing import Timing, measure, sets_needed
from elmanctl.errors import InvalidConfiguration

logger = logging.getLogger(__name__)

_SECONDS = {"cuda": 0.6, "cpu": 0.02}

# The plain path is a loop in Python at some sizes; a call of it may take this long at the most.
_BEARABLE_S = {"cuda": 4.0, "cpu": 4.0}
_FIRST_LENGTH = 64


@dataclass(frozen=True, slots=True, kw_only=True)
class KernelRow:
    """One implementation of an operation at one size.

    `status` is measured, missing (it cannot run here), failed (it raised) or not measured; `reason`
    says why, `note` what must be known of the numbers.  `backward_ms` is the difference of the two
    that were timed.  With `bound_length` the times are those of sequences cut to that length,
    and so are less than what the whole size takes.
    """

    operation: str
    path: str
    is_ours: bool
    size: str
    dtype: str
    status: str
    reason: str | None = None
    note: str | None = None
    bound_length: int | None = None
    forward_ms: float | None = None
    forward_spread: float | None = None
    forward_backward_ms: float | None = None
    forward_backward_spread: float | None = None
    backward_ms: float | None = None
    host_ms: float | None = None
    calls: int | None = None
    tokens_per_s: float | None = None
    forward_floor_ms: float | None = None
    forward_bound: str | None = None
    backward_floor_ms: float | None = None
    backward_bound: str | None = None
    forward_fraction: float | None = None
    backward_fraction: float | None = None
    bytes_per_s: float | None = None
    peak_bytes: int | None = None
    error: float | None = None
    error_of: str | None = None
    is_wrong: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class Planned:
    """A row that is to be measured."""

    operation: Operation
    path: Path
    size: Size


def plan(device: torch.device, only: Sequence[str] = ()) -> list[Planned]:
    """Return the rows to measure, what the targets ask for first and what is slow last.

    `only` keeps the rows whose operation, path and size together hold one of these texts.
    """
    rows = [
        Planned(operation=operation, path=path, size=size)
        for operation in OPERATIONS
        for path in operation.paths
        for size in _sizes(operation, path, device)
    ]
    kept = [row for row in rows if not only or any(text in describe(row) for text in only)]
    # Stable: kernels of ours, then those beside them, then plain torch, which may take seconds.
    return sorted(kept, key=lambda row: (row.path.name == "torch", not row.path.is_ours))


def _sizes(operation: Operation, path: Path, device: torch.device) -> tuple[Size, ...]:
    """Return the sizes to measure: none of what is only tested, one of what is for tests."""
    # On a CPU, where Triton is interpreted, the last is the least work.
    sizes = operation.sizes if device.type == "cuda" else operation.tiny_sizes[-1:]
    if not operation.sizes:
        return ()
    return sizes[:1] if path.is_for_tests else sizes


def describe(row: Planned) -> str:
    """Return operation, path and size of a row in one line."""
    return f"{row.operation.name} {row.path.name} {row.size.label}"


def kernel_rows(
    planned: Sequence[Planned],
    rates: Rates,
    device: torch.device,
    cache_bytes: int,
    is_over: Callable[[], bool],
) -> Iterator[KernelRow]:
    """Measure the planned rows one after another; every one of them becomes a row.

    Once `is_over` says that the time is used up, the rest is `not measured`; so it is after a
    failure that the device does not get over.
    """
    checks: dict[tuple[str, str], Check] = {}
    lost: str | None = None
    for row in planned:
        if lost or is_over():
            reason = lost or "the time given was used up"
            yield _empty(row, "not measured", reason)
            continue
        fault = row.path.unavailable_reason(device.type)
        if fault:
            yield _empty(row, "missing", fault)
            continue
        try:
            made = _measured(row, rates, device, cache_bytes)
            key = (row.operation.name, row.path.name)
            if key not in checks:
                checks[key] = _check(row, device)
            yield _with_error(made, checks[key])
        except InvalidConfiguration as exc:
            # Not every implementation computes every size.
            yield _empty(row, "missing", f"refused: {exc.message}")
        except Exception as exc:
            logger.debug("%s failed", describe(row), exc_info=True)
            yield _empty(row, "failed", f"{type(exc).__name__}: {exc}")
            lost = loss_of(device, describe(row))
        finally:
            if not lost:
                release(device)


def _empty(row: Planned, status: str, reason: str) -> KernelRow:
    return KernelRow(
        operation=row.operation.name,
        path=row.path.name,
        is_ours=row.path.is_ours,
        size=row.size.label,
        dtype=row.operation.dtype,
        status=status,
        reason=reason,
    )


def _check(row: Planned, device: torch.device) -> Check:
    """Compare with float64 at a size that is small enough for it."""
    operation = row.operation
    size = operation.test_sizes[0] if device.type == "cuda" else operation.tiny_sizes[-1]
    return check(operation, row.path, size, operation.dtype, device, with_times=False)


def _with_error(made: KernelRow, found: Check) -> KernelRow:
    """Return a row with how far results are from float64, and a note where that is too far."""
    told = [made.note] if made.note else []
    if found.error is None:
        told.append(f"not compared with float64: {found.reason}")
    elif found.is_wrong:
        told.append(f"WRONG: {found.worst} is off by {found.error:.1e}, not {found.allowed:.0e}")
    return replace(
        made,
        error=found.error,
        error_of=found.worst,
        is_wrong=found.is_wrong,
        note="; ".join(told) or None,
    )


def _measured(row: Planned, rates: Rates, device: torch.device, cache_bytes: int) -> KernelRow:
    operation, path, size = row.operation, row.path, row.size
    bound_length = _bearable_length(row, device) if path.name == "torch" else None
    timed = size if bound_length is None else replace(size, length=bound_length)
    sets = _input_sets(operation, timed, device, cache_bytes)
    d_output = _gradient(path, sets[0])
    names = differentiable(sets[0])
    seconds = _SECONDS[device.type]

    def forward(number: int) -> Mapping[str, Tensor]:
        return path.run(**sets[number % len(sets)])

    def forward_backward(number: int) -> object:
        output = forward(number)["output"]
        inputs = [sets[number % len(sets)][name] for name in names]
        return torch.autograd.grad(output, inputs, d_output)

    distrusted = path.gradient_unavailable() is not None
    with quiet():
        ahead = measure(forward, device, seconds)
        if distrusted:
            with path.for_timing():
                both = measure(forward_backward, device, seconds)
                peak_bytes = _peak_bytes(forward_backward, device)
        else:
            both = measure(forward_backward, device, seconds)
            peak_bytes = _peak_bytes(forward_backward, device)
    made = KernelRow(
        operation=operation.name,
        path=path.name,
        is_ours=path.is_ours,
        size=size.label,
        dtype=operation.dtype,
        status="measured",
        note=TIMING_ONLY if distrusted else None,
        bound_length=bound_length,
        peak_bytes=peak_bytes,
        **_times(ahead, both),
    )
    return made if bound_length else replace(made, **_against_floor(row, made, rates))


def _times(ahead: Timing, both: Timing) -> dict[str, Any]:
    return {
        "forward_ms": ahead.ms,
        "forward_spread": ahead.spread,
        "forward_backward_ms": both.ms,
        "forward_backward_spread": both.spread,
        "backward_ms": max(0.0, both.ms - ahead.ms),
        "host_ms": both.host_ms,
        "calls": both.repeats * both.calls,
    }


def _against_floor(row: Planned, made: KernelRow, rates: Rates) -> dict[str, Any]:
    """Return what the times are beside the least that they could be."""
    itemsize = getattr(torch, row.operation.dtype).itemsize
    counts = row.operation.counts
    works = counts.forward(row.size, itemsize), counts.backward(row.size, itemsize)
    ahead, behind = (floor_of(work, rates) for work in works)
    both_ms = made.forward_backward_ms or 0.0
    return {
        "tokens_per_s": row.size.tokens / both_ms * 1e3,
        "bytes_per_s": (works[0] + works[1]).moved_bytes / both_ms * 1e3,
        **_named("forward", ahead, made.forward_ms),
        **_named("backward", behind, made.backward_ms),
    }


def _named(name: str, floor: Floor | None, ms: float | None) -> dict[str, Any]:
    if floor is None:
        return {}
    return {
        f"{name}_floor_ms": floor.ms,
        f"{name}_bound": floor.bound,
        f"{name}_fraction": floor.ms / ms if ms else None,
    }


def _input_sets(
    operation: Operation, size: Size, device: torch.device, cache_bytes: int
) -> list[dict[str, Tensor]]:
    """Return inputs to rotate."""
    dtype = getattr(torch, operation.dtype)

    def drawn(seed: int) -> dict[str, Tensor]:
        made = operation.draw(size, Draw(seed, dtype=dtype, device=device), False)
        return {name: leaf(x) for name, x in made.items()}

    sets = [drawn(0)]
    set_bytes = sum(x.numel() * x.element_size() for x in sets[0].values())
    return sets + [drawn(seed) for seed in range(1, sets_needed(set_bytes, cache_bytes))]


def _gradient(path: Path, inputs: Mapping[str, Tensor]) -> Tensor:
    """Return a gradient of the output, which a first call shows the shape of."""
    with quiet():
        return torch.randn_like(path.run(**inputs)["output"].detach())


def _peak_bytes(call: Callable[[int], object], device: torch.device) -> int | None:
    """Return the most memory that a call takes beside its inputs; None on a CPU."""
    if device.type != "cuda":
        return None
    torch.cuda.synchronize(device)
    before = torch.cuda.memory_allocated(device)
    torch.cuda.reset_peak_memory_stats(device)
    call(0)
    torch.cuda.synchronize(device)
    return torch.cuda.max_memory_allocated(device) - before


def _bearable_length(row: Planned, device: torch.device) -> int | None:
    """Return the length to cut sequences to, None where a call of the whole size is bearable.

    The plain path's time grows at least as fast as the length, so a shorter call bounds it from
    below; its length is doubled as long as the next one is expected to be bearable.
    """
    length = min(_FIRST_LENGTH, row.size.length)
    while length < row.size.length:
        taken = _one_call_s(row, replace(row.size, length=length), device)
        if taken * row.size.length / length <= _BEARABLE_S[device.type]:
            return None
        if 4 * taken > _BEARABLE_S[device.type]:
            return length
        length *= 2
    return None


def _one_call_s(row: Planned, size: Size, device: torch.device) -> float:
    """Return the seconds of a forward and backward pass, the second of two."""
    inputs = _input_sets(row.operation, size, device, 0)[0]
    d_output = _gradient(row.path, inputs)
    times = []
    for _ in range(2):
        start = time.perf_counter()
        output = row.path.run(**inputs)["output"]
        torch.autograd.grad(output, [inputs[name] for name in differentiable(inputs)], d_output)
        if device.type == "cuda":
            torch.cuda.synchronize(device)
        times.append(time.perf_counter() - start)
    return times[-1]
