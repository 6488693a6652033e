"""A machine that executes the PTX of one kernel on the CPU, exactly enough to test it.

All threads of all programs of the grid run in lockstep, one numpy operation for each instruction.
Where threads part at a branch, those at the earliest place go first, until they meet again.  What
the hardware leaves open is a fault here: races, reads of what was never written, barriers that some
threads do not reach.
"""

import itertools
from collections import Counter
from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from tests.kernels.ptx import access, conversions, floats, integers, matrices, moves, warps
from tests.kernels.ptx.arguments import Arguments
from tests.kernels.ptx.faults import Divergence, PtxFault, Trapped, Unsupported
from tests.kernels.ptx.memory import GlobalMemory, SharedMemory
from tests.kernels.ptx.parse import ENDS_A_BLOCK, TOGETHER, Instruction, Negated, Register, parse
from tests.kernels.ptx.races import WARP, Clock
from tests.kernels.ptx.threads import TYPES, Array, Builder, Mask, Read, Step, Threads

_BUILDERS: dict[str, Builder] = {
    "mov": moves.move,
    "selp": moves.select,
    "setp": moves.compare,
    "cvt": conversions.convert,
    "cvta": moves.convert_address,
    "shl": integers.shift,
    "shr": integers.shift,
    "shf": integers.funnel,
    "lop3": integers.lookup,
    "prmt": integers.permute,
    "bfe": integers.extract,
    "bfi": integers.insert,
    "rem": integers.divide,
    "popc": integers.count_ones,
    **dict.fromkeys(floats.OPCODES, floats.build),
    **dict.fromkeys(integers.SIMPLE_OPCODES, integers.simple),
    **access.BUILDERS,
    **warps.BUILDERS,
    **matrices.BUILDERS,
}
# These are of integers or of floating-point numbers, as their last modifier says.
_OF_BOTH = ("add", "sub", "mul", "mad", "div", "min", "max", "neg", "abs")
_OF_INTEGERS: dict[str, Builder] = {
    "mul": integers.multiply,
    "mad": integers.multiply,
    "div": integers.divide,
}


@dataclass(frozen=True, slots=True)
class Report:
    """What a run did: how often warps executed each opcode, over all programs."""

    instructions: Counter[str] = field(default_factory=Counter)

    def count(self, start: str) -> int:
        """The instructions whose opcode starts so, such as `shfl`."""
        return sum(n for name, n in self.instructions.items() if name.startswith(start))


@dataclass(frozen=True, slots=True)
class _Code:
    """A block that is ready to run: its steps, and where it goes on, if not to the next block."""

    steps: list[tuple[Step, Instruction]]
    branch: Instruction | None
    condition: Read | None
    waits_for: str | None  # the threads that must all be there before it: program, warp
    opcodes: Counter[str]


class PtxMachine:
    """One kernel, and what it is launched with beside its arguments.

    `perturb` is given the name of an approximate instruction, such as tanh, and the exact result in
    float64, and returns what the instruction shall give.

    Different words that threads write to one address at once are refused: PTX keeps any of them.
    """

    def __init__(
        self,
        ptx: str,
        *,
        num_warps: int,
        shared_bytes: int,
        check_races: bool = True,
        perturb: Callable[[str, Array], Array] | None = None,
    ) -> None:
        self.kernel = parse(ptx)
        self.threads = num_warps * WARP
        if self.kernel.threads not in (None, self.threads):
            raise ValueError(f"{self.kernel.name} was compiled for {self.kernel.threads} threads")
        self.shared_bytes = shared_bytes
        self.check_races = check_races
        self.perturb = perturb

    def run(
        self,
        grid: tuple[int, ...],
        arguments: Sequence[Any],
        *,
        poisoned: Collection[int] = (),
    ) -> Report:
        """Execute all programs of a grid; results are written into the arrays that are given.

        `arguments` are arrays of numpy, tensors of torch on the CPU, and numbers, in the order of
        the kernel's parameters; `poisoned` are the numbers of those that hold nothing yet, so that
        to read from them before they are written is a fault.

        Raises:
            PtxFault: the program did what it must not, or what the machine does not know.
        """
        x, y, z = (*grid, 1, 1)[:3]
        laid = Arguments(arguments, poisoned)
        clock = Clock(x * y * z, self.threads)
        least = self._least_sizes()
        checked = clock if self.check_races else None
        memory = GlobalMemory(laid.buffers, least["global"], checked)
        shared = SharedMemory(x * y * z, self.shared_bytes, least["shared"], checked, self.threads)
        addresses = {i: memory.address(*place) for i, place in laid.places.items()}
        threads = Threads(
            self.kernel,
            (x, y, z),
            self.threads,
            (memory, shared),
            clock,
            laid.parameters(self.kernel.parameters, addresses),
            self.perturb,
        )
        with np.errstate(all="ignore"):
            report = _Run(self._code(threads), self.kernel.labels, threads).finish()
        memory.write_back()
        return report

    def _instructions(self) -> list[Instruction]:
        return list(itertools.chain(*[one.instructions for one in self.kernel.blocks]))

    def _least_sizes(self) -> dict[str, int]:
        """The fewest bytes that one access to global and to shared memory is for."""
        least = {"global": 16, "shared": 16}
        for instruction in self._instructions():
            with _naming(instruction):
                if size := access.least_size(instruction):
                    least[size[0]] = min(least[size[0]], size[1])
        return least

    def _code(self, threads: Threads) -> list[_Code]:
        return [_assemble(block.instructions, threads) for block in self.kernel.blocks]


