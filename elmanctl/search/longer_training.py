"""Longer training: the spec of an evaluation on record, under another budget."""

from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from elmanctl.config import decode_settings
from elmanctl.errors import EnvironmentNotReady, InvalidModel, NotFound, UsageError
from elmanctl.folders import as_written, shown
from elmanctl.ledger.records import Evaluation, State
from elmanctl.ledger.run_state import RunState
from elmanctl.models.params import flops_per_token
from elmanctl.run.corpus import describe
from elmanctl.run.paths import AttemptPaths, RunPaths
from elmanctl.run.progress import read_table
from elmanctl.run.saved_file import CHECKPOINT, MODEL, SavedFile, read_header
from elmanctl.run.spec import AttemptSpec, DataSpec
from elmanctl.run.state_fingerprint import spec_fingerprint
from elmanctl.run.training import BUDGET_KINDS
from elmanctl.search.compared_items import find_item
from elmanctl.search.effective_settings import effective_settings
from elmanctl.search.selection import find_evaluation
from elmanctl.search.workload import attempt_spec

# Minutes between two checkpoints of a foreground evaluation that does not name them.
CHECKPOINT_MIN = 10.0

# The name of the run and of the evaluation in the spec of a foreground evaluation.
FOREGROUND = "eval"

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
    if state is not None and "position" not in state.card.state:
        raise InvalidModel(
            f"{shown(path)} is one rank's part of a checkpoint",
            hint="name the file of the first rank, which has no step in its name",
        )
    return Source(place=str(path), spec=AttemptSpec.decode(saved.card.spec), state=state)


def _of_folder(folder: Path) -> Source:
    paths = AttemptPaths(folder)
    if not paths.spec.is_file():
        raise NotFound(
            f"{folder} holds no evaluation",
            hint="name RUN/EVAL, or a folder that `elmanctl eval` has made",
        )
    result = read_table(paths.result)
    if result is None:
        raise UsageError(
            f"the evaluation in {shown(folder)} has no result: it is running, or was interrupted",
            hint=f"`elmanctl eval --resume {shown(folder)}` goes on with an interrupted one",
        )
    kind = (result.get("verdict") or {}).get("kind")
    if kind != State.COMPLETED:
        raise UsageError(
            f"the evaluation in {shown(folder)} is {kind}, so there is nothing to train on",
            hint="`elmanctl eval MODEL ...` trains from the beginning",
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
    """Return the state that a training has left, if it has left one; raises InvalidModel."""
    return read_header(paths.checkpoint) if paths.checkpoint.exists() else None


def longer_spec(
    name: str,
    source: Source,
    changes: Mapping[str, Any],
    *,
    data: str | None,
    keeps_state: bool,
) -> AttemptSpec:
    """Return the spec of a longer training of what the user calls `name`.

    `changes` are settings of `[train]` and `[metrics]` by `section.key`.  It goes on from the state
    of the source if that fits: if it is of the same configuration, seed, learning rate, corpus and
    precision.

    Raises UsageError for a budget that the state of the source has used up, ConfigError for values
    that do not go together, NotFound and EnvironmentNotReady for a corpus that is not there any
    more or is another one.
    """
    old = source.spec
    training = asdict(old.training) | _of_section("train", changes)
    named = [kind for kind in BUDGET_KINDS if f"train.{kind}" in changes]
    if named:
        training |= {kind: None for kind in BUDGET_KINDS if kind not in named}
    if "train.batch" in changes:
        # The rule of the record has done its part.
        training["batch_rule"] = changes.get("train.batch_rule")
    known = decode_settings({"train": training}).train
    known = replace(known, batch=known.batch_for(old.parameters_expected))
    known = replace(known, checkpoint_min=known.checkpoint_min or CHECKPOINT_MIN)
    spec = replace(
        old,
        run=FOREGROUND,
        evaluation=FOREGROUND,
        attempt=1,
        training=known,
        data=_corpus(old.data, data),
        timeout_min=NO_LIMIT_MIN,
        continues_from=(),
        keep=(MODEL, CHECKPOINT) if keeps_state else (MODEL,),
        keep_below=None,
        metrics=replace(old.metrics, **_of_section("metrics", changes)),
        starts_from=None,
        origin={"source": source.place, **_stems_from(old), "step": 0},
    )
    if source.state is None or not _fits(source.state, spec):
        return spec
    step = _check_room(name, source.state, spec)
    origin = {**spec.origin, "step": step}
    return replace(spec, starts_from=str(source.state.path), origin=origin)


def _of_section(section: str, changes: Mapping[str, Any]) -> dict[str, Any]:
    begin = f"{section}."
    return {key.removeprefix(begin): v for key, v in changes.items() if key.startswith(begin)}


def _stems_from(old: AttemptSpec) -> dict[str, str]:
    """Return the evaluation of a search that a training stems from, over any number of others."""
    if old.origin:
        return {key: old.origin[key] for key in ("run", "evaluation") if key in old.origin}
    if (old.run, old.evaluation) == (FOREGROUND, FOREGROUND):
        return {}
    return {"run": old.run, "evaluation": old.evaluation}


def _fits(state: SavedFile, spec: AttemptSpec) -> bool:
    """Whether a state can be gone on from; which precision `auto` is, the worker finds out."""
    asked = spec.training.precision
    precisions = ("fp32", "bf16") if asked == "auto" else (asked,)
    known = {spec_fingerprint(spec, precision) for precision in precisions}
    return state.card.state.get("fingerprint") in known


def _corpus(old: DataSpec, asked: str | None) -> DataSpec:
    path = as_written(Path(asked)) if asked else Path(old.path)
    if asked is None and not path.is_file():
        raise NotFound(
            f"the corpus of that evaluation is gone: {path}",
            hint="name a copy of it: `--data FILE`",
        )
    found = describe(path)
    if asked is None and found.sha256 != old.sha256:
        raise EnvironmentNotReady(
            f"{path} is not the corpus of that evaluation any more: its SHA-256 begins with "
            f"{found.sha256[:12]}, not {old.sha256[:12]}",
            hint=f"name a copy of what it was: `--data FILE`; `--data {path}` trains on what it is "
            "now, from the beginning",
        )
    return DataSpec(path=str(found.path), sha256=found.sha256, size_bytes=found.size_bytes)


def _check_room(name: str, state: SavedFile, spec: AttemptSpec) -> int:
    """Return the step of a state; raise UsageError if it is at the end of the budget or beyond."""
    position = state.card.state.get("position", {})
    counted_s = position.get("counted_s") or 0.0
    used = {
        "steps": position.get("steps", 0),
        "tokens": position.get("tokens", 0),
        "minutes": counted_s / 60,
    }
    budget = spec.training.budget
    if budget.kind == "flops":
        each = flops_per_token(
            spec.level, spec.config, seq_len=spec.training.seq_len, training=True
        )
        used["flops"] = position.get("tokens", 0) * each
    if budget.kind in used and used[budget.kind] >= budget.amount:
        raise UsageError(
            f"{name} was trained for {used[budget.kind]:g} {budget.kind} already, and the "
            f"budget is {budget.amount:g}",
            hint=f"ask for more, e.g. `--train-{budget.kind} {2 * budget.amount:g}`",
        )
    return int(position.get("steps", 0))
