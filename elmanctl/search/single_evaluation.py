"""Single evaluation in the foreground, by the worker's own code, without scheduler or search."""

import logging
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from elmanctl import clock
from elmanctl.errors import (
    ElmanError,
    EnvironmentNotReady,
    EvaluationFailed,
    Faults,
    UsageError,
)
from elmanctl.folders import as_written
from elmanctl.jobs.evaluation import evaluate_attempt
from elmanctl.ledger.files import write_json
from elmanctl.models.backends import check_backend_name
from elmanctl.models.params import count_parameters
from elmanctl.models.registry import decode_config, resolve_level
from elmanctl.run.ownership import refuse_open_parents
from elmanctl.run.paths import AttemptPaths
from elmanctl.run.progress import read_table
from elmanctl.run.spec import AttemptSpec, DataSpec
from elmanctl.search.limits import check_learning_rate
from elmanctl.search.plan import check_holdout, check_trainable, find_corpus
from elmanctl.settings import Settings
from elmanctl.space.space import LEARNING_RATE

logger = logging.getLogger(__name__)

# Nothing ends a foreground evaluation but its budget and its user.
_NO_LIMIT_MIN = 60.0 * 24 * 365


def evaluate_once(
    level: str, fields: Mapping[str, Any], settings: Settings, *, out: Path | None
) -> tuple[dict[str, Any], Path]:
    """Train one configuration here and return its result and its folder.

    `fields` are fields of the model, and `lr`.  Raises EvaluationFailed for any verdict but
    completed; the result is kept even then.
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
    check_trainable(settings)
    corpus = find_corpus(settings)
    check_holdout(corpus, settings.train)
    parameters = count_parameters(family.name, config)
    spec = AttemptSpec(
        run="eval",
        evaluation="eval",
        attempt=1,
        level=family.name,
        config=config,
        parameters_expected=parameters,
        training=replace(
            settings.train, lr=lr, batch=settings.train.batch_for(parameters), checkpoint_min=0.0
        ),
        data=DataSpec(path=str(corpus.path), sha256=corpus.sha256, size_bytes=corpus.size_bytes),
        timeout_min=_NO_LIMIT_MIN,
        metrics=settings.metrics,
    )
    paths = AttemptPaths(_new_folder(out, Path(settings.paths.runs).expanduser(), family.name))
    write_json(paths.spec, spec.encode())
    result = _run(paths)
    return result, paths.folder


def _run(paths: AttemptPaths) -> dict[str, Any]:
    try:
        result = evaluate_attempt(str(paths.folder))
    except ElmanError:
        raise
    except Exception as exc:
        logger.debug("the worker failed", exc_info=True)
        raise _failed(paths, read_table(paths.result) or {}) from exc
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
