"""Instruction counts of a compiled kernel, as plain data."""

from dataclasses import asdict, dataclass, field
from typing import Any

from benchmarks.kernel_code.flow import find_loops
from benchmarks.kernel_code.sass import count, read_listing, read_resources

STORES, LOADS = "STL", "LDL"


@dataclass(frozen=True, slots=True)
class LoopCount:
    """Instructions that one iteration of a loop issues per warp, excluding inner loops.

    `guarded` of them are behind a branch that an iteration may skip.
    """

    depth: int
    instructions: int
    guarded: int
    kinds: dict[str, int]


@dataclass(frozen=True, slots=True)
class Measured:
    """Counts of one kernel with one version of Triton for one architecture.

    `local_stores` and `local_loads` count instructions on local memory, anywhere in the kernel:
    register spills, since our kernels have no local arrays.
    """

    registers: int
    shared_bytes: int
    stack_bytes: int
    local_stores: int
    local_loads: int
    instructions: int
    loops: list[LoopCount] = field(default_factory=list)

    @property
    def spills(self) -> bool:
        """Whether registers are spilled."""
        return bool(self.local_stores or self.local_loads or self.stack_bytes)

    def encode(self) -> dict[str, Any]:
        """Encode as plain data."""
        return asdict(self)

    @classmethod
    def decode(cls, data: dict[str, Any]) -> "Measured":
        """Decode from plain data."""
        return cls(**{**data, "loops": [LoopCount(**loop) for loop in data["loops"]]})


def measure(listing: str, resources: str, shared_bytes: int) -> Measured:
    """Count the instructions of a kernel from the output of nvdisasm and cuobjdump."""
    code = read_listing(listing)
    usage = read_resources(resources)
    total = count(code.instructions)
    return Measured(
        registers=usage.registers,
        shared_bytes=shared_bytes,
        stack_bytes=usage.stack_bytes + usage.local_bytes,
        local_stores=total[STORES],
        local_loads=total[LOADS],
        instructions=len(code.instructions),
        loops=[
            LoopCount(
                depth=loop.depth,
                instructions=len(loop.own),
                guarded=loop.guarded,
                kinds=dict(sorted(count(loop.own).items())),
            )
            for loop in find_loops(code)
        ],
    )
