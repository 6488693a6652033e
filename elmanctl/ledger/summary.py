"""The summary of a run for `status`, the same from its whole ledger as from a snapshot.

A summary is made of the totals, which are kept with every event, and of the page: the evaluations
that a person looks for first.
"""

from collections.abc import Mapping
from dataclasses import dataclass, fields, replace
from typing import Any

from elmanctl.ledger.disk_use import DiskUse
from elmanctl.ledger.records import (
    CONFIRMATION,
    Attempt,
    Evaluation,
    ExcludedNode,
    RunStatus,
    State,
)
from elmanctl.ledger.run_state import HeldJob, RunState, rank
from elmanctl.ledger.spending import Spent

# Far more rows than are read; with them a snapshot stays under 1 MB.
PAGE_ROWS = 1000


class NotKnown(LookupError):
    """A part of a state does not hold what a summary needs of the whole."""


@dataclass(frozen=True, slots=True, kw_only=True)
class RunSummary:
    """A run in brief; the fields that `RunState` has too mean the same here.

    `page` holds the newest two generations, open ones, the confirmations and whatever is not done
    or has a job that is ending, in order, the last `PAGE_ROWS` of them; of each evaluation, as of
    those of `confirmed`, what `trimmed` leaves.  `best` is (loss, generation, id).  A further field
    of `RunState` is shown by declaring it here: `summarize` copies it.
    """

    run: Mapping[str, Any]
    status: RunStatus
    reason: str | None
    advice: str | None
    generation: int
    generations: int
    ended_by: str | None
    controller: Mapping[str, Any] | None
    changes: Mapping[str, Any]
    seq: int
    fence: int
    last_event_at: str | None
    totals: Mapping[str, int]
    size_bytes: int
    refused_share: float
    spent: Mapping[str, Spent]
    saved: Spent
    answered: int
    spared: Spent
    trained: int
    wall_s: float
    slot_s: float
    idle_s: float
    held_idle_s: float
    held_jobs: Mapping[str, HeldJob]
    disk: DiskUse
    excluded_nodes: Mapping[str, ExcludedNode]
    flights: tuple[tuple[Attempt, int], ...]
    newest_settled: int
    best: tuple[float, int, str] | None
    best_configuration: str | None
    confirmed: tuple[tuple[Evaluation, tuple[Evaluation, ...]], ...]
    page: tuple[Evaluation, ...]

    def count(self, total: str) -> int:
        """Return one of the totals, 0 for one that nothing was added to."""
        return self.totals.get(total, 0)

    def counts(self) -> dict[State, int]:
        """Return how many evaluations are in each state; every state is a key."""
        return {state: self.count(f"state:{state}") for state in State}


def summarize(state: RunState) -> RunSummary:
    """Return a run in brief.

    Raises NotKnown when `state` is a part that does not hold what is needed.
    """
    own = ("best", "best_configuration", "confirmed", "page")
    copied = {
        each.name: getattr(state, each.name) for each in fields(RunSummary) if each.name not in own
    }
    copied["totals"] = {total: number for total, number in state.totals.items() if number}
    best = _best(state)
    return RunSummary(
        **copied,
        best=best,
        best_configuration=None if best is None else state.evaluations[best[2]].configuration,
        confirmed=tuple(
            (trimmed(item), tuple(map(trimmed, again))) for item, again in state.confirmed
        ),
        page=tuple(trimmed(item) for item in page(state)),
    )


def page(state: RunState) -> list[Evaluation]:
    """Return what a person looks for first: what is new, what is not done, what is confirmed.

    Raises NotKnown when `state` is a part that does not hold them.
    """
    names = {*state.waiting, *state.live, *newest_members(state)}
    shown = sorted(names, key=state.positions.__getitem__)[-PAGE_ROWS:]
    try:
        return [state.evaluations[name] for name in shown]
    except KeyError as exc:
        raise NotKnown(f"evaluation {exc}") from exc


def newest_members(state: RunState) -> list[str]:
    """Return the names of the evaluations of the `newest_groups`."""
    return [name for group in newest_groups(state) for name in state.members.get(group, ())]


def newest_groups(state: RunState) -> set[int]:
    """Return the numbers of the newest two generations, of open ones, and that of confirmations."""
    return {state.generation - 1, state.generation, *state.open, CONFIRMATION}


_KEPT_OF_RESULT = ("loss", "steps", "convergence")


def trimmed(evaluation: Evaluation) -> Evaluation:
    """Return an evaluation without what is long and neither shown in a row nor decides anything.

    Of results loss, steps and convergence stay, of evidence the first observation.
    """
    return replace(evaluation, point=(), attempts=tuple(map(_trimmed_attempt, evaluation.attempts)))


def _trimmed_attempt(attempt: Attempt) -> Attempt:
    result, verdict = attempt.result, attempt.verdict
    if result is not None:
        result = {key: result[key] for key in _KEPT_OF_RESULT if result.get(key) is not None}
    if verdict is not None:
        verdict = replace(verdict, evidence=verdict.evidence[:1])
    return replace(attempt, result=result, verdict=verdict)


def _best(state: RunState) -> tuple[float, int, str] | None:
    if state.leaders:
        return state.leaders[0]
    keys = list(filter(None, map(rank, state.evaluations.values())))
    if len(keys) != state.totals.get("ranked", 0):
        raise NotKnown("the best evaluation")
    return min(keys, default=None)
