"""Cost of one time step, from the loops of a kernel; pure."""

from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from benchmarks.kernel_code.cases import Counted
from benchmarks.kernel_code.measure import LoopCount

# Instructions of a step that a compiler cannot merge across steps.
WORK = ("LDG", "STG", "SHFL", "MUFU.TANH", "MUFU.EX2", "MUFU.RCP", "MUFU.RSQ")


@dataclass(frozen=True, slots=True)
class StepCost:
    """Instructions that one warp issues per step, in total and by loop.

    Work that a loop does once for several steps counts proportionally.  `guarded` of the
    instructions are skipped at some steps, so the total is an upper bound.  `covered` is the number
    of steps in one iteration of each loop.
    """

    instructions: float
    guarded: float
    shuffles: float
    specials: float
    by_loop: dict[str, float]
    covered: dict[str, int]


class LoopsDiffer(Exception):
    """The compiled loops differ from those that a case declares."""


def step_cost(found: Sequence[LoopCount], declared: Mapping[str, int | Counted]) -> StepCost:
    """Divide the instructions of each loop by the steps that one iteration covers.

    Both arguments are in address order.  Raises LoopsDiffer if the loops do not match.
    """
    by_loop: dict[str, float] = {}
    covered: dict[str, int] = {}
    guarded = 0.0
    kinds: defaultdict[str, float] = defaultdict(float)
    index = 0
    for name, rule in declared.items():
        steps = _steps(found[index], rule) if index < len(found) else 0
        if not steps:
            raise LoopsDiffer(f"no loop for {name}: {_listed(found)}")
        loop = found[index]
        covered[name] = steps
        by_loop[name] = loop.instructions / steps
        guarded += loop.guarded / steps
        for kind, number in loop.kinds.items():
            kinds[kind] += number / steps
        index += 1
        while index < len(found) and _is_remainder(found[index], found[index - 1], rule):
            index += 1
    if index < len(found):
        raise LoopsDiffer(f"loops other than {', '.join(declared)}: {_listed(found)}")
    return StepCost(
        instructions=sum(by_loop.values()),
        guarded=guarded,
        shuffles=kinds["SHFL"],
        specials=sum(number for kind, number in kinds.items() if kind.startswith("MUFU.")),
        by_loop=by_loop,
        covered=covered,
    )


def _steps(loop: LoopCount, rule: int | Counted) -> int:
    """Return the steps that an iteration covers, or 0 if the loop does not match the rule."""
    if isinstance(rule, int):
        return rule
    steps, remainder = divmod(loop.kinds.get(rule.kind, 0), rule.each)
    return 0 if remainder else steps


def _is_remainder(loop: LoopCount, before: LoopCount, rule: int | Counted) -> bool:
    """Whether a loop is the remainder loop of the unrolled one before it."""
    if isinstance(rule, int) or loop.depth != before.depth:
        return False
    steps, more = _steps(loop, rule), _steps(before, rule)
    return 0 < steps < more and all(
        loop.kinds.get(kind, 0) * more == before.kinds.get(kind, 0) * steps for kind in WORK
    )


def _listed(found: Sequence[LoopCount]) -> str:
    return "; ".join(
        f"at depth {loop.depth} {loop.instructions} instructions, {loop.kinds}" for loop in found
    )
