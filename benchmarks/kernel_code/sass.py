"""Parser of SASS listings of nvdisasm and resource usage of cuobjdump; pure."""

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
    """An instruction; `guard` is its predicate, such as `!P1`."""

    address: int
    guard: str | None
    opcode: str
    operands: str

    @property
    def kind(self) -> str:
        """Kind for counting: the first part of its opcode, for MUFU also the function."""
        parts = self.opcode.split(".")
        return ".".join(parts[:2]) if parts[0] == "MUFU" else parts[0]

    @property
    def targets(self) -> list[str]:
        """Labels among its operands."""
        return _TARGET.findall(self.operands)


@dataclass(frozen=True, slots=True)
class Listing:
    """Instructions of one kernel in address order, and the addresses of labels."""

    instructions: tuple[Instruction, ...]
    addresses: dict[str, int]


@dataclass(frozen=True, slots=True)
class Resources:
    """Resources of a thread: registers, and bytes of stack and local memory."""

    registers: int
    stack_bytes: int
    local_bytes: int


def read_listing(text: str) -> Listing:
    """Parse the output of `nvdisasm -c` for a cubin with one kernel.

    Raises ValueError for an unknown instruction, for no instruction, and for several kernels.
    """
    instructions: list[Instruction] = []
    addresses: dict[str, int] = {}
    pending: list[str] = []
    for line in text.splitlines():
        label = _LABEL.match(line)
        if label:
            pending.append(label["label"])
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
        addresses |= dict.fromkeys(pending, address)
        pending = []
        instructions.append(
            Instruction(address, parts["guard"], parts["opcode"], parts["operands"])
        )
    if not instructions:
        raise ValueError("no instruction in the output of nvdisasm")
    return Listing(tuple(instructions), addresses)


def read_resources(text: str) -> Resources:
    """Parse the output of `cuobjdump -res-usage` for a cubin with one kernel."""
    found = _RESOURCES.findall(text)
    values = {name: int(value) for name, value in found}
    if len(found) != 4 or len(values) != 4:
        raise ValueError(f"not the resources of one kernel: {text.strip()}")
    return Resources(values["REG"], values["STACK"], values["LOCAL"])


def count(instructions: Iterable[Instruction]) -> Counter[str]:
    """Count instructions by kind."""
    return Counter(instruction.kind for instruction in instructions)
