"""Longer training: the spec of an evaluation on record, under another budget."""

from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from elmanctl.config import decode_settings
from elmanctl.errors import (
    EnvironmentNotReady,
    InvalidModel,
    NotFound,
    UsageError,
)
from elmanctl.folders import as_written
from elmanctl.ledger.records import Evaluation, State
from elmanctl.ledger.run_state import RunState
from elmanctl.run.corpus import describe
from elmanctl.run.paths import AttemptPaths, RunPaths
from elmanctl.run.saved_file import CHECKPOINT, MODEL, SavedFile, read_header
from elmanctl.run.spec import AttemptSpec, DataSpec
from elmanctl.run.training import BUDGET_KINDS
from elmanctl.search.compared_items import find_item
from elmanctl.search.effective_settings import effective_settings
from elmanctl.search.selection import find_evaluation
from elmanctl.search.workload import attempt_spec

# Minutes between two checkpoints of a foreground evaluation that does not name them.
CHECKPOINT_MIN = 10.0

# Nothing ends a foreground evaluation but its budget and its user.
NO_LIMIT_MIN = 60.0 * 24 * 365


@dataclass(frozen=True, slots=True, kw_only=True)
class Source:
    """What is trained longer: its spec, and its last state if that was kept.

    `place` names it wherever one is.
    """

    place: str
    spec: AttemptSpec
    state: SavedFile | None = None


def find_source(name: str, runs: Path, load: Callable[[RunPaths], RunState]) -> Source:
    """Return what a user names: RUN/EVAL, RUN for its best, a folder of `eval`, or a saved file.

    Raises NotFound, UsageError for an evaluation that did not complete, and as `read_header`.
    """
    path = Path(name)
    if path.is_file() or path.suffix == ".safetensors":
        return _of_file(as_written(path))
    if path.is_dir() and not RunPaths(path).ledger.is_file():
        return _of_folder(as_written(path))
    found = find_item(name, runs)
    if isinstance(found, Path):
        return _of_folder(found)
    paths, evaluation = found
    state = load(paths)
    return _of_evaluation(paths, state, find_evaluation(state, evaluation or "best"))


def _of_file(path: Path) -> Source:
    saved = read_header(path)
    state = saved if saved.card.kind == CHECKPOINT else None
    return Source(place=str(path), spec=AttemptSpec.decode(saved.card.spec), state=state)


def _of_folder(folder: Path) -> Source:
    paths = AttemptPaths(folder)
    if not paths.spec.is_file():
        raise NotFound(
            f"{folder} holds no evaluation",
            hint="name RUN/EVAL, or a folder that `elmanctl eval` has made",
        )
    return Source(place=str(folder), spec=AttemptSpec.read(paths.spec), state=_last_state(paths))


def _of_evaluation(paths: RunPaths, state: RunState, evaluation: Evaluation) -> Source:
    run, trained = state.run["name"], evaluation
    if evaluation.answer is not None:
        trained = state.evaluations[evaluation.answer.by]
    if trained.state is not State.COMPLETED or trained.last_attempt is None:
        raise UsageError(
            f"{evaluation.id} of `{run}` is {trained.state.value}, so there is nothing to train on",
            hint=f"`elmanctl show {run} {evaluation.id}` says more; `elmanctl status {run}` lists "
            "those that completed",
        )
    number = trained.last_attempt.number
    spec = attempt_spec(
        state.run, effective_settings(state), replace(trained, changes={}), number, 1
    )
    last = _last_state(paths.attempt(trained.id, number))
    return Source(place=f"{run}/{trained.id}", spec=replace(spec, continues_from=()), state=last)


def _last_state(paths: AttemptPaths) -> SavedFile | None:
    """Return the state that a training has left; one that cannot be read counts as none."""
    try:
        return read_header(paths.checkpoint)
    except (NotFound, InvalidModel):
        return None


def longer_spec(
    name: str,
    source: Source,
    changes: Mapping[str, Any],
    *,
    data: str | None,
    keeps_state: bool,
) -> AttemptSpec:
    """Return the spec of a longer training of what the user calls `name`.

    `changes` are settings of `[train]` by `train.key`.

    Raises UsageError for a budget that the state of the source has used up, ConfigError for values
    that do not go together, NotFound and EnvironmentNotReady for a corpus that is not there any
    more or is another one.
    """
    old = source.spec
    training = asdict(old.training) | {
        key.removeprefix("train."): value for key, value in changes.items()
    }
    named = [kind for kind in BUDGET_KINDS if f"train.{kind}" in changes]
    if named:
        training |= {kind: None for kind in BUDGET_KINDS if kind not in named}
    known = decode_settings({"train": training}).train
    known.check_together()
    known = replace(known, checkpoint_min=known.checkpoint_min or CHECKPOINT_MIN)
    spec = replace(
        old,
        run="eval",
        evaluation="eval",
        attempt=1,
        training=known,
        data=_corpus(old.data, data),
        timeout_min=NO_LIMIT_MIN,
        continues_from=(),
        keep=(MODEL, CHECKPOINT) if keeps_state else (MODEL,),
        keep_below=None,
        origin={"source": source.place, "run": old.run, "evaluation": old.evaluation},
    )
    if source.state is not None:
        _check_room(name, source.state, spec)
        spec = replace(spec, starts_from=str(source.state.path))
    return spec


def _corpus(old: DataSpec, asked: str | None) -> DataSpec:
    path = as_written(Path(asked)) if asked else Path(old.path)
    found = describe(path)
    if asked is None and found.sha256 != old.sha256:
        raise EnvironmentNotReady(
            f"{path} is not the corpus of that evaluation any more: its SHA-256 begins with "
            f"{found.sha256[:12]}, not {old.sha256[:12]}",
            hint="`--data FILE` trains on another one, from the beginning",
        )
    return DataSpec(path=str(found.path), sha256=found.sha256, size_bytes=found.size_bytes)


def _check_room(name: str, state: SavedFile, spec: AttemptSpec) -> None:
    """Raise UsageError if a state is at the end of the budget or beyond it."""
    position = state.card.state.get("position", {})
    counted_s = position.get("counted_s") or 0.0
    used = {
        "steps": position.get("steps", 0),
        "tokens": position.get("tokens", 0),
        "minutes": counted_s / 60,
    }
    budget = spec.training.budget
    if budget.kind in used and used[budget.kind] >= budget.amount:
        raise UsageError(
            f"{name} was trained for {used[budget.kind]:g} {budget.kind} already, and the "
            f"budget is {budget.amount:g}",
            hint=f"ask for more, e.g. `--train-{budget.kind} {2 * budget.amount:g}`",
        )
