"""Control-flow graph and natural loops of a listing; pure.

Addresses are not sufficient: ptxas rotates loops, so that their last part may follow the exit
branch, and moves cold code to the end of a kernel, with a backward branch that resembles that of a
loop.  Loops are therefore natural loops: a back edge to a dominating header, and all blocks from
which its source is reached without the header (Aho, Lam, Sethi and Ullman, Compilers, 2nd edition,
9.6.6).  Loops with the same header are merged.
"""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from itertools import pairwise

from benchmarks.kernel_code.sass import Instruction, Listing

_ENDS = {"BRA", "EXIT", "RET", "BSYNC", "BRX", "BRXU", "JMP", "JMX", "JMXU", "CALL", "KILL"}
_UNREADABLE = {"BRX", "BRXU", "JMP", "JMX", "JMXU"}


@dataclass(frozen=True, slots=True)
class Loop:
    """A natural loop; `own` are its instructions, excluding those of inner loops.

    `address` is that of its header, `depth` its nesting depth.  `guarded` counts the instructions
    of `own` that an iteration may branch around; predicated instructions are not among them, since
    they are issued in any case.
    """

    address: int
    depth: int
    own: tuple[Instruction, ...]
    guarded: int


@dataclass(frozen=True, slots=True)
class _Block:
    instructions: tuple[Instruction, ...]
    next: frozenset[int]


# The possible reconvergence addresses of each convergence barrier register.
_Barriers = Mapping[str, frozenset[int]]


def find_loops(listing: Listing) -> list[Loop]:
    """Return the loops of a kernel in address order, outer ones first.

    Raises ValueError for an indirect jump and for an irreducible loop.
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
    _check_reducible(blocks, dominators)
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
    """Return the reachable basic blocks by their first addresses."""
    runs = _runs(listing)
    after = dict(pairwise(runs))
    found: dict[int, _Block] = {}
    barriers_at: dict[int, _Barriers] = {min(runs): {}}
    worklist = [min(runs)]
    while worklist:
        start = worklist.pop()
        barriers = dict(barriers_at[start])
        for instruction in runs[start]:
            if _root(instruction) == "BSSY":
                (label,) = instruction.targets
                barriers[_barrier(instruction)] = frozenset({listing.addresses[label]})
        targets = frozenset(_successors(runs[start][-1], after.get(start), listing, barriers))
        found[start] = _Block(runs[start], targets)
        for target in targets:
            before = barriers_at.get(target)
            barriers_at[target] = _merged(before or {}, barriers)
            if barriers_at[target] != before:
                worklist.append(target)
    return {start: found[start] for start in sorted(found)}


def _runs(listing: Listing) -> dict[int, tuple[Instruction, ...]]:
    """Split a listing at labels and control-flow instructions."""
    starts = set(listing.addresses.values())
    runs: dict[int, list[Instruction]] = {}
    ended = True
    for instruction in listing.instructions:
        if ended or instruction.address in starts:
            run = runs[instruction.address] = []
        run.append(instruction)
        ended = _root(instruction) in _ENDS
    return {start: tuple(run) for start, run in runs.items()}


def _merged(one: _Barriers, other: _Barriers) -> _Barriers:
    empty: frozenset[int] = frozenset()
    return {name: one.get(name, empty) | other.get(name, empty) for name in {*one, *other}}


def _root(instruction: Instruction) -> str:
    return instruction.opcode.split(".")[0]


def _barrier(instruction: Instruction) -> str:
    return next(
        word for word in instruction.operands.replace(",", " ").split() if word.startswith("B")
    )


def _successors(
    last: Instruction, after: int | None, listing: Listing, barriers: dict[str, frozenset[int]]
) -> Iterator[int]:
    """Yield the addresses that may follow the last instruction of a block.

    A barrier at which lanes reconverge is removed from `barriers`.
    """
    root = _root(last)
    if root in _UNREADABLE:
        raise ValueError(f"{last.opcode} at {last.address:#x} is an indirect jump")
    falls_through = last.guard is not None
    if root == "BRA":
        (label,) = last.targets
        falls_through |= last.operands != f"`({label})"  # a predicate among its operands
        # BRA.DIV branches to a slow path of shuffles for diverged warps.
        if not last.opcode.startswith("BRA.DIV"):
            yield listing.addresses[label]
    elif root == "BSYNC":
        if _barrier(last) not in barriers:
            raise ValueError(f"BSYNC at {last.address:#x} without a BSSY before it")
        yield from barriers.pop(_barrier(last))
    elif root == "CALL":
        # For sm_80 ptxas also exits loops with a call that never returns.
        yield from (listing.addresses[to] for to in last.targets if to in listing.addresses)
        falls_through = True
    elif root not in ("EXIT", "RET", "KILL"):
        falls_through = True
    if falls_through and after is not None:
        yield after


def _dominators(blocks: dict[int, _Block]) -> dict[int, set[int]]:
    """Return the dominators of each block."""
    predecessors: dict[int, list[int]] = {start: [] for start in blocks}
    for start, block in blocks.items():
        for target in block.next:
            predecessors[target].append(start)
    entry = min(blocks)
    found = {start: set(blocks) for start in blocks} | {entry: {entry}}
    changing = True
    while changing:
        changing = False
        for start in blocks:
            if start == entry:
                continue
            new = {start} | set.intersection(*(found[other] for other in predecessors[start]))
            changing |= new != found[start]
            found[start] = new
    return found


def _body(blocks: dict[int, _Block], header: int, latch: int) -> set[int]:
    """Return the blocks from which the latch is reached without passing the header."""
    found = {header}
    worklist = [latch]
    while worklist:
        start = worklist.pop()
        if start not in found:
            found.add(start)
            worklist += [other for other, block in blocks.items() if start in block.next]
    return found


def _check_reducible(blocks: dict[int, _Block], dominators: dict[int, set[int]]) -> None:
    """Raise ValueError for a cycle without a back edge: a loop with several entries."""
    forward = {
        start: [target for target in block.next if target not in dominators[start]]
        for start, block in blocks.items()
    }
    in_degree = dict.fromkeys(blocks, 0)
    for targets in forward.values():
        for target in targets:
            in_degree[target] += 1
    worklist = [start for start, degree in in_degree.items() if degree == 0]
    ordered = 0
    while worklist:
        ordered += 1
        for target in forward[worklist.pop()]:
            in_degree[target] -= 1
            if in_degree[target] == 0:
                worklist.append(target)
    if ordered != len(blocks):
        raise ValueError("a loop has more than one entry")
