"""Plan of a manual requeue: which evaluations qualify, and what their next attempt changes.

The dry run and the command itself make the same plan from the same state.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from elmanctl.config import refuse_outside
from elmanctl.constants import ASYNCHRONOUS
from elmanctl.errors import UsageError
from elmanctl.ledger.records import Evaluation, State
from elmanctl.ledger.run_state import RunState
from elmanctl.search import retry
from elmanctl.search.costs import effective_setting
from elmanctl.search.nodes import NODE_NAME
from elmanctl.search.request_schema import RequeueRequest
from elmanctl.search.selection import check_kinds
from elmanctl.search.workload import attempt_resources
from elmanctl.settings import Settings

TOO_LATE = "generation already reported to the optimizer; this result cannot influence the search"


@dataclass(frozen=True, slots=True, kw_only=True)
class RequeuePlan:
    """The chosen evaluations, and by id the failure that the refused ones would repeat.

    Each has the row of its next attempt, whose `changes` are recorded when it is reopened.
    """

    chosen: tuple[tuple[Evaluation, dict[str, Any]], ...]
    refused: Mapping[str, str]


def select_requeueable(state: RunState, *, kinds: Sequence[str]) -> list[Evaluation]:
    """Return failed evaluations, and those whose job was cancelled from outside.

    With `kinds` only those with such a verdict; raises UsageError for an unknown one.
    """
    check_kinds(kinds)
    found = [
        evaluation
        for evaluation in state.evaluations.values()
        if evaluation.state is State.FAILED or retry.was_cancelled_outside(state, evaluation)
    ]
    return [e for e in found if not kinds or last_kind(e) in kinds]


def plan_requeue(
    state: RunState, settings: Settings, chosen: Sequence[Evaluation], request: RequeueRequest
) -> RequeuePlan:
    """Return the effect of a request on `chosen`.

    Raises UsageError for an evaluation that cannot be requeued, or that would fail in the same way
    again unless `force` is set; ConfigError for an impossible change.
    """
    for evaluation in chosen:
        _check_reopening(evaluation)
    repeated = {} if request.force else retry.deterministic_failures(state)
    words_of = {e.id: retry.last_signature(state, e) for e in chosen}
    refused = {name: words for name, words in words_of.items() if words and words in repeated}
    kept = [e for e in chosen if e.id not in refused]
    if refused and (not kept or not request.skip_deterministic):
        raise UsageError(
            _refusal(refused, repeated),
            hint="fix the cause, then pass `--force` to run them anyway",
        )
    for node in request.exclude:
        if NODE_NAME.fullmatch(node) is None:
            raise UsageError(
                f"`{node}` is no node's name", hint="name one node each, e.g. `--exclude-node n2`"
            )
    chosen_rows = ((e, _row(state, e, _changes(state, settings, e, request))) for e in kept)
    return RequeuePlan(chosen=tuple(chosen_rows), refused=refused)


def reopened_row(state: RunState, evaluation: Evaluation) -> dict[str, Any]:
    """Return the row of an evaluation that the same request has reopened already."""
    keys = ("mem_gb", "micro_batch", "timeout_min", "exclude")
    changes = {key: evaluation.changes[key] for key in keys if key in evaluation.changes}
    return _row(state, evaluation, changes)


def _row(state: RunState, evaluation: Evaluation, changes: dict[str, Any]) -> dict[str, Any]:
    """Return the next attempt of an evaluation, as plain data for tables, JSON and answers."""
    return {
        "evaluation": evaluation.id,
        "was": last_kind(evaluation),
        "attempt": 1 + len(evaluation.attempts),
        "changes": changes,
        "note": TOO_LATE if _is_settled(state, evaluation) else None,
    }


def _is_settled(state: RunState, evaluation: Evaluation) -> bool:
    """Whether the optimizer learns nothing more of an evaluation."""
    if evaluation.id in state.reported:
        return True
    mode = effective_setting(state, "search.mode")
    return mode != ASYNCHRONOUS and evaluation.generation in state.told


def _changes(
    state: RunState, settings: Settings, evaluation: Evaluation, request: RequeueRequest
) -> dict[str, Any]:
    manual = {key: getattr(request, key) for key in ("mem_gb", "timeout_min")}
    refuse_outside({f"slurm.{key}": value for key, value in manual.items()})
    if request.exclude:
        known = evaluation.changes.get("exclude", ())
        known = known if isinstance(known, list | tuple) else ()
        manual["exclude"] = sorted({*request.exclude, *known})
    changes = {
        **retry.due_changes(state, settings, evaluation),
        **{key: value for key, value in manual.items() if value is not None},
    }
    # Checked now rather than when the attempt is submitted.
    attempt_resources(settings, state.run["executor"], {**evaluation.changes, **changes})
    return changes


def _check_reopening(evaluation: Evaluation) -> None:
    if evaluation.state is State.COMPLETED or not evaluation.state.is_finished:
        raise UsageError(
            f"{evaluation.id} is {evaluation.state}: only failed and cancelled evaluations "
            "can be requeued",
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


def recovery_hint(state: RunState) -> str:
    """Return how to go on after a pause, by the commands that apply to this run."""
    name = state.run["name"]
    ended = [
        (attempt.finished_at or "", evaluation.id)
        for evaluation in state.evaluations.values()
        if (attempt := evaluation.last_attempt) and attempt.state is State.FAILED
    ]
    why = f"elmanctl show {name} {max(ended)[1]}" if ended else f"elmanctl status {name}"
    parts = [f"see why with `{why}`", "fix the cause"]
    failed = select_requeueable(state, kinds=())
    if failed:
        repeated = retry.deterministic_failures(state)
        again = f"elmanctl requeue {name} --failed"
        if any(retry.last_signature(state, e) in repeated for e in failed):
            # A repeated failure is refused otherwise.
            again += " --force"
        parts.append(f"requeue the failed evaluations with `{again}`")
    return f"{', '.join(parts)}, then `elmanctl resume {name}`"


def last_kind(evaluation: Evaluation) -> str:
    """Return the last verdict of an evaluation, or its state when there is none."""
    return (evaluation.verdict_kind or evaluation.state).value
