"""What is counted of a compiled kernel, as plain data."""

from dataclasses import asdict, dataclass, field
from typing import Any

from benchmarks.kernel_code.flow import find_loops
from benchmarks.kernel_code.sass import count, read_listing, read_resources

STORES, LOADS = "STL", "LDL"


@dataclass(frozen=True, slots=True)
class LoopCount:
    """The instructions that one pass of a loop issues on each warp, inner loops left out.

    `guarded` of them stand behind a branch that a pass may take around them.
    """

    depth: int
    instructions: int
    guarded: int
    kinds: dict[str, int]


@dataclass(frozen=True, slots=True)
class Measured:
    """One kernel under one Triton for one architecture.

    `local_stores` and `local_loads` are instructions, anywhere in the kernel, that put registers
    into memory and bring them back: spills, since no kernel of ours has arrays of its own.
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
        """Whether registers ran out."""
        return bool(self.local_stores or self.local_loads or self.stack_bytes)

    def encode(self) -> dict[str, Any]:
        """Return it as JSON has it."""
        return asdict(self)

    @classmethod
    def decode(cls, data: dict[str, Any]) -> "Measured":
        """Return what `encode` was called on."""
        return cls(**{**data, "loops": [LoopCount(**loop) for loop in data["loops"]]})


def measure(listing: str, resources: str, shared_bytes: int) -> Measured:
    """Count the instructions of what nvdisasm and cuobjdump printed of a kernel."""
    code = read_listing(listing)
    given = read_resources(resources)
    whole = count(code.instructions)
    return Measured(
        registers=given.registers,
        shared_bytes=shared_bytes,
        stack_bytes=given.stack_bytes + given.local_bytes,
        local_stores=whole[STORES],
        local_loads=whole[LOADS],
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
