"""Spec and resources of an attempt, from the run's settings and its evaluation."""

import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

from elmanctl.errors import ConfigError
from elmanctl.ledger.records import Attempt, Evaluation, VerdictKind
from elmanctl.ledger.run_state import RunState
from elmanctl.ledger.spending import gpus_asked
from elmanctl.ledger.submissions import Resources
from elmanctl.models.registry import decode_config
from elmanctl.run.spec import AttemptSpec, DataSpec
from elmanctl.run.training import Training
from elmanctl.settings import ONE_GPU, Settings
from elmanctl.space.preflight import Preflight
from elmanctl.verdicts.policy import rule_of

# A run without a time budget is ended after this long unless the user names a limit.
_DEFAULT_TIMEOUT_MIN = 60

# Start-up, compilation and warm-up come on top of a time budget.
_MARGIN_MIN = 10

# The training ended by itself: resuming from its checkpoint would end in the same way.
_ENDED_BY_ITSELF = (
    *(VerdictKind.COMPLETED, VerdictKind.STOPPED, VerdictKind.DIVERGED),
    *(VerdictKind.INVALID, VerdictKind.PYTHON_ERROR),
)


def time_limit_min(training: Training, asked: int | None) -> int:
    """Return a job's time limit in minutes: the requested one, or the budget and a margin.

    Raises ConfigError for a limit below the training budget.
    """
    minutes = training.minutes_at_most
    if asked is not None:
        if minutes is not None and asked <= minutes:
            raise ConfigError(
                f"a time limit of {asked} min leaves no room for {minutes:g} min of training",
                hint="raise `timeout_min`, or leave it out",
            )
        return asked
    if minutes is None:
        return _DEFAULT_TIMEOUT_MIN
    return math.ceil(minutes * 1.1) + _MARGIN_MIN


def attempt_resources(settings: Settings, executor: str, changes: Mapping[str, Any]) -> Resources:
    """Return the resources of a job, with the changes of a requeue.

    Raises ConfigError for an impossible change.
    """
    slurm, training = settings.slurm, settings.train
    if executor == "local":
        if "mem_gb" in changes:
            raise ConfigError("a search on this machine sets no limit on memory")
        if changes.get("exclude"):
            raise ConfigError("a search on this machine has no other node to run on")
        check_on_one_machine(training)
        asked = changes.get("timeout_min", settings.local.timeout_min)
        return Resources(timeout_min=time_limit_min(training, asked), tasks_per_node=training.gpus)
    gres = slurm.gres or None
    resources = Resources(
        timeout_min=time_limit_min(training, changes.get("timeout_min", slurm.timeout_min)),
        partition=slurm.partition,
        account=slurm.account,
        nodes=training.nodes,
        tasks_per_node=training.gpus,
        gres=f"gpu:{training.gpus}" if gres == ONE_GPU else gres,
        mem_gb=changes.get("mem_gb", slurm.mem_gb),
        cpus=slurm.cpus,
        setup=slurm.setup,
        extra=slurm.extra,
        python=slurm.python,
        exclude=tuple(changes.get("exclude", ())),
        per_job=slurm.per_job,
    )
    _check_enough_gpus(resources, training)
    _check_lanes(settings)
    return resources


def check_on_one_machine(training: Training) -> None:
    """Raise ConfigError for a training on several nodes, which only Slurm can start."""
    if training.nodes > 1:
        raise ConfigError(
            f"`train.nodes` is {training.nodes}, and this machine is one node",
            hint="set `train.nodes` to 1, or search on a cluster: without `--local`",
        )


def _check_enough_gpus(resources: Resources, training: Training) -> None:
    """Raise ConfigError for a job with fewer GPUs a node than train one model there."""
    asked, wanted = gpus_asked(resources) // resources.nodes, training.gpus
    if wanted == 1 or asked >= wanted or (not asked and training.device == "cpu"):
        return
    gres = resources.gres or ""
    more = re.sub(r"(gpu(?::[a-zA-Z]\w*)?)(?::\d+)?", rf"\1:{wanted}", gres, count=1)
    raise ConfigError(
        f"`train.gpus` is {wanted}, and a job asks for {asked} on a node (`slurm.gres` is "
        f"`{gres}`)",
        hint=f"set `slurm.gres` to {more if 'gpu' in gres else f'gpu:{wanted}'}"
        + ("" if asked else ", or `train.device` to cpu"),
    )


