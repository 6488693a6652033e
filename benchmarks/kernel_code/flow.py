"""Where control goes in a listing, and which instructions a loop repeats; pure.

Addresses alone mislead: ptxas turns loops around, so that their last part may stand behind the
branch that leaves them, and puts what is seldom run at the end of a kernel, with a branch back
that looks like that of a loop.  So a loop is here what compilers mean by it: an edge to a block
that every way to the edge leads through, and all blocks between the two (the natural loops of
Aho, Lam, Sethi and Ullman, Compilers, 2nd edition, 9.6.6).  Loops with one first block are one.
"""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from itertools import pairwise

from benchmarks.kernel_code.sass import Instruction, Listing

_ENDS = {"BRA", "EXIT", "RET", "BSYNC", "BRX", "BRXU", "JMP", "JMX", "JMXU", "CALL", "KILL"}
_UNREADABLE = {"BRX", "BRXU", "JMP", "JMX", "JMXU"}


@dataclass(frozen=True, slots=True)
class Loop:
    """One loop: the instructions that are its own, not those of loops inside it.

    `address` is where it begins, `depth` how many loops it is inside of.  `guarded` counts those
    of `own` that a pass may go around by a branch; what stands under a predicate is not among
    them, since it is issued in any case.
    """

    address: int
    depth: int
    own: tuple[Instruction, ...]
    guarded: int


@dataclass(frozen=True, slots=True)
class _Block:
    instructions: tuple[Instruction, ...]
    next: frozenset[int]


# For each register that lanes wait at, the addresses where they may have been told to go on.
_Waits = Mapping[str, frozenset[int]]


def find_loops(listing: Listing) -> list[Loop]:
    """Return the loops of a kernel in the order of their addresses, outer ones first.

    Raises ValueError on a jump to an address that only the running kernel knows, and on a way
    into the middle of a loop.
    """
    blocks = _blocks(listing)
    dominators = _dominators(blocks)
    bodies: dict[int, set[int]] = {}
    latches: dict[int, list[int]] = {}
    for source, block in blocks.items():
        for target in block.next:
            if target in dominators[source]:
                bodies.setdefault(target, {target}).update(_body(blocks, target, source))
                latches.setdefault(target, []).append(source)
    _refuse_other_cycles(blocks, dominators)
    loops = []
    for header in sorted(bodies):
        inside = [bodies[other] for other in bodies if other != header and other in bodies[header]]
        own = bodies[header].difference(*inside)
        always = set.intersection(*(dominators[latch] for latch in latches[header]))
        loops.append(
            Loop(
                address=header,
                depth=sum(header in body for other, body in bodies.items() if other != header),
                own=tuple(i for start in sorted(own) for i in blocks[start].instructions),
                guarded=sum(len(blocks[start].instructions) for start in own - always),
            )
        )
    return loops


def _blocks(listing: Listing) -> dict[int, _Block]:
    """Return the blocks that a kernel can reach, by their first addresses."""
    runs = _runs(listing)
    after = dict(pairwise(runs))
    found: dict[int, _Block] = {}
    told: dict[int, _Waits] = {min(runs): {}}
    waiting = [min(runs)]
    while waiting:
        start = waiting.pop()
        waits = dict(told[start])
        for instruction in runs[start]:
            if _root(instruction) == "BSSY":
                (label,) = instruction.targets
                waits[_barrier(instruction)] = frozenset({listing.addresses[label]})
        targets = frozenset(_next(runs[start][-1], after.get(start), listing, waits))
        found[start] = _Block(runs[start], targets)
        for target in targets:
            before = told.get(target)
            told[target] = _merged(before or {}, waits)
            if told[target] != before:
                waiting.append(target)
    return {start: found[start] for start in sorted(found)}


def _runs(listing: Listing) -> dict[int, tuple[Instruction, ...]]:
    """Cut a listing where control may come from or go to elsewhere."""
    starts = set(listing.addresses.values())
    runs: dict[int, list[Instruction]] = {}
    ended = True
    for instruction in listing.instructions:
        if ended or instruction.address in starts:
            run = runs[instruction.address] = []
        run.append(instruction)
        ended = _root(instruction) in _ENDS
    return {start: tuple(run) for start, run in runs.items()}


def _merged(one: _Waits, other: _Waits) -> _Waits:
    empty: frozenset[int] = frozenset()
    return {name: one.get(name, empty) | other.get(name, empty) for name in {*one, *other}}


def _root(instruction: Instruction) -> str:
    return instruction.opcode.split(".")[0]


def _barrier(instruction: Instruction) -> str:
    return next(
        word for word in instruction.operands.replace(",", " ").split() if word.startswith("B")
    )


def _next(
    last: Instruction, after: int | None, listing: Listing, waits: dict[str, frozenset[int]]
) -> Iterator[int]:
    """Yield the addresses that may follow the last instruction of a block.

    A register at which lanes have met is taken out of `waits`.
    """
    root = _root(last)
    if root in _UNREADABLE:
        raise ValueError(f"{last.opcode} at {last.address:#x} goes where only a GPU knows")
    goes_on = last.guard is not None
    if root == "BRA":
        (label,) = last.targets
        goes_on |= last.operands != f"`({label})"  # it asks a predicate among its operands
        # BRA.DIV leaves for a slow copy of shuffles, for warps whose lanes are not together.
        if not last.opcode.startswith("BRA.DIV"):
            yield listing.addresses[label]
    elif root == "BSYNC":
        if _barrier(last) not in waits:
            raise ValueError(f"BSYNC at {last.address:#x} without a BSSY before it")
        yield from waits.pop(_barrier(last))
    elif root == "CALL":
        # For sm_80 ptxas also leaves loops by a call, to code that never returns.
        yield from (listing.addresses[to] for to in last.targets if to in listing.addresses)
        goes_on = True
    elif root not in ("EXIT", "RET", "KILL"):
        goes_on = True
    if goes_on and after is not None:
        yield after


def _dominators(blocks: dict[int, _Block]) -> dict[int, set[int]]:
    """Return, for each block, the blocks that every way to it from the entry leads through."""
    before: dict[int, list[int]] = {start: [] for start in blocks}
    for start, block in blocks.items():
        for target in block.next:
            before[target].append(start)
    entry = min(blocks)
    found = {start: set(blocks) for start in blocks} | {entry: {entry}}
    changing = True
    while changing:
        changing = False
        for start in blocks:
            if start == entry:
                continue
            new = {start} | set.intersection(*(found[other] for other in before[start]))
            changing |= new != found[start]
            found[start] = new
    return found


def _body(blocks: dict[int, _Block], header: int, latch: int) -> set[int]:
    """Return the blocks from which the latch is reached without going through the header."""
    found = {header}
    waiting = [latch]
    while waiting:
        start = waiting.pop()
        if start not in found:
            found.add(start)
            waiting += [other for other, block in blocks.items() if start in block.next]
    return found


def _refuse_other_cycles(blocks: dict[int, _Block], dominators: dict[int, set[int]]) -> None:
    """Raise ValueError if there is a cycle without a back edge: a loop with two entries."""
    forward = {
        start: [target for target in block.next if target not in dominators[start]]
        for start, block in blocks.items()
    }
    into = dict.fromkeys(blocks, 0)
    for targets in forward.values():
        for target in targets:
            into[target] += 1
    waiting = [start for start, number in into.items() if number == 0]
    ordered = 0
    while waiting:
        ordered += 1
        for target in forward[waiting.pop()]:
            into[target] -= 1
            if into[target] == 0:
                waiting.append(target)
    if ordered != len(blocks):
        raise ValueError("a loop has more than one entry")
