"""Instructions that read and write memory."""

from collections.abc import Callable
from typing import Any

import numpy as np

from tests.kernels.ptx.faults import Unsupported
from tests.kernels.ptx.memory import Memory
from tests.kernels.ptx.parse import Address, Instruction, Operand
from tests.kernels.ptx.rounding import Array
from tests.kernels.ptx.threads import TYPES, Builder, Mask, Modifiers, Step, Threads, dtype_of

# How a line is kept in the caches changes no result.
_CACHES = ("ca", "cg", "cs", "cv", "lu", "wb", "wt", "nc")
_HINTS = ("L1::", "L2::")


def space_of(modifiers: Modifiers) -> str:
    space = modifiers.one_of("global", "shared", "shared::cta")
    if space is None:
        raise Unsupported("an access whose space is not said")
    return space.removesuffix("::cta")


def memory_of(space: str, threads: Threads) -> Memory:
    return threads.global_memory if space == "global" else threads.shared_memory


def addresses_of(operand: Operand, threads: Threads) -> Callable[[], Array]:
    """What gives the address of every thread, int64."""
    if not isinstance(operand, Address):
        raise Unsupported(f"the address {operand}")
    base, offset = operand.base, operand.offset
    if isinstance(base, str):
        value = np.full(threads.count, threads.symbol(base) + offset)
        return lambda: value
    read = threads.reader(base, TYPES["b64" if base.type == "b64" else "b32"])
    if offset == 0:
        return lambda: read().astype(np.int64)
    return lambda: read().astype(np.int64) + offset


def _plain_access(instruction: Instruction) -> tuple[str, int, np.dtype[Any], bool]:
    """The space, how many words, of what type, and whether the last operand is a cache policy."""
    modifiers = Modifiers(instruction)
    space = space_of(modifiers)
    modifiers.one_of(*_CACHES)
    hints = modifiers.starting_with(*_HINTS)
    vector = modifiers.one_of("v2", "v4")
    dtype = dtype_of(modifiers.word())
    modifiers.end()
    return space, int(vector[1]) if vector else 1, dtype, "L2::cache_hint" in hints


def least_size(instruction: Instruction) -> tuple[str, int] | None:
    """The space that an instruction accesses and the size of its accesses in bytes, if it does."""
    opcode = instruction.opcode
    if opcode in ("ldmatrix", "stmatrix"):
        return "shared", 2 if "trans" in instruction.modifiers else 4
    if opcode in ("ld", "st") and "param" not in instruction.modifiers:
        space, count, dtype, _ = _plain_access(instruction)
        return space, count * dtype.itemsize
    if opcode in ("atom", "red"):
        space = "global" if "global" in instruction.modifiers else "shared"
        return space, dtype_of(instruction.modifiers[-1]).itemsize
    return None


def load(instruction: Instruction, threads: Threads) -> Step:
    if "param" in instruction.modifiers:
        return _load_parameter(instruction, threads)
    space, count, dtype, has_policy = _plain_access(instruction)
    result, address, *_ = instruction.operands[: 2 + has_policy]
    results = result if isinstance(result, tuple) else (result,)
    if len(results) != count:
        raise Unsupported(f"{count} words into {len(results)} registers")
    memory, addresses = memory_of(space, threads), addresses_of(address, threads)
    writes = [threads.writer(one, dtype) for one in results]

    def step(mask: Mask) -> None:
        at = addresses()
        words = memory.load(
            at if mask is None else at[mask], dtype.itemsize, count, threads.active(mask)
        ).view(dtype)
        for i, write in enumerate(writes):
            write(threads.spread(np.ascontiguousarray(words[:, i]), mask), mask)

    return step


def _load_parameter(instruction: Instruction, threads: Threads) -> Step:
    modifiers = Modifiers(instruction)
    modifiers.take("param")
    dtype = dtype_of(modifiers.word())
    modifiers.end()
    result, address = instruction.operands
    if not isinstance(address, Address) or address.base not in threads.parameters:
        raise Unsupported(f"the parameter {address}")
    data = threads.parameters[str(address.base)]
    value = np.frombuffer(data, dtype, count=1, offset=address.offset)
    write, values = threads.writer(result, dtype), np.full(threads.count, value)
    return lambda mask: write(values, mask)


def store(instruction: Instruction, threads: Threads) -> Step:
    space, count, dtype, has_policy = _plain_access(instruction)
    address, value, *_ = instruction.operands[: 2 + has_policy]
    values = value if isinstance(value, tuple) else (value,)
    if len(values) != count:
        raise Unsupported(f"{count} words from {len(values)} registers")
    memory, addresses = memory_of(space, threads), addresses_of(address, threads)
    unsigned = np.dtype(f"u{dtype.itemsize}")
    reads = [threads.reader(one, unsigned) for one in values]

    def step(mask: Mask) -> None:
        at, words = addresses(), np.stack([read() for read in reads], axis=1)
        if mask is not None:
            at, words = at[mask], words[mask]
        memory.store(at, words, threads.active(mask))

    return step


_UPDATES: dict[str, Callable[[Any, Any], Any]] = {
    "add": np.add,
    "min": np.minimum,
    "max": np.maximum,
    "and": np.bitwise_and,
    "or": np.bitwise_or,
    "xor": np.bitwise_xor,
    "exch": lambda old, new: new,
}


def update(instruction: Instruction, threads: Threads) -> Step:
    """atom and red: one thread after the other, in the order of their numbers."""
    modifiers = Modifiers(instruction)
    modifiers.one_of("relaxed", "acq_rel", "acquire", "release")
    space = space_of(modifiers)
    modifiers.one_of("cta", "gpu", "sys")
    modifiers.one_of("relaxed", "acq_rel", "acquire", "release")
    operation, dtype = modifiers.word(), dtype_of(modifiers.word())
    modifiers.end()
    if operation not in _UPDATES:
        raise Unsupported(f"the atomic update {operation}")
    function = _UPDATES[operation]
    result = instruction.operands[0] if instruction.opcode == "atom" else "_"
    address, value = instruction.operands[-2:]
    memory, addresses = memory_of(space, threads), addresses_of(address, threads)
    read, write = threads.reader(value, dtype), threads.writer(result, dtype)

    def step(mask: Mask) -> None:
        at, values = addresses(), read()
        if mask is not None:
            at, values = at[mask], values[mask]
        old = memory.update(at, values, threads.active(mask), function)
        write(threads.spread(old, mask), mask)

    return step


def make_policy(instruction: Instruction, threads: Threads) -> Step:
    """createpolicy, whose result only cache hints use."""
    write = threads.writer(instruction.operands[0], TYPES["b64"])
    zeros = np.zeros(threads.count, np.uint64)
    return lambda mask: write(zeros, mask)


BUILDERS: dict[str, Builder] = {
    "ld": load,
    "st": store,
    "atom": update,
    "red": update,
    "createpolicy": make_policy,
}
