"""Branches of a sweep: whose turn the next generation is, and the best of each; pure.

Each branch has an optimizer of its own, and a generation belongs to one branch.  They take turns,
so that each gets an equal share of the budget; one that has stopped improving leaves its turns to
the others.
"""

from collections.abc import Mapping
from dataclasses import dataclass

from elmanctl.ledger.records import Evaluation
from elmanctl.ledger.run_state import RunState
from elmanctl.search.estimate import by_estimate
from elmanctl.search.stop_rules import stall, turns_of
from elmanctl.settings import SearchSettings
from elmanctl.space.space import SearchSpace


@dataclass(frozen=True, slots=True, kw_only=True)
class BranchResult:
    """A branch of a sweep: its swept values, what it has had, and its best evaluation so far."""

    values: Mapping[str, object]
    generations: int
    trained: int
    best: Evaluation | None


def next_branch(state: RunState, search: SearchSettings, branches: int) -> int:
    """Return the branch of the next generation of a search that no stop rule has ended.

    It is the one with the fewest generations of those that still improve.
    """
    turns = {branch: turns_of(state, branch) for branch in range(branches)}
    improving = [b for b in turns if stall(state, search, turns[b]) is None]
    return min(improving, key=lambda branch: len(turns[branch]))


def branch_results(state: RunState) -> list[BranchResult]:
    """Return every branch of a sweep, that of the best evaluation first; none without a sweep."""
    space = SearchSpace.decode(state.run["space"])
    if not space.sweep:
        return []
    ranked = by_estimate(state)
    results = []
    for number, branch in enumerate(space.branches):
        turns = set(turns_of(state, number))
        members = [e for turn in turns for e in state.generation_members(turn)]
        results.append(
            BranchResult(
                values={name: branch.fixed[name] for name in space.sweep},
                generations=len(turns),
                trained=sum(bool(e.attempts) for e in members),
                best=next((e for e in ranked if e.generation in turns), None),
            )
        )
    order = {e.id: place for place, e in enumerate(ranked)}
    return sorted(results, key=lambda r: len(order) if r.best is None else order[r.best.id])
