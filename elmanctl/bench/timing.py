"""How long a call takes: the median of many, three times over, on data that no cache holds."""

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import count
from statistics import median

import torch

REPEATS = 3
_MOST_CALLS = 100
_FAR_LONGER = 10
_LEAST_ROTATED_BYTES = 50_000_000
_LEAST_SETS, _MOST_SETS = 2, 16

# Enough work to keep the card busy while the host queues its calls, as far as that is worthwhile.
_FILLER_BYTES = 1 << 28
_MOST_FILLED_MS = 50.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Timing:
    """The median of the medians of the repeats, with the least and the greatest of these.

    `calls` is how many each repeat timed; `host_ms` what the host took to queue one call.  Where
    that is more than `ms`, the card waits for the host and the time is not the kernels' own.
    """

    ms: float
    low_ms: float
    high_ms: float
    repeats: int
    calls: int
    host_ms: float

    @property
    def spread(self) -> float:
        """The distance of the repeats from one another, over their median."""
        return (self.high_ms - self.low_ms) / self.ms if self.ms else 0.0


def sets_needed(set_bytes: int, cache_bytes: int) -> int:
    """Return how many sets of inputs to rotate, so that no call finds its own in the cache.

    All together are more than 50 MB and more than twice the cache, or as many as are sensible.
    """
    wanted = max(_LEAST_ROTATED_BYTES, 2 * cache_bytes)
    return min(_MOST_SETS, max(_LEAST_SETS, wanted // max(1, set_bytes) + 1))


def calls_for(estimate_ms: float, seconds: float) -> tuple[int, int]:
    """Return how many repeats, and calls in each, fit into so many seconds: at least one of both.

    Three repeats, unless a single call takes so long that three of them do not fit.
    """
    fitting = seconds * 1e3 / max(estimate_ms, 1e-3)
    repeats = REPEATS if fitting >= REPEATS else 1
    return repeats, min(_MOST_CALLS, max(1, int(fitting / repeats)))


def summarize(repeats: Sequence[Sequence[float]], host_ms: float) -> Timing:
    """Return the timing of repeats, each a list of the milliseconds of its calls."""
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
    """Time `call`, which is given the number of the call, in about so many seconds.

    Two calls before the first timed one take what is compiled, loaded or tuned then.  On a CPU
    where the first takes far longer than that, as in Triton's interpreter, it is the one timed.
    """
    on_cuda = device.type == "cuda"
    numbers = count()
    start = time.perf_counter()
    call(next(numbers))
    first_ms = (time.perf_counter() - start) * 1e3
    if on_cuda:
        torch.cuda.synchronize(device)
    elif first_ms > _FAR_LONGER * seconds * 1e3:
        return summarize([[first_ms]], first_ms)
    start = time.perf_counter()
    call(next(numbers))
    host_ms = (time.perf_counter() - start) * 1e3
    if on_cuda:
        torch.cuda.synchronize(device)
    repeats, calls = calls_for((time.perf_counter() - start) * 1e3, seconds)
    time_repeat = _cuda_repeat if on_cuda else _host_repeat
    return summarize(
        [time_repeat(call, numbers, calls, device, host_ms) for _ in range(repeats)], host_ms
    )


def _host_repeat(
    call: Callable[[int], object],
    numbers: "count[int]",
    calls: int,
    device: torch.device,
    host_ms: float,
) -> list[float]:
    times = []
    for _ in range(calls):
        start = time.perf_counter()
        call(next(numbers))
        times.append((time.perf_counter() - start) * 1e3)
    return times


def _cuda_repeat(
    call: Callable[[int], object],
    numbers: "count[int]",
    calls: int,
    device: torch.device,
    host_ms: float,
) -> list[float]:
    """Time calls by events around each, on a card that is kept busy until all are queued."""
    events = [(_event(), _event()) for _ in range(calls)]
    torch.cuda.synchronize(device)
    _keep_busy(min(_MOST_FILLED_MS, calls * host_ms), device)
    for start, end in events:
        start.record()
        call(next(numbers))
        end.record()
    torch.cuda.synchronize(device)
    return [start.elapsed_time(end) for start, end in events]


def _event() -> torch.cuda.Event:
    return torch.cuda.Event(enable_timing=True)


def _keep_busy(ms: float, device: torch.device) -> None:
    filler = torch.empty(_FILLER_BYTES, dtype=torch.uint8, device=device)
    # No card writes more than 8 TB/s, so this is never too little by much.
    for _ in range(int(ms * 8e9 / _FILLER_BYTES) + 1):
        filler.zero_()
