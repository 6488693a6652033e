"""Timing of a call: medians of repeated calls on inputs that are not in the cache."""

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import count
from statistics import median

import torch

REPEATS = 3
_MAX_CALLS = 100
_SLOW_FIRST_CALL = 10
_MIN_ROTATED_BYTES = 50_000_000
_MIN_SETS, _MAX_SETS = 2, 16

# Filler work keeps the GPU busy while the host queues its calls, up to a limit.
_FILLER_BYTES = 1 << 28
_MAX_FILLER_MS = 50.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Timing:
    """Median of the medians of the repeats, with the minimum and maximum of these.

    `calls` is the number of calls per repeat, `host_ms` the time of the host to queue one call.  If
    `host_ms` exceeds `ms`, the GPU waits for the host, so `ms` is not the time of the kernels.
    """

    ms: float
    low_ms: float
    high_ms: float
    repeats: int
    calls: int
    host_ms: float

    @property
    def spread(self) -> float:
        """Range of the repeats over their median."""
        return (self.high_ms - self.low_ms) / self.ms if self.ms else 0.0


def sets_needed(set_bytes: int, cache_bytes: int) -> int:
    """Return how many sets of inputs to rotate through so that no call finds its own in the cache.

    In total they exceed 50 MB and twice the cache, up to a maximum number of sets.
    """
    min_bytes = max(_MIN_ROTATED_BYTES, 2 * cache_bytes)
    return min(_MAX_SETS, max(_MIN_SETS, min_bytes // max(1, set_bytes) + 1))


def calls_for(estimate_ms: float, seconds: float) -> tuple[int, int]:
    """Return the number of repeats, and of calls in each, that fit into `seconds`; at least one.

    There are three repeats, unless three calls do not fit.
    """
    fitting = seconds * 1e3 / max(estimate_ms, 1e-3)
    repeats = REPEATS if fitting >= REPEATS else 1
    return repeats, min(_MAX_CALLS, max(1, int(fitting / repeats)))


def summarize(repeats: Sequence[Sequence[float]], host_ms: float) -> Timing:
    """Summarize repeats, each a list of milliseconds per call."""
    medians = [median(times) for times in repeats]
    return Timing(
        ms=median(medians),
        low_ms=min(medians),
        high_ms=max(medians),
        repeats=len(repeats),
        calls=len(repeats[0]),
        host_ms=host_ms,
    )


def measure(call: Callable[[int], object], device: torch.device, seconds: float = 1.0) -> Timing:
    """Time `call`, which takes the index of the call, for about `seconds`.

    Two warm-up calls absorb compilation, loading and autotuning.  If on a CPU the first call takes
    far longer than `seconds`, as in Triton's interpreter, it is the only one and is timed.
    """
    on_cuda = device.type == "cuda"
    numbers = count()

    def again() -> None:
        call(next(numbers))

    start = time.perf_counter()
    again()
    first_ms = (time.perf_counter() - start) * 1e3
    if on_cuda:
        torch.cuda.synchronize(device)
    elif first_ms > _SLOW_FIRST_CALL * seconds * 1e3:
        return summarize([[first_ms]], first_ms)
    start = time.perf_counter()
    again()
    host_ms = (time.perf_counter() - start) * 1e3
    if on_cuda:
        torch.cuda.synchronize(device)
    repeats, calls = calls_for((time.perf_counter() - start) * 1e3, seconds)
    time_repeat = _cuda_repeat if on_cuda else _host_repeat
    return summarize([time_repeat(again, calls, device, host_ms) for _ in range(repeats)], host_ms)


def _host_repeat(
    again: Callable[[], None], calls: int, device: torch.device, host_ms: float
) -> list[float]:
    times = []
    for _ in range(calls):
        start = time.perf_counter()
        again()
        times.append((time.perf_counter() - start) * 1e3)
    return times


def _cuda_repeat(
    again: Callable[[], None], calls: int, device: torch.device, host_ms: float
) -> list[float]:
    """Time calls with events around each, while filler work delays them until all are queued."""
    events = [(_event(), _event()) for _ in range(calls)]
    torch.cuda.synchronize(device)
    _keep_busy(min(_MAX_FILLER_MS, calls * host_ms), device)
    for start, end in events:
        start.record()
        again()
        end.record()
    torch.cuda.synchronize(device)
    return [start.elapsed_time(end) for start, end in events]


def _event() -> torch.cuda.Event:
    return torch.cuda.Event(enable_timing=True)


def _keep_busy(ms: float, device: torch.device) -> None:
    filler = torch.empty(_FILLER_BYTES, dtype=torch.uint8, device=device)
    # No GPU writes more than 8 TB/s, so this suffices.
    for _ in range(int(ms * 8e9 / _FILLER_BYTES) + 1):
        filler.zero_()
