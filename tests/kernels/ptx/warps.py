"""What the threads of a warp or a program do together: shuffles, votes, reductions, barriers.

The machine lets an instruction of this file begin only where all the threads that it is for are.
"""

from collections.abc import Callable

import numpy as np

from tests.kernels.ptx.faults import Unsupported
from tests.kernels.ptx.parse import Instruction, Operand, Pair
from tests.kernels.ptx.races import WARP
from tests.kernels.ptx.rounding import Array
from tests.kernels.ptx.threads import TYPES, Builder, Mask, Modifiers, Step, Threads

_ALL = 0xFFFFFFFF


def is_for_programs(instruction: Instruction) -> bool:
    """Whether an instruction waits for all threads of a program, not only of a warp."""
    return instruction.opcode in ("bar", "barrier") and instruction.modifiers[0] != "warp"


def _members(operand: Operand, threads: Threads) -> Callable[[Mask], None]:
    """Checks that all threads of the warp are asked for."""
    read = threads.reader(operand, TYPES["b32"])

    def check(mask: Mask) -> None:
        members = read() if mask is None else read()[mask]
        if (members != _ALL).any():
            raise Unsupported("a part of a warp")

    return check


def _lanes(mode: str, source: Array, clamp: Array, lane: Array) -> tuple[Array, Array]:
    """Which lane each reads from, and whether there is one: shfl as PTX defines it."""
    segment = (clamp >> 8) & 31
    last = (lane & segment) | (clamp & 31 & ~segment)
    wanted = {
        "up": lane - source,
        "down": lane + source,
        "bfly": lane ^ source,
        "idx": (lane & segment) | (source & ~segment),
    }[mode]
    found = wanted >= last if mode == "up" else wanted <= last
    return np.where(found, wanted, lane), found


def shuffle(instruction: Instruction, threads: Threads) -> Step:
    modifiers = Modifiers(instruction)
    modifiers.take("sync")
    mode = modifiers.one_of("up", "down", "bfly", "idx")
    if mode is None or not modifiers.take("b32"):
        raise Unsupported("shfl in this form")
    modifiers.end()
    result, value, source, clamp, members = instruction.operands
    first, second = (result.first, result.second) if isinstance(result, Pair) else (result, "_")
    write, write_found = threads.writer(first, TYPES["b32"]), threads.writer(second, TYPES["pred"])
    read, check = threads.reader(value, TYPES["b32"]), _members(members, threads)
    read_source, read_clamp = (threads.reader(one, TYPES["b32"]) for one in (source, clamp))
    warp = threads.ids - threads.lane

    def from_where() -> tuple[Array, Array]:
        source, clamp = (x().astype(np.int64) for x in (read_source, read_clamp))
        lanes, found = _lanes(mode, source & 31, clamp, threads.lane)
        return warp + lanes, found

    if isinstance(source, str) and isinstance(clamp, str):
        fixed = from_where()
        from_where = lambda: fixed  # noqa: E731

    def step(mask: Mask) -> None:
        check(mask)
        at, found = from_where()
        write(read()[at], mask)
        write_found(found, mask)

    return step


_REDUCTIONS = {
    "add": np.add,
    "min": np.minimum,
    "max": np.maximum,
    "and": np.bitwise_and,
    "or": np.bitwise_or,
    "xor": np.bitwise_xor,
}


def reduce(instruction: Instruction, threads: Threads) -> Step:
    """redux: one value of all lanes of a warp."""
    modifiers = Modifiers(instruction)
    modifiers.take("sync")
    function = _REDUCTIONS.get(modifiers.word())
    kind = modifiers.one_of("s32", "u32", "b32")
    if function is None or kind is None:
        raise Unsupported("redux in this form")
    modifiers.end()
    dtype = TYPES[kind]
    result, value, members = instruction.operands
    read, write, check = (
        threads.reader(value, dtype),
        threads.writer(result, dtype),
        _members(members, threads),
    )

    def step(mask: Mask) -> None:
        check(mask)
        one = function.reduce(read().reshape(-1, WARP), axis=1, dtype=dtype)
        write(np.repeat(one, WARP), mask)

    return step


def vote(instruction: Instruction, threads: Threads) -> Step:
    modifiers = Modifiers(instruction)
    modifiers.take("sync")
    mode = modifiers.one_of("all", "any", "ballot")
    if mode is None or not modifiers.take("b32" if mode == "ballot" else "pred"):
        raise Unsupported("vote in this form")
    modifiers.end()
    result, predicate, members = instruction.operands
    read, check = threads.reader(predicate, TYPES["pred"]), _members(members, threads)
    write = threads.writer(result, TYPES["b32" if mode == "ballot" else "pred"])
    weights = np.uint32(1) << np.arange(WARP, dtype=np.uint32)
    function: Callable[[Array], Array] = {
        "all": lambda x: x.all(axis=1),
        "any": lambda x: x.any(axis=1),
        "ballot": lambda x: (x * weights).sum(axis=1, dtype=np.uint32),
    }[mode]

    def step(mask: Mask) -> None:
        check(mask)
        write(np.repeat(function(read().reshape(-1, WARP)), WARP), mask)

    return step


def wait(instruction: Instruction, threads: Threads) -> Step:
    """bar.sync and barrier.sync of a whole program, bar.warp.sync of a whole warp."""
    modifiers = Modifiers(instruction)
    of_warp = modifiers.take("warp")
    if not modifiers.take("sync"):
        raise Unsupported("a barrier at which a thread does not wait")
    modifiers.take("aligned")
    modifiers.end()
    if of_warp:
        check = _members(instruction.operands[0], threads)

        def meet_warp(mask: Mask) -> None:
            check(mask)
            threads.clock.warp_barrier(threads.active(mask))

        return meet_warp
    if any(int(str(one), 0) != threads.threads for one in instruction.operands[1:]):
        raise Unsupported("a barrier of a part of a program")
    return lambda mask: threads.clock.program_barrier(threads.active(mask))


def pass_by(instruction: Instruction, threads: Threads) -> Step:
    """Fences and prefetches: they change no value here, and without a barrier order nothing."""
    return lambda mask: None


BUILDERS: dict[str, Builder] = {
    "shfl": shuffle,
    "redux": reduce,
    "vote": vote,
    "bar": wait,
    "barrier": wait,
    "membar": pass_by,
    "fence": pass_by,
    "prefetch": pass_by,
}
