"""Ceilings: measured peak rates of this GPU for copies, matrix products and single instructions.

The floors of a table are derived from them, so they are measured in the same process.
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass

import torch

from elmanctl.bench import nvidia
from elmanctl.bench.floors import Rates
from elmanctl.bench.machine import driver_name
from elmanctl.bench.third_party import suppress_warnings
from elmanctl.bench.timing import Timing, measure
from elmanctl.models.backends import BACKENDS

_SECONDS = {"cuda": 1.0, "cpu": 0.05}

_COPIED_BYTES = {"cuda": 1 << 30, "cpu": 1 << 22}
_SQUARE = {"cuda": 8192, "cpu": 128}

# On a GPU a launch has four full waves of programs and takes milliseconds.
_WAVES, _PROGRAMS_PER_SM, _UNROLLED = 4, 16, 32
_ROUNDS = {"tanh": 64, "exp2": 64, "fma": 512}


@dataclass(frozen=True, slots=True, kw_only=True)
class Ceiling:
    """A peak rate of this GPU, in `unit` per second; without a value, `reason` says why.

    `spread` is the range of the repeats over their median, `clocks` the clocks, power and
    temperature reported by the driver under this load.
    """

    name: str
    unit: str
    value: float | None = None
    spread: float | None = None
    clocks: dict[str, str] | None = None
    reason: str | None = None


def measure_ceilings(device: torch.device) -> Iterator[Ceiling]:
    """Measure all rates that floors depend on."""
    yield _copy(device)
    yield _square_product(device)
    for kind in ("tanh", "exp2", "fma"):
        yield _instruction(kind, device)


def rates_of(ceilings: list[Ceiling]) -> Rates:
    """Return the rates that floors depend on; special functions are represented by tanh."""
    values = {ceiling.name: ceiling.value for ceiling in ceilings}
    return Rates(
        copied_bytes=values.get("copy"),
        matrix_flops=values.get("matrix product"),
        float_instructions=values.get("fma"),
        special_functions=values.get("tanh"),
    )


def _copy(device: torch.device) -> Ceiling:
    """Measure bytes read plus bytes written by copies within device memory."""
    size = _COPIED_BYTES[device.type]
    # Random data, since zeros may be copied faster.
    sources = [torch.randint(0, 256, (size,), dtype=torch.uint8, device=device) for _ in range(2)]
    targets = [torch.empty_like(source) for source in sources]

    def call(number: int) -> None:
        targets[number % 2].copy_(sources[number % 2])

    return _ceiling("copy", "B", 2.0 * size, call, device)


def _square_product(device: torch.device) -> Ceiling:
    """Measure the peak of the matrix units with a large square product of random bf16."""
    side = _SQUARE[device.type]
    sets = [
        tuple(torch.randn(side, side, device=device, dtype=torch.bfloat16) for _ in range(2))
        for _ in range(2)
    ]

    def call(number: int) -> None:
        left, right = sets[number % 2]
        left @ right

    return _ceiling("matrix product", "FLOP", 2.0 * side**3, call, device)


def _instruction(kind: str, device: torch.device) -> Ceiling:
    """Measure the throughput of one instruction with a kernel that does nothing else."""
    unit = "results"
    unavailable = BACKENDS["triton"].unavailable_reason(device.type)
    if unavailable:
        return Ceiling(name=kind, unit=unit, reason=unavailable)
    from elmanctl.bench.probes import BLOCK, instructions, probe

    on_cuda = device.type == "cuda"
    processors = torch.cuda.get_device_properties(device).multi_processor_count if on_cuda else 1
    programs = _WAVES * _PROGRAMS_PER_SM * processors if on_cuda else 1
    rounds, unrolled = (_ROUNDS[kind], _UNROLLED) if on_cuda else (1, 2)
    launch = probe(kind, unrolled=unrolled, interpreted=not on_cuda)
    out = torch.empty(programs * BLOCK, device=device)

    def call(number: int) -> None:
        launch((programs,), out=out, rounds=rounds)

    return _ceiling(kind, unit, float(instructions(rounds, unrolled, programs)), call, device)


def _ceiling(
    name: str, unit: str, amount: float, call: Callable[[int], None], device: torch.device
) -> Ceiling:
    with suppress_warnings():
        timing = measure(call, device, _SECONDS[device.type])
        clocks = _clocks_under_load(call, timing, device)
    return Ceiling(
        name=name,
        unit=unit,
        value=amount / timing.ms * 1e3,
        spread=timing.spread,
        clocks=clocks,
    )


def _clocks_under_load(
    call: Callable[[int], None], timing: Timing, device: torch.device
) -> dict[str, str] | None:
    """Query the clocks while the GPU is busy, since an idle GPU lowers them."""
    if device.type != "cuda":
        return None
    busy_ms = 1500.0
    for number in range(int(busy_ms / timing.ms) + 1):
        call(number)
    clocks = dict(nvidia.query(nvidia.CLOCKS, driver_name(device)))
    torch.cuda.synchronize(device)
    return clocks or None
