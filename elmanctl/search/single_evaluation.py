"""Single evaluation in the foreground, by the worker's own code, without scheduler or search."""

import logging
import time
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from elmanctl import clock
from elmanctl.errors import (
    ElmanError,
    EnvironmentNotReady,
    EvaluationFailed,
    Faults,
    NotFound,
    UsageError,
)
from elmanctl.folders import as_written, shown
from elmanctl.jobs.claim import node_name
from elmanctl.jobs.evaluation import evaluate_attempt
from elmanctl.ledger.files import write_json
from elmanctl.models.backends import check_backend_name
from elmanctl.models.params import count_parameters
from elmanctl.models.registry import decode_config, find_family, resolve_level
from elmanctl.processes import start_ticks
from elmanctl.run.corpus import CorpusInfo
from elmanctl.run.ownership import refuse_open_parents
from elmanctl.run.paths import AttemptPaths
from elmanctl.run.progress import heartbeat_age_s, heartbeat_timeout_s, read_table
from elmanctl.run.saved_file import CHECKPOINT, MODEL
from elmanctl.run.spec import AttemptSpec, DataSpec
from elmanctl.search.limits import check_learning_rate
from elmanctl.search.longer_training import CHECKPOINT_MIN, FOREGROUND, NO_LIMIT_MIN
from elmanctl.search.plan import check_holdout, check_trainable, find_corpus
from elmanctl.search.workload import check_on_one_machine
from elmanctl.settings import Settings
from elmanctl.space.space import LEARNING_RATE

logger = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True, kw_only=True)
class Prepared:
    """An evaluation whose folder and spec are written; `is_again` if it was begun before."""

    paths: AttemptPaths
    spec: AttemptSpec
    is_again: bool = False


def prepare_once(
    level: str,
    fields: Mapping[str, Any],
    settings: Settings,
    *,
    out: Path | None,
    keeps_state: bool = True,
) -> Prepared:
    """Check one configuration, and write its spec.

    `fields` are fields of the model, and `lr`.
    """
    values = {**settings.model, **fields}
    lr = values.pop(LEARNING_RATE, settings.train.lr)
    faults = Faults()
    with faults:
        lr = check_learning_rate(lr)
    family, _ = resolve_level(level, values)
    with faults:
        check_backend_name(family.name, family.backends, settings.train.backend)
    with faults:
        _ = settings.train.budget
    with faults:
        settings.train.check_together()
    with faults:
        settings.metrics.check_together()
    with faults:
        model = decode_config(level, values)
    faults.raise_any()
    config = model.encode()
    check_on_one_machine(settings.train)
    check_trainable(settings)
    corpus = find_corpus(settings)
    check_holdout(corpus, settings.train)
    parameters = count_parameters(family.name, config)
    training = replace(
        settings.train,
        lr=lr,
        batch=settings.train.batch_for(parameters),
        checkpoint_min=settings.train.checkpoint_min or CHECKPOINT_MIN,
    )
    spec = AttemptSpec(
        run=FOREGROUND,
        evaluation=FOREGROUND,
        attempt=1,
        level=family.name,
        config=config,
        parameters_expected=parameters,
        training=training,
        data=DataSpec(path=str(corpus.path), sha256=corpus.sha256, size_bytes=corpus.size_bytes),
        timeout_min=NO_LIMIT_MIN,
        keep=(MODEL, CHECKPOINT) if keeps_state else (MODEL,),
        metrics=settings.metrics,
    )
    return _begin(spec, Path(settings.paths.runs).expanduser(), out)


def prepare_longer(spec: AttemptSpec, runs: Path, *, out: Path | None) -> Prepared:
    """Check that a spec on record can be trained here, and write it."""
    training = spec.training
    faults = Faults()
    with faults:
        check_backend_name(spec.level, find_family(spec.level).backends, training.backend)
    with faults:
        _ = training.budget
    with faults:
        training.check_together()
    with faults:
        spec.metrics.check_together()
    faults.raise_any()
    check_on_one_machine(training)
    check_trainable(Settings(train=training, metrics=spec.metrics))
    data = spec.data
    corpus = CorpusInfo(path=Path(data.path), sha256=data.sha256, size_bytes=data.size_bytes)
    check_holdout(corpus, training)
    return _begin(spec, runs, out)


