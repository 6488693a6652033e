"""Queueing evaluations again by hand: which may be, and what their new attempt changes.

The dry run and the command itself make the same plan from the same state.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from elmanctl.config import refuse_outside
from elmanctl.errors import UsageError
from elmanctl.ledger.records import Evaluation, State
from elmanctl.ledger.run_state import RunState
from elmanctl.search.nodes import NODE_NAME
from elmanctl.search.retry import (
    deterministic_failures,
    due_changes,
    last_signature,
    was_cancelled_outside,
)
from elmanctl.search.selection import check_kinds
from elmanctl.search.workload import attempt_resources
from elmanctl.settings import Settings

TOLD_ALREADY = "its generation was told: the optimizer will not learn from it"


@dataclass(frozen=True, slots=True, kw_only=True)
class Requeued:
    """One evaluation's new attempt; `changes` are those that the reopening puts on record."""

    evaluation: Evaluation
    changes: Mapping[str, Any]
    note: str | None = None

    def row(self) -> dict[str, Any]:
        """Return plain data for tables, JSON and the answer to a request."""
        return {
            "evaluation": self.evaluation.id,
            "was": last_kind(self.evaluation),
            "attempt": 1 + len(self.evaluation.attempts),
            "changes": dict(self.changes),
            "note": self.note,
        }


@dataclass(frozen=True, slots=True, kw_only=True)
class RequeuePlan:
    """What is queued again, and what is not since it would only fail again: id -> signature."""

    chosen: tuple[Requeued, ...]
    refused: Mapping[str, str] = field(default_factory=dict)


def select_requeueable(state: RunState, *, kinds: Sequence[str]) -> list[Evaluation]:
    """Return what failed, and what somebody cancelled without asking us; of given verdicts only.

    Raises UsageError for a verdict that does not exist.
    """
    check_kinds(kinds)
    found = [
        evaluation
        for evaluation in state.evaluations.values()
        if evaluation.state is State.FAILED or was_cancelled_outside(state, evaluation)
    ]
    return [e for e in found if not kinds or last_kind(e) in kinds]


def plan_requeue(
    state: RunState, settings: Settings, chosen: Sequence[Evaluation], asked: Mapping[str, Any]
) -> RequeuePlan:
    """Return what `requeue` does to evaluations; `asked` are its arguments.

    Raises UsageError for an evaluation that cannot be queued again, or that would only fail again
    while `force` is not asked for; ConfigError for a change that cannot be made.
    """
    for evaluation in chosen:
        _check_reopening(evaluation)
    repeated = {} if asked.get("force") else deterministic_failures(state)
    words_of = {e.id: last_signature(state, e) for e in chosen}
    refused = {name: words for name, words in words_of.items() if words and words in repeated}
    kept = [e for e in chosen if e.id not in refused]
    if refused and (not kept or not asked.get("skip_deterministic")):
        raise UsageError(
            _refusal(refused, repeated),
            hint="mend the cause, then pass `--force` to run them all the same",
        )
    return RequeuePlan(
        chosen=tuple(_requeued(state, settings, evaluation, asked) for evaluation in kept),
        refused=refused,
    )


def reopened_row(state: RunState, evaluation: Evaluation) -> dict[str, Any]:
    """Return the row of an evaluation that the same request has opened already."""
    asked = ("mem_gb", "micro_batch", "timeout_min", "exclude")
    changes = {key: evaluation.changes[key] for key in asked if key in evaluation.changes}
    return Requeued(evaluation=evaluation, changes=changes, note=_note(state, evaluation)).row()


def _note(state: RunState, evaluation: Evaluation) -> str | None:
    return TOLD_ALREADY if evaluation.generation in state.told else None


def _requeued(
    state: RunState, settings: Settings, evaluation: Evaluation, asked: Mapping[str, Any]
) -> Requeued:
    by_hand = {key: asked[key] for key in ("mem_gb", "timeout_min") if asked.get(key) is not None}
    refuse_outside({f"slurm.{key}": value for key, value in by_hand.items()})
    nodes = _nodes(asked)
    if nodes:
        known = evaluation.changes.get("exclude", ())
        by_hand["exclude"] = sorted({*nodes, *(known if isinstance(known, list | tuple) else ())})
    changes = {**due_changes(state, settings, evaluation), **by_hand}
    # Refused now rather than when the attempt is submitted.
    attempt_resources(settings, state.run["executor"], {**evaluation.changes, **changes})
    return Requeued(evaluation=evaluation, changes=changes, note=_note(state, evaluation))


def _nodes(asked: Mapping[str, Any]) -> list[str]:
    nodes = [str(node) for node in asked.get("exclude") or ()]
    for node in nodes:
        if NODE_NAME.fullmatch(node) is None:
            raise UsageError(
                f"`{node}` is no node's name", hint="name one node each, e.g. `--exclude-node n2`"
            )
    return nodes


def _check_reopening(evaluation: Evaluation) -> None:
    if evaluation.state is State.COMPLETED or not evaluation.state.is_finished:
        raise UsageError(
            f"{evaluation.id} is {evaluation.state}: only failed and cancelled evaluations "
            "can be queued again",
            hint=f"cancel it first: `elmanctl cancel {evaluation.id}`"
            if evaluation.has_live_attempt
            else None,
        )
    if evaluation.has_live_attempt:
        raise UsageError(f"{evaluation.id} still has a job that is ending", hint="try again")


def _refusal(refused: Mapping[str, str], repeated: Mapping[str, Sequence[str]]) -> str:
    parts = []
    for words in dict.fromkeys(refused.values()):
        names = [name for name, own in refused.items() if own == words]
        met = ", ".join(repeated[words])
        parts.append(f"{', '.join(names)} would fail again as `{words}` did on {met}")
    return "; ".join(parts)


def mend_hint(state: RunState) -> str:
    """Return what to do after a pause: words that work for what the run has."""
    name = state.run["name"]
    ended = [
        (attempt.finished_at or "", evaluation.id)
        for evaluation in state.evaluations.values()
        if (attempt := evaluation.last_attempt) and attempt.state is State.FAILED
    ]
    why = f"elmanctl show {name} {max(ended)[1]}" if ended else f"elmanctl status {name}"
    parts = [f"see why with `{why}`", "mend it"]
    failed = select_requeueable(state, kinds=())
    if failed:
        repeated = deterministic_failures(state)
        again = f"elmanctl requeue {name} --failed"
        if any(last_signature(state, e) in repeated for e in failed):
            # What repeats is refused otherwise.
            again += " --force"
        parts.append(f"open what failed again with `{again}`")
    return f"{', '.join(parts)}, then `elmanctl resume {name}`"


def last_kind(evaluation: Evaluation) -> str:
    """Return the verdict that an evaluation ended with, or its state when there is none."""
    return (evaluation.verdict_kind or evaluation.state).value
