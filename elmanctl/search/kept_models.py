"""Models that a search keeps: those of its best evaluations, one file each.

A worker writes its model only if its loss is among the best so far, and the controller removes the
models that better ones have overtaken.  Both follow from the ledger and the files alone, so a
controller that starts after a kill removes what the one before it did not.
"""

from collections.abc import Iterable
from pathlib import Path

from elmanctl.errors import NotFound
from elmanctl.ledger.records import Attempt, Evaluation, State
from elmanctl.ledger.run_state import RunState
from elmanctl.run.frozen_code import knows_spec_key
from elmanctl.run.paths import RunPaths
from elmanctl.search.confirmation import standing
from elmanctl.search.confirmation_plan import due_confirmations
from elmanctl.search.effective_settings import effective_settings
from elmanctl.search.estimate import by_estimate
from elmanctl.search.reevaluation import most_reevaluated
from elmanctl.settings import Settings

# Weights are kept in float32.
PARAMETER_BYTES = 4


def kept_evaluations(state: RunState, settings: Settings) -> list[Evaluation]:
    """Return the evaluations whose models are kept, the best first, one of each configuration.

    Only those count of which a model was written.  As long as confirmations may come, all are kept
    that may win; after that the confirmed come first.
    """
    keep = settings.disk.keep_models
    if not keep:
        return []
    confirmed = _confirmed(state)
    if is_open(state, settings):
        best = _first_of_each(by_estimate(state))[: most_kept(settings)]
        return _first_of_each([*best, *confirmed])
    return _first_of_each([*confirmed, *by_estimate(state)])[:keep]


def is_open(state: RunState, settings: Settings) -> bool:
    """Whether the search may still ask for evaluations, and so change which one wins."""
    is_last = state.generation + 1 >= state.generations or state.ended_by is not None
    has_ended = is_last and not state.open
    return state.is_busy or not has_ended or due_confirmations(state, settings) is not None


def most_kept(settings: Settings) -> int:
    """Return how many of the best keep their models while the search is open.

    Those that were confirmed come on top.
    """
    keep, search = settings.disk.keep_models, settings.search
    if not keep:
        return 0
    confirmed = search.confirm_top if search.confirm_seeds else 0
    return max(keep, confirmed, most_reevaluated(search) if search.reevaluate else 0)


def loss_to_beat(state: RunState, settings: Settings) -> float | None:
    """Return the loss that a new model must be below to be kept, None while any is kept."""
    best, count = _first_of_each(by_estimate(state)), most_kept(settings)
    losses = [each.loss for each in best[:count] if each.loss is not None]
    return max(losses) if len(losses) == count > 0 else None


def _confirmed(state: RunState) -> list[Evaluation]:
    """Return the evaluations that were confirmed, the winner first if there is one."""
    return [state.evaluations[each.evaluation] for each in standing(state).confirmed]


def _first_of_each(ranked: Iterable[Evaluation]) -> list[Evaluation]:
    """Return the first evaluation with a model of each configuration."""
    chosen: dict[str, Evaluation] = {}
    for evaluation in ranked:
        if model_attempt(evaluation) is not None:
            chosen.setdefault(evaluation.configuration, evaluation)
    return list(chosen.values())


def kept_files(paths: RunPaths, state: RunState, settings: Settings) -> set[Path]:
    """Return the files of the models that are kept, relative to the run folder."""
    return {
        paths.attempt(evaluation.id, attempt.number).model.relative_to(paths.folder)
        for evaluation in kept_evaluations(state, settings)
        if (attempt := model_attempt(evaluation)) is not None
    }


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


def model_path(paths: RunPaths, state: RunState, evaluation: Evaluation) -> Path | None:
    """Return the file with the model of an evaluation, None if it has none."""
    try:
        return find_model(paths, state, evaluation)
    except NotFound:
        return None


def find_model(paths: RunPaths, state: RunState, evaluation: Evaluation) -> Path:
    """Return the file with the model of an evaluation; raises NotFound with the reason."""
    run, trained = state.run["name"], evaluation
    if evaluation.answer is not None:
        trained = state.evaluations[evaluation.answer.by]
    if trained.state is not State.COMPLETED:
        raise NotFound(
            f"{evaluation.id} of `{run}` has no model: it is {trained.state.value}",
            hint=f"`elmanctl show {run} {evaluation.id}` says more",
        )
    attempt = model_attempt(trained)
    if attempt is not None:
        path = paths.attempt(trained.id, attempt.number).model
        if path.is_file():
            return path
    fate = "was removed" if attempt is not None else "was not kept"
    raise NotFound(
        f"the model of {evaluation.id} of `{run}` {fate}: {_reason(paths, state, trained)}",
        hint=f"`elmanctl eval --from {run}/{evaluation.id}` trains it again and keeps it; "
        "`elmanctl search --keep-models N` keeps more",
    )


def _reason(paths: RunPaths, state: RunState, trained: Evaluation) -> str:
    """Return why the model of a completed evaluation is not there."""
    settings = effective_settings(state)
    last, keep = trained.last_attempt, settings.disk.keep_models
    why = None if last is None else (last.result or {}).get("model_not_kept")
    if why is not None:
        return f"it could not be written: {why}"
    if trained in kept_evaluations(state, settings):
        return "by `elmanctl clean`, or by hand"
    if not keep:
        return "`disk.keep_models` is 0"
    if not knows_spec_key(paths.code, "keep"):
        return "the run was begun by a version that keeps none"
    if trained.confirms is not None:
        return f"it confirms {trained.confirms}, and that one's model is kept"
    return f"it was not among the best, of which `disk.keep_models` = {keep} keeps the models"
