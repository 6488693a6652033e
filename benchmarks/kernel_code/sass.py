"""The instructions of a kernel, from what nvdisasm and cuobjdump print; pure."""

import re
from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass

# `        /*2750*/              @!P1 BRA `(.L_x_0) ;`
_LINE = re.compile(r"^\s+/\*(?P<address>[0-9a-f]{4,})\*/\s+(?P<text>[^;]*?)\s*;")
_INSTRUCTION = re.compile(r"^(?:@(?P<guard>!?\w+)\s+)?(?P<opcode>[\w.]+)\s*(?P<operands>.*)$")
_LABEL = re.compile(r"^(?P<label>[.$\w]+):$")
_TARGET = re.compile(r"`\((?P<label>[.$\w]+)\)")
_RESOURCES = re.compile(r"\b(REG|STACK|SHARED|LOCAL):(\d+)")


@dataclass(frozen=True, slots=True)
class Instruction:
    """One instruction: `guard` is the predicate that it runs under, such as `!P1`."""

    address: int
    guard: str | None
    opcode: str
    operands: str

    @property
    def kind(self) -> str:
        """What it is counted as: the first part of its name, for MUFU also which function."""
        parts = self.opcode.split(".")
        return ".".join(parts[:2]) if parts[0] == "MUFU" else parts[0]

    @property
    def targets(self) -> list[str]:
        """The labels that it names."""
        return _TARGET.findall(self.operands)


@dataclass(frozen=True, slots=True)
class Listing:
    """The instructions of one kernel in the order of their addresses, and what labels stand for."""

    instructions: tuple[Instruction, ...]
    addresses: dict[str, int]


@dataclass(frozen=True, slots=True)
class Resources:
    """What a thread of a kernel is given: registers, and bytes of memory where they ran out."""

    registers: int
    stack_bytes: int
    local_bytes: int


def read_listing(text: str) -> Listing:
    """Read what `nvdisasm -c` prints of a cubin with one kernel.

    Raises ValueError where an instruction cannot be read, where there is none, and where
    instructions of several kernels stand.
    """
    instructions: list[Instruction] = []
    addresses: dict[str, int] = {}
    waiting: list[str] = []
    for line in text.splitlines():
        label = _LABEL.match(line)
        if label:
            waiting.append(label["label"])
            continue
        found = _LINE.match(line)
        if not found:
            continue
        parts = _INSTRUCTION.match(found["text"])
        if not parts:
            raise ValueError(f"not an instruction: {line.strip()}")
        address = int(found["address"], 16)
        if instructions and address <= instructions[-1].address:
            raise ValueError("instructions of more than one kernel")
        addresses |= dict.fromkeys(waiting, address)
        waiting = []
        instructions.append(
            Instruction(address, parts["guard"], parts["opcode"], parts["operands"])
        )
    if not instructions:
        raise ValueError("no instruction in what nvdisasm printed")
    return Listing(tuple(instructions), addresses)


def read_resources(text: str) -> Resources:
    """Read what `cuobjdump -res-usage` prints of a cubin with one kernel."""
    found = _RESOURCES.findall(text)
    values = {name: int(value) for name, value in found}
    if len(found) != 4 or len(values) != 4:
        raise ValueError(f"not the resources of one kernel: {text.strip()}")
    return Resources(values["REG"], values["STACK"], values["LOCAL"])


def count(instructions: Iterable[Instruction]) -> Counter[str]:
    """Return how many instructions of each kind there are."""
    return Counter(instruction.kind for instruction in instructions)
