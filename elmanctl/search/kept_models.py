"""Models that a search keeps: those of its best evaluations, one file each.

A worker writes its model only if its loss is among the best so far, and the controller removes the
models that better ones have overtaken.  Both follow from the ledger and the files alone, so a
controller that starts after a kill removes what the one before it did not.
"""

from pathlib import Path

from elmanctl.errors import NotFound
from elmanctl.ledger.records import Attempt, Evaluation, State
from elmanctl.ledger.run_state import RunState
from elmanctl.run.paths import RunPaths
from elmanctl.search.confirmation import standing
from elmanctl.search.effective_settings import effective_settings
from elmanctl.settings import DiskSettings, SearchSettings


def kept_evaluations(
    state: RunState, policy: DiskSettings, search: SearchSettings
) -> list[Evaluation]:
    """Return the evaluations whose models are kept, the best first, one of each configuration.

    Until the best are confirmed these are all that may win; then the winner comes first.
    """
    if not policy.keep_models:
        return []
    shown = standing(state)
    first = [each.evaluation for each in shown.confirmed] if shown.winner is not None else []
    ranked = [*map(state.evaluations.__getitem__, first), *state.ranked()]
    chosen: dict[str, Evaluation] = {}
    for evaluation in ranked:
        chosen.setdefault(evaluation.configuration, evaluation)
    count = policy.keep_models if first else most_kept(policy, search)
    return list(chosen.values())[:count]


def most_kept(policy: DiskSettings, search: SearchSettings) -> int:
    """Return how many models are kept while any of the best may still win."""
    if not policy.keep_models:
        return 0
    return max(policy.keep_models, search.confirm_top if search.confirm_seeds else 0)


def model_attempt(evaluation: Evaluation) -> Attempt | None:
    """Return the attempt that has left its model, by its result, if one has."""
    for attempt in reversed(evaluation.attempts):
        if attempt.state is State.COMPLETED and "model_size_bytes" in (attempt.result or {}):
            return attempt
    return None


def describe_model(paths: RunPaths, state: RunState, evaluation: Evaluation) -> str | None:
    """Return where the model of a completed evaluation is, or why it is not there.

    None in a run that keeps none.
    """
    try:
        return str(find_model(paths, state, evaluation))
    except NotFound as exc:
        is_asked = effective_settings(state).disk.keep_models or model_attempt(evaluation)
        return exc.message if is_asked else None


def find_model(paths: RunPaths, state: RunState, evaluation: Evaluation) -> Path:
    """Return the file with the model of an evaluation; raises NotFound with the reason."""
    run, trained = state.run["name"], evaluation
    if evaluation.answer is not None:
        trained = state.evaluations[evaluation.answer.by]
    attempt = model_attempt(trained)
    longer = (
        "a search keeps those of its `disk.keep_models` best: `elmanctl search --keep-models N`"
    )
    if attempt is not None:
        path = paths.attempt(trained.id, attempt.number).model
        if path.is_file():
            return path
        raise NotFound(
            f"the model of {evaluation.id} of `{run}` was removed: it is not among the best that "
            "`disk.keep_models` keeps, or was cleaned",
            hint=longer,
        )
    last = trained.last_attempt
    if trained.state is not State.COMPLETED or last is None:
        raise NotFound(
            f"{evaluation.id} of `{run}` has no model: it is {trained.state.value}",
            hint=f"`elmanctl show {run} {evaluation.id}` says more",
        )
    reason = (last.result or {}).get("model_not_kept")
    why = f"it could not be written: {reason}" if reason else "`disk.keep_models` did not ask"
    raise NotFound(f"the model of {evaluation.id} of `{run}` was not kept: {why}", hint=longer)
