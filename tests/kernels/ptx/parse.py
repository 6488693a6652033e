"""PTX text as a kernel of basic blocks; names of registers are resolved, numbers are not read."""

import re
from dataclasses import dataclass, field

from tests.kernels.ptx.faults import Unsupported


@dataclass(frozen=True, slots=True)
class Register:
    """A register of every thread; `type` is as declared: pred, b16, b32 or b64."""

    index: int
    type: str


@dataclass(frozen=True, slots=True)
class Negated:
    """The opposite of a predicate: `!%p1`."""

    register: Register


@dataclass(frozen=True, slots=True)
class Address:
    """`[base + offset]`; a name as the base is a parameter or a variable."""

    base: "Register | str"
    offset: int


@dataclass(frozen=True, slots=True)
class Pair:
    """Two destinations, `%r1|%p1`."""

    first: Register
    second: Register


Vector = tuple["Register | str", ...]
Operand = Register | Negated | Address | Pair | Vector | str


@dataclass(frozen=True, slots=True)
class Instruction:
    """One instruction: `@guard opcode.modifiers operands`, and the line of source it came from."""

    opcode: str
    modifiers: tuple[str, ...]
    operands: tuple[Operand, ...]
    guard: Register | Negated | None
    text: str
    source: str


@dataclass(slots=True)
class Block:
    """Instructions that follow one another; only the last of them may branch."""

    instructions: list[Instruction] = field(default_factory=list)


@dataclass(frozen=True, slots=True)
class Parameter:
    """A parameter of the kernel; `type` is as declared, such as u64."""

    name: str
    type: str
    is_pointer: bool


@dataclass(slots=True)
class Kernel:
    """An entry of a PTX module.  `labels` gives the block that each label stands before."""

    name: str
    parameters: list[Parameter]
    registers: list[Register]
    blocks: list[Block]
    labels: dict[str, int]
    shared_symbols: frozenset[str]
    threads: int | None


_COMMENT = re.compile(r"//[^\n]*|/\*.*?\*/", re.DOTALL)
_ENTRY = re.compile(r"\.entry\s+(?P<name>[\w$]+)\s*\((?P<parameters>[^)]*)\)(?P<limits>[^{]*)\{")
_PARAMETER = re.compile(r"\.param\s+\.(?P<type>\w+)(?P<rest>[^,]*?)(?P<name>[\w$]+)\s*$")
_SHARED = re.compile(r"\.extern\s+\.shared\s+(?:\.align\s+\d+\s+)?\.b8\s+([\w$]+)\s*\[\s*\]")
_LOCATION = re.compile(r"\.loc\s+(\d+)\s+(\d+)[^\n]*")
_LABEL = re.compile(r"([\w$%]+):(?!:)")
_TARGET = re.compile(r"\bbra(?:\.uni)?\s+([\w$%]+)\s*;")
_GUARD = re.compile(r"@\s*(!?)\s*([%\w$]+)\s+")
_ADDRESS = re.compile(r"\[\s*([%\w$]+)\s*(?:\+\s*(-?\s*\w+))?\s*\]$")
_DECLARED = re.compile(r"([%\w$]+)\s*(?:<(\d+)>)?")
ENDS_A_BLOCK = ("bra", "ret", "exit", "trap")
# What threads do together: they may have to wait for others before it.
TOGETHER = ("bar", "barrier", "shfl", "vote", "redux", "match", "ldmatrix", "stmatrix", "mma")


def parse(text: str) -> Kernel:
    """The one entry of a module.

    Raises:
        Unsupported: there is not exactly one entry, or something in it is not understood.
    """
    files = dict(re.findall(r'\.file\s+(\d+)\s+"(?:[^"]*/)?([^"/]*)"', text))
    bare = _COMMENT.sub(" ", text)
    entries = list(_ENTRY.finditer(bare))
    if len(entries) != 1:
        raise Unsupported(f"a module with {len(entries)} entries")
    (entry,) = entries
    threads = re.search(r"\.reqntid\s+(\d+)", entry["limits"])
    body = _Body(bare, entry.end(), files)
    body.read()
    return Kernel(
        name=entry["name"],
        parameters=[_parameter(one) for one in entry["parameters"].split(",") if one.strip()],
        registers=body.registers,
        blocks=body.blocks,
        labels=body.labels,
        shared_symbols=frozenset(_SHARED.findall(bare)),
        threads=int(threads[1]) if threads else None,
    )


def _parameter(text: str) -> Parameter:
    match = _PARAMETER.search(text.strip())
    if match is None:
        raise Unsupported(f"the parameter {text.strip()}")
    return Parameter(match["name"], match["type"], ".ptr" in match["rest"])


