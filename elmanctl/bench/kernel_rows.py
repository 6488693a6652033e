"""Kernel benchmark: a row per implementation and size of an operation."""

import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import nullcontext
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from elmanctl.bench.floors import Rates, floor_of
from elmanctl.bench.operation import Draw, Operation, Path, labels
from elmanctl.bench.operations import OPERATIONS
from elmanctl.bench.rows import measured_rows, select
from elmanctl.bench.selftest import Check, check, differentiable, leaf
from elmanctl.bench.size import Size
from elmanctl.bench.third_party import TIMING_ONLY, suppress_warnings
from elmanctl.bench.timing import measure, sets_needed

_SECONDS = {"cuda": 0.6, "cpu": 0.02}

# At some sizes the path `torch` is a Python loop; a call may take at most this long.
_MAX_CALL_S = {"cuda": 4.0, "cpu": 4.0}
_MIN_LENGTH = 64


@dataclass(frozen=True, slots=True, kw_only=True)
class KernelRow:
    """Results of one implementation of an operation at one size.

    `status` is measured, missing (it cannot run here), failed (it raised) or not measured; `reason`
    says why, and `note` qualifies the numbers.  `backward_ms` is the difference of the two timed
    passes.  With `bound_length` the times are those of sequences truncated to that length, and
    thus lower bounds for the full size.
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
class PlannedRow:
    """A row to measure."""

    operation: Operation
    path: Path
    size: Size

    @property
    def label(self) -> str:
        """Operation, path and size."""
        return f"{self.operation.name} {self.path.name} {self.size.label}"

    def unavailable_reason(self, device: torch.device) -> str | None:
        """Return why the implementation cannot run on the device, or None."""
        return self.path.unavailable_reason(device.type)

    def empty(self, status: str, reason: str | None = None) -> KernelRow:
        """Return the row without numbers."""
        named = labels(self.operation, self.path, self.size.label, self.operation.dtype)
        return KernelRow(**named, status=status, reason=reason)


def plan(device: torch.device, only: Sequence[str] = ()) -> list[PlannedRow]:
    """Return the rows to measure, those relevant to targets first and slow ones last.

    `only` filters rows by substrings of their operation, path and size.
    """
    rows = [
        PlannedRow(operation=operation, path=path, size=size)
        for operation in OPERATIONS
        for path in operation.paths
        for size in _sizes(operation, path, device)
    ]
    # Stable sort: our kernels, then others, then plain torch, which may take seconds.
    return sorted(
        select(rows, only), key=lambda row: (row.path.name == "torch", not row.path.is_ours)
    )


def _sizes(operation: Operation, path: Path, device: torch.device) -> tuple[Size, ...]:
    """Return the sizes to measure: none if the operation is only tested, one if the path is."""
    # On a CPU, where Triton is interpreted, the last is the smallest.
    sizes = operation.sizes if device.type == "cuda" else operation.tiny_sizes[-1:]
    if not operation.sizes:
        return ()
    return sizes[:1] if path.is_for_tests else sizes


def kernel_rows(
    planned: Sequence[PlannedRow],
    rates: Rates,
    device: torch.device,
    cache_bytes: int,
    is_over: Callable[[], bool],
) -> Iterator[KernelRow]:
    """Measure the planned rows as `measured_rows` does; yield a row for each."""
    checks: dict[tuple[str, str], Check] = {}

    def measure_and_check(row: PlannedRow) -> KernelRow:
        measured = _measure_row(row, rates, device, cache_bytes)
        key = (row.operation.name, row.path.name)
        if key not in checks:
            checks[key] = _check(row, device)
        return _with_error(measured, checks[key])

    return measured_rows(planned, measure_and_check, device, is_over)


def _check(row: PlannedRow, device: torch.device) -> Check:
    """Compare with float64 at a size small enough for it."""
    operation = row.operation
    size = operation.test_sizes[0] if device.type == "cuda" else operation.tiny_sizes[-1]
    return check(operation, row.path, size, operation.dtype, device, with_times=False)


def _with_error(row: KernelRow, result: Check) -> KernelRow:
    """Return the row with its error against float64, and a note if that is too large."""
    notes = [row.note] if row.note else []
    if result.error is None:
        notes.append(f"not compared with float64: {result.reason}")
    elif result.is_wrong:
        notes.append(
            f"WRONG: {result.worst} has an error of {result.error:.1e}, above {result.allowed:.0e}"
        )
    return replace(
        row,
        error=result.error,
        error_of=result.worst,
        is_wrong=result.is_wrong,
        note="; ".join(notes) or None,
    )


def _measure_row(
    row: PlannedRow, rates: Rates, device: torch.device, cache_bytes: int
) -> KernelRow:
    operation, path, size = row.operation, row.path, row.size
    bound_length = _affordable_length(row, device) if path.name == "torch" else None
    timed = size if bound_length is None else replace(size, length=bound_length)
    sets = _input_sets(operation, timed, device, cache_bytes)
    d_output = _output_gradient(path, sets[0])
    names = differentiable(sets[0])
    seconds = _SECONDS[device.type]

    def forward(number: int) -> Mapping[str, Tensor]:
        return path.run(**sets[number % len(sets)])

    def forward_backward(number: int) -> object:
        output = forward(number)["output"]
        inputs = [sets[number % len(sets)][name] for name in names]
        return torch.autograd.grad(output, inputs, d_output)

    is_timing_only = path.gradient_unavailable() is not None
    with suppress_warnings():
        forward_timing = measure(forward, device, seconds)
        with path.for_timing() if is_timing_only else nullcontext():
            both = measure(forward_backward, device, seconds)
            peak_bytes = _peak_bytes(forward_backward, device)
    measured = replace(
        row.empty("measured"),
        note=TIMING_ONLY if is_timing_only else None,
        bound_length=bound_length,
        peak_bytes=peak_bytes,
        forward_ms=forward_timing.ms,
        forward_spread=forward_timing.spread,
        forward_backward_ms=both.ms,
        forward_backward_spread=both.spread,
        backward_ms=max(0.0, both.ms - forward_timing.ms),
        host_ms=both.host_ms,
        calls=both.repeats * both.calls,
    )
    return measured if bound_length else replace(measured, **_against_floor(row, measured, rates))


def _against_floor(row: PlannedRow, measured: KernelRow, rates: Rates) -> dict[str, Any]:
    """Return throughput and the measured times relative to their floors."""
    itemsize, counts = getattr(torch, row.operation.dtype).itemsize, row.operation.counts
    works = {
        "forward": counts.forward(row.size, itemsize),
        "backward": counts.backward(row.size, itemsize),
    }
    both_ms = measured.forward_backward_ms or 0.0
    moved_bytes = sum(work.moved_bytes for work in works.values())
    found: dict[str, Any] = {
        "tokens_per_s": row.size.tokens / both_ms * 1e3,
        "bytes_per_s": moved_bytes / both_ms * 1e3,
    }
    for name, work in works.items():
        floor, ms = floor_of(work, rates), getattr(measured, f"{name}_ms")
        if floor is not None:
            found[f"{name}_floor_ms"], found[f"{name}_bound"] = floor.ms, floor.bound
            found[f"{name}_fraction"] = floor.ms / ms if ms else None
    return found


def _input_sets(
    operation: Operation, size: Size, device: torch.device, cache_bytes: int
) -> list[dict[str, Tensor]]:
    """Return sets of inputs to rotate through."""
    dtype = getattr(torch, operation.dtype)

    def draw(seed: int) -> dict[str, Tensor]:
        inputs = operation.draw(size, Draw(seed, dtype=dtype, device=device), False)
        return {name: leaf(x) for name, x in inputs.items()}

    sets = [draw(0)]
    set_bytes = sum(x.numel() * x.element_size() for x in sets[0].values())
    return sets + [draw(seed) for seed in range(1, sets_needed(set_bytes, cache_bytes))]


def _output_gradient(path: Path, inputs: Mapping[str, Tensor]) -> Tensor:
    """Return a random gradient with the shape of the output."""
    with suppress_warnings():
        return torch.randn_like(path.run(**inputs)["output"].detach())


def _peak_bytes(call: Callable[[int], object], device: torch.device) -> int | None:
    """Return the peak memory of a call in addition to its inputs; None on a CPU."""
    if device.type != "cuda":
        return None
    torch.cuda.synchronize(device)
    before = torch.cuda.memory_allocated(device)
    torch.cuda.reset_peak_memory_stats(device)
    call(0)
    torch.cuda.synchronize(device)
    return torch.cuda.max_memory_allocated(device) - before


def _affordable_length(row: PlannedRow, device: torch.device) -> int | None:
    """Return the length to truncate sequences to, or None if the full size is fast enough.

    The time of the path `torch` grows at least linearly with the length, so a shorter call gives a
    lower bound; the length is doubled while the next one is expected to fit the limit.
    """
    length = min(_MIN_LENGTH, row.size.length)
    while length < row.size.length:
        call_s = _time_call(row, replace(row.size, length=length), device)
        if call_s * row.size.length / length <= _MAX_CALL_S[device.type]:
            return None
        if 4 * call_s > _MAX_CALL_S[device.type]:
            return length
        length *= 2
    return None


def _time_call(row: PlannedRow, size: Size, device: torch.device) -> float:
    """Return the seconds of a forward and backward pass, after a warm-up pass."""
    inputs = _input_sets(row.operation, size, device, 0)[0]
    d_output = _output_gradient(row.path, inputs)
    times = []
    for _ in range(2):
        start = time.perf_counter()
        output = row.path.run(**inputs)["output"]
        torch.autograd.grad(output, [inputs[name] for name in differentiable(inputs)], d_output)
        if device.type == "cuda":
            torch.cuda.synchronize(device)
        times.append(time.perf_counter() - start)
    return times[-1]
