"""What one step of time costs, from the passes of a kernel's loops; pure."""

from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from benchmarks.kernel_code.cases import Counted
from benchmarks.kernel_code.measure import LoopCount

# What a step does once and a compiler cannot do for several steps together.
WORK = ("LDG", "STG", "SHFL", "MUFU.TANH", "MUFU.EX2", "MUFU.RCP", "MUFU.RSQ")


@dataclass(frozen=True, slots=True)
class StepCost:
    """The instructions that one warp issues a step, whole and by loop.

    What a loop does once for many steps counts by its share.  `guarded` of the instructions stand
    behind a branch that goes around them at some steps, so they are an upper bound.  `covered` is
    the number of steps in one pass of each loop.
    """

    instructions: float
    guarded: float
    shuffles: float
    specials: float
    by_loop: dict[str, float]
    covered: dict[str, int]


class LoopsDiffer(Exception):
    """The compiler made other loops than a case declares."""


def step_cost(found: Sequence[LoopCount], declared: Mapping[str, int | Counted]) -> StepCost:
    """Divide what the passes of loops issue by the steps that each covers.

    Both are in the order of addresses.  Raises LoopsDiffer when the loops that were found cannot be
    those that are declared.
    """
    by_loop: dict[str, float] = {}
    covered: dict[str, int] = {}
    guarded = 0.0
    kinds: defaultdict[str, float] = defaultdict(float)
    place = 0
    for name, how in declared.items():
        steps = _steps(found[place], how) if place < len(found) else 0
        if not steps:
            raise LoopsDiffer(f"no loop for {name}: {_listed(found)}")
        loop = found[place]
        covered[name] = steps
        by_loop[name] = loop.instructions / steps
        guarded += loop.guarded / steps
        for kind, number in loop.kinds.items():
            kinds[kind] += number / steps
        place += 1
        while place < len(found) and _is_rest(found[place], found[place - 1], how):
            place += 1
    if place < len(found):
        raise LoopsDiffer(f"loops beside {', '.join(declared)}: {_listed(found)}")
    return StepCost(
        instructions=sum(by_loop.values()),
        guarded=guarded,
        shuffles=kinds["SHFL"],
        specials=sum(number for kind, number in kinds.items() if kind.startswith("MUFU.")),
        by_loop=by_loop,
        covered=covered,
    )


def _steps(loop: LoopCount, how: int | Counted) -> int:
    """Return the steps that a pass of a loop covers, 0 where it cannot be the one that is meant."""
    if isinstance(how, int):
        return how
    steps, odd = divmod(loop.kinds.get(how.kind, 0), how.each)
    return 0 if odd else steps


def _is_rest(loop: LoopCount, before: LoopCount, how: int | Counted) -> bool:
    """Whether a loop does the steps that are left by the one before it, fewer in a pass."""
    if isinstance(how, int) or loop.depth != before.depth:
        return False
    steps, more = _steps(loop, how), _steps(before, how)
    return 0 < steps < more and all(
        loop.kinds.get(kind, 0) * more == before.kinds.get(kind, 0) * steps for kind in WORK
    )


def _listed(found: Sequence[LoopCount]) -> str:
    return "; ".join(
        f"at depth {loop.depth} {loop.instructions} instructions, {loop.kinds}" for loop in found
    )