class _Body:
    """A reader of what is between the braces of an entry."""

    def __init__(self, text: str, start: int, files: dict[str, str]) -> None:
        self.text, self.at, self.files = text, start, files
        self.targets = frozenset(_TARGET.findall(text))
        self.registers: list[Register] = []
        self.scopes: list[dict[str, Register]] = [{}]
        self.blocks = [Block()]
        self.labels: dict[str, int] = {}
        self.source = "?"

    def read(self) -> None:
        while self.scopes:
            self._skip_space()
            if self._take("{"):
                self.scopes.append({})
            elif self._take("}"):
                self.scopes.pop()
            elif self._take(";"):
                continue
            elif location := _LOCATION.match(self.text, self.at):
                self.at = location.end()
                self.source = f"{self.files.get(location[1], '?')}:{location[2]}"
            elif label := _LABEL.match(self.text, self.at):
                self.at = label.end()
                if label[1] in self.targets:  # the others are for a debugger
                    self._begin_block()
                    self.labels[label[1]] = len(self.blocks) - 1
            else:
                self._statement(self._up_to_semicolon())

    def _skip_space(self) -> None:
        while self.text[self.at].isspace():
            self.at += 1

    def _take(self, character: str) -> bool:
        found = self.text[self.at] == character
        self.at += found
        return found

    def _up_to_semicolon(self) -> str:
        end = self.text.index(";", self.at)
        statement = " ".join(self.text[self.at : end].split())
        self.at = end + 1
        return statement

    def _begin_block(self) -> None:
        if self.blocks[-1].instructions:
            self.blocks.append(Block())

    def _statement(self, text: str) -> None:
        if text.startswith(".reg"):
            self._declare(text)
        elif text.startswith((".pragma", ".loc")):
            return
        elif text.startswith("."):
            raise Unsupported(f"the directive {text}")
        else:
            instruction = self._instruction(text)
            if instruction.opcode in TOGETHER:
                self._begin_block()
            self.blocks[-1].instructions.append(instruction)
            if instruction.opcode in ENDS_A_BLOCK:
                self._begin_block()

    def _declare(self, text: str) -> None:
        _, kind, names = text.split(maxsplit=2)
        # u32, s32 and f32 are as wide as b32, and no instruction asks for more than the width.
        type_ = kind[1:] if kind == ".pred" else "b" + kind[2:]
        for name, count in _DECLARED.findall(names):
            for one in [f"{name}{i}" for i in range(int(count))] if count else [name]:
                register = Register(len(self.registers), type_)
                self.registers.append(register)
                self.scopes[-1][one] = register

    def _instruction(self, text: str) -> Instruction:
        guard: Register | Negated | None = None
        rest = text
        if match := _GUARD.match(text):
            register = self._register(match[2])
            guard = Negated(register) if match[1] else register
            rest = text[match.end() :]
        name, _, operands = rest.partition(" ")
        opcode, *modifiers = name.split(".")
        return Instruction(
            opcode=opcode,
            modifiers=tuple(modifiers),
            operands=tuple(self._operand(one) for one in _split(operands)),
            guard=guard,
            text=text,
            source=self.source,
        )

    def _register_or_name(self, text: str) -> Register | str:
        for scope in reversed(self.scopes):
            if text in scope:
                return scope[text]
        return text

    def _register(self, name: str) -> Register:
        found = self._register_or_name(name)
        if isinstance(found, str):
            raise Unsupported(f"the register {name}, which is not declared")
        return found

    def _operand(self, text: str) -> Operand:
        if text.startswith("{"):
            return tuple(self._register_or_name(one.strip()) for one in text[1:-1].split(","))
        if text.startswith("["):
            match = _ADDRESS.match(text)
            if match is None:
                raise Unsupported(f"the address {text}")
            offset = int((match[2] or "0").replace(" ", ""), 0)
            return Address(self._register_or_name(match[1]), offset)
        if text.startswith("!"):
            return Negated(self._register(text[1:].strip()))
        if "|" in text:
            first, second = (self._register(one.strip()) for one in text.split("|"))
            return Pair(first, second)
        return self._register_or_name(text)


def _split(operands: str) -> list[str]:
    """The operands between the commas, but for commas inside of braces."""
    parts, depth, start = [], 0, 0
    for at, character in enumerate(operands):
        depth += (character in "{[") - (character in "}]")
        if character == "," and not depth:
            parts.append(operands[start:at].strip())
            start = at + 1
    last = operands[start:].strip()
    return [*parts, last] if last else parts