def _check_lanes(settings: Settings) -> None:
    """Raise ConfigError for several attempts in a job where one alone needs several GPUs."""
    per_job, training = settings.slurm.per_job, settings.train
    if per_job == 1:
        return
    if training.gpus * training.nodes > 1:
        raise ConfigError(
            f"`slurm.per_job` is {per_job}, and each attempt trains on "
            f"{training.gpus * training.nodes} GPUs (`train.gpus` x `train.nodes`)",
            hint="set `slurm.per_job` to 1, or train on one GPU each",
        )
    if per_job > settings.search.max_jobs:
        raise ConfigError(
            f"`slurm.per_job` is {per_job}, and `search.max_jobs` allows "
            f"{settings.search.max_jobs} attempts at a time",
            hint=f"set `search.max_jobs` to {per_job} or more",
        )


def attempt_spec(
    run: Mapping[str, Any], settings: Settings, evaluation: Evaluation, attempt: int, limit: int
) -> AttemptSpec:
    """Return the spec of an attempt; `run` is the ledger's record of the run."""
    return AttemptSpec(
        run=run["name"],
        evaluation=evaluation.id,
        attempt=attempt,
        level=run["model"],
        config=evaluation.config,
        parameters_expected=evaluation.parameters,
        training=replace(
            settings.train,
            lr=evaluation.lr,
            seed=evaluation.seed,
            batch=settings.train.batch_for(evaluation.parameters),
            micro_batch=micro_batch_of(run, settings, evaluation),
        ),
        data=DataSpec(**{key: run["data"][key] for key in ("path", "sha256", "size_bytes")}),
        timeout_min=limit,
        continues_from=(
            checkpoint_folders(evaluation.attempts) if settings.train.checkpoint_min else ()
        ),
        metrics=settings.metrics,
    )


def checkpoint_folders(attempts: Sequence[Attempt]) -> tuple[str, ...]:
    """Return the folders with checkpoints that the next attempt may resume from, newest first.

    After an end of its own the training starts from scratch.  After a node failure or an unclear
    end that attempt's own checkpoint is skipped in favour of earlier ones.
    """
    folders = []
    for attempt in reversed(attempts):
        if attempt.verdict is None:
            continue
        if attempt.verdict.kind in _ENDED_BY_ITSELF:
            break
        if rule_of(attempt.verdict).resumes:
            folders.append(f"attempt-{attempt.number}")
    return tuple(folders)


def found_micro_batches(state: RunState, evaluation: Evaluation) -> dict[str, int]:
    """Return the micro-batches that workers found for a configuration, by the name of the device.

    They are those of attempts of the evaluation, of the first one of its configuration and of the
    one that it confirms, where memory ran out.  A worker that says so in its result reads them from
    a spec; that of a run of an earlier version does not.
    """
    names = {evaluation.id, evaluation.configuration, evaluation.confirms or evaluation.id}
    found: dict[str, int] = {}
    for attempt in (a for name in sorted(names) for a in state.evaluations[name].attempts):
        result = attempt.result or {}
        device, rows = result.get("device_name"), result.get("micro_batch")
        if result.get("halvings") and isinstance(device, str) and isinstance(rows, int):
            found[device] = min(rows, found.get(device, rows))
    return found


def micro_batch_of(run: Mapping[str, Any], settings: Settings, evaluation: Evaluation) -> int:
    """Return the micro-batch of an evaluation's next attempt, 0 for the whole batch.

    Raises InvalidConfiguration if the model does not fit in the memory of its GPU.
    """
    asked = evaluation.changes.get("micro_batch")
    if isinstance(asked, int):
        return asked
    config = decode_config(run["model"], evaluation.config)
    return Preflight(settings, run["executor"]).micro_batch(config)