class _naming:  # noqa: N801 - a context manager, read as a verb
    """Ends the message of a fault with the instruction at which it happened."""

    def __init__(self, instruction: Instruction) -> None:
        self.instruction = instruction

    def __enter__(self) -> None:
        return None

    def __exit__(self, kind: object, error: object, trace: object) -> None:
        if isinstance(error, PtxFault):
            _name(error, self.instruction)


def _name(fault: PtxFault, instruction: Instruction) -> None:
    fault.args = (f"{fault} in `{instruction.text}` ({instruction.source})",)


def _builder(instruction: Instruction) -> Builder:
    opcode = instruction.opcode
    if opcode in _OF_BOTH:
        if floats.is_float(instruction):
            return floats.build
        return _OF_INTEGERS.get(opcode, integers.simple)
    if opcode not in _BUILDERS:
        raise Unsupported(f"the instruction {opcode}")
    return _BUILDERS[opcode]


def _assemble(instructions: list[Instruction], threads: Threads) -> _Code:
    branch = instructions[-1] if instructions and instructions[-1].opcode in ENDS_A_BLOCK else None
    plain = instructions[:-1] if branch else instructions
    steps = []
    for instruction in plain:
        with _naming(instruction):
            try:
                steps.append((_guarded(instruction, threads), instruction))
            except ValueError as exc:
                raise Unsupported("so many operands") from exc
    condition = None
    if branch is not None and branch.guard is not None:
        condition = threads.reader(branch.guard, TYPES["pred"])
    waits_for = None
    if plain and plain[0].opcode in TOGETHER:
        waits_for = "program" if warps.is_for_programs(plain[0]) else "warp"
    opcodes = Counter(".".join((one.opcode, *one.modifiers)) for one in instructions)
    return _Code(steps, branch, condition, waits_for, opcodes)


def _guarded(instruction: Instruction, threads: Threads) -> Step:
    step = _builder(instruction)(instruction, threads)
    guard: Register | Negated | None = instruction.guard
    if guard is None:
        return step
    if instruction.opcode in TOGETHER:
        raise Unsupported("a predicate before what threads do together")
    read = threads.reader(guard, TYPES["pred"])

    def guarded(mask: Mask) -> None:
        wanted = read()
        if mask is not None:
            wanted = wanted & mask
        elif wanted.all():
            return step(None)
        if wanted.any():
            step(wanted)
        return None

    return guarded


class _Run:
    """The threads on their way through the blocks."""

    def __init__(self, code: list[_Code], labels: dict[str, int], threads: Threads) -> None:
        self.code, self.labels, self.threads = code, labels, threads
        # Where threads are about to go on: blocks, and which threads.
        self.at: dict[int, Mask] = {0: None}
        self.gone: Mask = None
        self.executed = [0] * len(code)

    def finish(self) -> Report:
        while self.at:
            number, mask = self._next()
            self._execute(number, mask)
        instructions: Counter[str] = Counter()
        for code, times in zip(self.code, self.executed, strict=True):
            for opcode, count in code.opcodes.items():
                instructions[opcode] += times * count
        return Report(instructions)

    def _next(self) -> tuple[int, Mask]:
        """The earliest block with threads that need not wait."""
        for number in sorted(self.at):
            mask = self.at.pop(number)
            if mask is None:
                return number, None
            ready = self._ready(mask, self.code[number].waits_for)
            if (mask & ~ready).any():
                self.at[number] = mask & ~ready
            if ready.any():
                return number, None if ready.all() else ready
        fault = Divergence("every thread waits for others that are elsewhere or have ended")
        first = min(self.at)
        _name(fault, self.code[first].steps[0][1])
        raise fault

    def _ready(self, mask: Array, waits_for: str | None) -> Array:
        """Those threads of the mask all of whose companions are in it too."""
        if waits_for is None:
            return mask
        size = WARP if waits_for == "warp" else self.threads.threads
        arrived = mask.reshape(-1, size)
        if waits_for == "program" and self.gone is not None:
            arrived = arrived | self.gone.reshape(-1, size)
        return mask & np.repeat(arrived.all(axis=1), size)

    def _execute(self, number: int, mask: Mask) -> None:
        code = self.code[number]
        warps_ = self.threads.count // WARP
        if mask is not None:
            warps_ = int(mask.reshape(-1, WARP).any(axis=1).sum())
        self.executed[number] += warps_
        instruction = code.branch
        try:
            for step, instruction in code.steps:  # noqa: B007 - for the message
                step(mask)
        except PtxFault as fault:
            assert instruction is not None
            _name(fault, instruction)
            raise
        self._leave(number, code, mask)

    def _leave(self, number: int, code: _Code, mask: Mask) -> None:
        branch = code.branch
        if branch is None:
            self._go(number + 1, mask)
            return
        taken, others = mask, None
        if code.condition is not None:
            condition = code.condition()
            taken = condition if mask is None else condition & mask
            others = ~condition if mask is None else ~condition & mask
            if others.any():
                self._go(number + 1, others)
            if not taken.any():
                return
        if branch.opcode == "bra":
            self._go(self.labels[str(branch.operands[0])], taken)
        elif branch.opcode == "trap":
            fault = Trapped("the program ended itself")
            _name(fault, branch)
            raise fault
        else:
            everyone = np.ones(self.threads.count, bool) if taken is None else taken
            self.gone = everyone if self.gone is None else self.gone | everyone

    def _go(self, number: int, mask: Mask) -> None:
        """Let these threads go on at a block, with those that are there already."""
        if number in self.at:
            there = self.at[number]
            assert mask is not None and there is not None
            mask = there | mask
        if mask is not None and mask.all():
            mask = None
        self.at[number] = mask