def prepare_again(folder: Path) -> Prepared:
    """Return an interrupted evaluation in its folder.

    Raises NotFound, and UsageError if it has a result or its process is still alive.
    """
    paths = AttemptPaths(as_written(folder))
    if not paths.spec.is_file():
        raise NotFound(
            f"{shown(paths.folder)} holds no evaluation",
            hint="name a folder that `elmanctl eval` made",
        )
    if paths.is_in_run:
        raise UsageError(
            f"{shown(paths.folder)} belongs to a search, whose controller goes on with it",
            hint="`elmanctl resume RUN` goes on with the search, `elmanctl eval --from RUN/EVAL` "
            "trains one of its evaluations longer",
        )
    if paths.result.exists():
        raise UsageError(
            f"the evaluation in {shown(paths.folder)} has ended",
            hint=f"`elmanctl eval --from {shown(paths.folder)}` with a larger budget trains on",
        )
    spec = AttemptSpec.read(paths.spec)
    _refuse_live(paths, spec)
    check_trainable(Settings(train=spec.training, metrics=spec.metrics))
    return Prepared(paths=paths, spec=spec, is_again=True)


def _refuse_live(paths: AttemptPaths, spec: AttemptSpec) -> None:
    """Raise UsageError while the process of an evaluation is alive, as far as that can be seen."""
    claim = read_table(paths.claim)
    if claim is None:
        return
    pid, host, is_alive = claim.get("pid"), claim.get("host"), False
    if host == node_name():
        # Together with its start a number names one process; that of a dead one has no start.
        ticks = start_ticks(pid) if isinstance(pid, int) else None
        is_alive = bool(ticks) and ticks == claim.get("pid_start")
    else:
        age_s = heartbeat_age_s(paths, time.time())
        is_alive = age_s is not None and age_s < heartbeat_timeout_s(spec.training.heartbeat_s)
    if is_alive:
        raise UsageError(
            f"the evaluation in {shown(paths.folder)} is still running: process {pid} on {host}",
            hint="wait for its end, or end that process first",
        )


def train_prepared(prepared: Prepared) -> dict[str, Any]:
    """Train here and return the result.

    Raises EvaluationFailed for any verdict but completed; the result is kept even then.
    """
    return _run(prepared.paths, is_again=prepared.is_again)


def _begin(spec: AttemptSpec, runs: Path, out: Path | None) -> Prepared:
    paths = AttemptPaths(_new_folder(out, runs, spec.level))
    write_json(paths.spec, spec.encode())
    return Prepared(paths=paths, spec=spec)


def _run(paths: AttemptPaths, *, is_again: bool) -> dict[str, Any]:
    try:
        result = evaluate_attempt(str(paths.folder), is_again=is_again)
    except ElmanError:
        raise
    except Exception as exc:
        logger.debug("the worker failed", exc_info=True)
        raise _failed(paths, read_table(paths.result) or {}) from exc
    if "verdict" not in result:
        raise UsageError(f"another process has begun to train {shown(paths.folder)} meanwhile")
    if result["verdict"]["kind"] != "completed":
        raise _failed(paths, result)
    return result


def _failed(paths: AttemptPaths, result: Mapping[str, Any]) -> EvaluationFailed:
    verdict = result.get("verdict") or {"kind": "undetermined", "evidence": []}
    quotes = [quote["text"] for quote in verdict["evidence"]]
    return EvaluationFailed(
        f"{verdict['kind']}: {quotes[0] if quotes else 'the worker left no result'}",
        hint=f"everything is kept in {paths.folder}",
    )


def _new_folder(out: Path | None, runs: Path, model: str) -> Path:
    folder = as_written(out or runs / f"eval-{model}-{clock.now():%Y%m%d-%H%M%S}")
    refuse_open_parents(folder)
    try:
        folder.mkdir(parents=True)
    except FileExistsError as exc:
        raise UsageError(f"{folder} exists", hint="pass another `--out`") from exc
    except OSError as exc:
        raise EnvironmentNotReady(
            f"results cannot be kept in {folder}: {exc.strerror}",
            hint="pass `--out FOLDER`, or change `paths.runs`",
        ) from exc
    return folder
