"""The `search` command: plan one search or several, ask for confirmation, and drive them."""

import re
from collections.abc import Mapping, Sequence
from dataclasses import replace
from itertools import chain, count
from pathlib import Path
from typing import Annotated

from typer import Argument, Context, Option

from elmanctl.cli.assignments import models_and_fields, swept_values
from elmanctl.cli.completion import backends, model_names, one_of, spaces, templates
from elmanctl.cli.context import (
    DryRunFlag,
    JsonFlag,
    PresetOption,
    ProtocolOption,
    SetOption,
    YesFlag,
    resolve_settings,
)
from elmanctl.cli.controller import check_partition, drive
from elmanctl.cli.inside import InsideFlag, describe_inside, inside_executor
from elmanctl.cli.joint_controller import drive_together
from elmanctl.cli.output import confirm, say
from elmanctl.cli.plan import describe_plans, print_dry_run, warn_of_plan, warn_of_variables
from elmanctl.config import Resolved, parse_assignments
from elmanctl.constants import (
    ASYNCHRONOUS,
    BEST,
    GENERATIONAL,
    GPU_NAME,
    MEASURED_BEST,
    OPTIMIZERS,
    STOPPING_RULES,
)
from elmanctl.errors import ElmanError, Faults, UsageError
from elmanctl.ledger.spending import gpus_asked
from elmanctl.run.ownership import refuse_foreign_files
from elmanctl.run.paths import RunPaths
from elmanctl.schedulers import make_executor
from elmanctl.schedulers.cluster import check_gpus_of_nodes, check_lanes_of_nodes
from elmanctl.schedulers.slurm import Slurm
from elmanctl.search.plan import SearchPlan, plan_search
from elmanctl.search.run_creation import create_run, discard_run


def search(
    ctx: Context,
    models: Annotated[
        list[str],
        Argument(
            help="Models to search, e.g. e88 or E75n32, and fields to hold fixed, e.g. "
            "use_gate=false or e88.use_gate=false",
            metavar="MODEL... [FIELD=VALUE]...",
            autocompletion=model_names,
        ),
    ],
    params: Annotated[
        str | None, Option(help="Parameter budget, e.g. 480M; dim is solved to meet it")
    ] = None,
    generations: Annotated[int | None, Option(help="Generations of CMA-ES")] = None,
    population: Annotated[int | None, Option(help="Evaluations per generation")] = None,
    evaluations: Annotated[
        int | None, Option(help="End after this many trained evaluations, confirmations on top")
    ] = None,
    patience: Annotated[
        int | None, Option(help="End after this many generations in a row without improvement")
    ] = None,
    asynchronous: Annotated[
        bool | None,
        Option(
            "--asynchronous/--generational",
            help="Ask a point for each evaluation that ends, or a generation at a time",
            show_default=False,
        ),
    ] = None,
    train_minutes: Annotated[
        float | None, Option(help="Training time per evaluation in minutes")
    ] = None,
    train_steps: Annotated[
        int | None, Option(help="Training steps per evaluation, instead of time")
    ] = None,
    train_tokens: Annotated[
        int | None, Option(help="Training bytes per evaluation, instead of time")
    ] = None,
    train_flops: Annotated[
        float | None, Option(help="Training FLOPs per evaluation, e.g. 1e18, instead of time")
    ] = None,
    protocol: ProtocolOption = None,
    data: Annotated[
        str | None, Option(help="Corpus, a file of bytes; default: the built-in one")
    ] = None,
    space: Annotated[
        str | None, Option(help="Search space of the model", autocompletion=spaces)
    ] = None,
    sweep: Annotated[
        list[str] | None,
        Option(
            help="Search several values of a setting apart, under one budget, e.g. n_state=16,32",
            metavar="FIELD=VALUE,...",
        ),
    ] = None,
    tolerance: Annotated[
        float | None, Option(help="Largest relative deviation from the budget")
    ] = None,
    backend: Annotated[
        str | None,
        Option(help="Backend of the model; default: the fastest", autocompletion=backends),
    ] = None,
    optimizer: Annotated[
        str | None, Option(help="Search method", autocompletion=one_of((*OPTIMIZERS, BEST)))
    ] = None,
    sigma: Annotated[float | None, Option(help="Initial step size of CMA-ES")] = None,
    seed: Annotated[int | None, Option(help="Seed of the optimizer")] = None,
    start_from_best: Annotated[
        bool | None,
        Option("--start-from-best", help="Start at the known best configuration"),
    ] = None,
    stopping: Annotated[
        str | None,
        Option(
            help="Stop evaluations early that will not be the best: off, curve or asha",
            autocompletion=one_of(STOPPING_RULES),
        ),
    ] = None,
    preset: PresetOption = None,
    name: Annotated[str | None, Option(help="Name of the run")] = None,
    partition: Annotated[str | None, Option("-p", "--partition", help="Slurm partition")] = None,
    account: Annotated[str | None, Option(help="Slurm account")] = None,
    template: Annotated[
        str | None, Option(help="Resource template of the jobs", autocompletion=templates)
    ] = None,
    max_jobs: Annotated[int | None, Option(help="Most jobs in flight")] = None,
    keep_models: Annotated[
        int | None, Option(help="Keep the models of this many best evaluations; default: 1")
    ] = None,
    gpu_hours: Annotated[
        float | None, Option(help="Pause after this many GPU-hours; see [budget]")
    ] = None,
    wall_hours: Annotated[
        float | None, Option(help="Pause after this many hours of controller time")
    ] = None,
    local: Annotated[bool, Option("--local", help="Train on this machine, without Slurm")] = False,
    inside: InsideFlag = False,
    gpus: Annotated[
        str | None, Option(help="With --local: GPUs, one evaluation each; 0,1 or GPU-8932f9")
    ] = None,
    workers: Annotated[
        int | None, Option(help="With --local: concurrent evaluations on the CPU")
    ] = None,
    assigned: SetOption = None,
    dry_run: DryRunFlag = False,
    yes: YesFlag = False,
    as_json: JsonFlag = False,
) -> None:
    """Start a search, or one for each of several models

    Each evaluation is a job that trains a model; the jobs of a generation are one array.
    Ctrl-C leaves the jobs running; `elmanctl resume` continues from the ledger. Several models are
    searched in turns under the same settings, each in a run of its own, so that they get equally
    far.

    \b
    Examples:
        elmanctl search e88 --local --preset tiny --yes
        elmanctl search e88 --partition gpu --params 480M --train-minutes 10
        elmanctl search e88 --inside --params 480M --train-minutes 10
        elmanctl search e88 --template h100 --params 480M --train-minutes 10 --dry-run
        elmanctl search E88n32 use_gate=false --space sweep --params 480M --train-minutes 10
        elmanctl search e88 --space sweep --sweep n_state=16,32 --params 480M --train-minutes 10
        elmanctl search e88 mamba2 fla-gdn --params 480M --train-minutes 10 --name fair
    """
    if (gpus is not None or workers is not None) and not local:
        raise UsageError(
            "`--gpus` and `--workers` go with `--local`",
            hint="add `--local`, or leave them out: a Slurm job asks for `slurm.gres`",
        )
    fields = models_and_fields(models)
    flags = {
        "search.params": params,
        "search.generations": generations,
        "search.population": population,
        "search.evaluations": evaluations,
        "search.patience": patience,
        "search.mode": _mode(asynchronous),
        "search.space": space,
        "search.sweep": swept_values(sweep) if sweep else None,
        "search.tolerance": tolerance,
        "search.optimizer": optimizer,
        "search.sigma": sigma,
        "search.seed": seed,
        "search.start_from_best": start_from_best,
        "search.max_jobs": max_jobs,
        "stopping.rule": stopping,
        "disk.keep_models": keep_models,
        "budget.gpu_hours": gpu_hours,
        "budget.wall_h": wall_hours,
        "train.minutes": train_minutes,
        "train.steps": train_steps,
        "train.tokens": train_tokens,
        "train.flops": train_flops,
        "train.protocol": protocol,
        "train.backend": backend,
        "data.path": data,
        "slurm.partition": partition,
        "slurm.account": account,
        "slurm.template": template,
        "local.gpus": gpu_list(gpus),
        "local.workers": workers,
    }
    more = parse_assignments(assigned or [])
    each = {
        model: resolve_settings(
            ctx,
            {**flags, **{f"model.{key}": value for key, value in own.items()}, **more},
            preset,
        )
        for model, own in fields.items()
    }
    resolved = next(iter(each.values()))
    refuse_foreign_files(
        resolved.files, why="its shell lines are run as you; name it with `--config` to use it"
    )
    if not local:
        warn_of_variables(resolved)
    runs = Path(resolved.settings.paths.runs).expanduser()
    names = _names(runs, list(fields), name, preset or resolved.settings.search.params)
    plans = _plan(each, names, executor="local" if local else "slurm", runs=runs)
    if resolved.settings.search.optimizer == BEST:
        say(f"the optimizer `{BEST}` is `{MEASURED_BEST}`, by the measurements of docs/search.md")
    within = None
    if inside:
        first = plans[0]
        within = inside_executor(RunPaths(first.folder), first.executor, first.settings)
    if dry_run:
        print_dry_run(plans, resolved, within, as_json=as_json)
        return
    if within is None:
        _check_cluster(plans[0])
    for plan in plans:
        warn_of_plan(plan)
    described = describe_plans(plans, resolved, within)
    if within is not None:
        described += f"\n{describe_inside(within)}"
    question = "start the search?" if len(plans) == 1 else f"start the {len(plans)} searches?"
    if not confirm(f"{described}\n{question}", yes=yes):
        say("nothing was started")
        return
    if yes:
        say(described)
    folders = _create_all(plans, is_named=name is not None)
    if len(folders) == 1:
        drive(RunPaths(folders[0]), inside=inside, as_json=as_json)
    else:
        drive_together([RunPaths(folder) for folder in folders], inside=inside, as_json=as_json)


def _check_cluster(plan: SearchPlan) -> None:
    """Raise EnvironmentNotReady where jobs cannot be submitted, or no node has what they ask."""
    make_executor(RunPaths(plan.folder), plan.executor, plan.settings).check()
    check_partition(plan.executor, plan.settings.slurm.partition)
    if plan.executor == "slurm":
        resources = plan.resources
        gpus_each = gpus_asked(resources) // resources.nodes
        check_gpus_of_nodes(resources, gpus_each, Slurm())
        check_lanes_of_nodes(resources, gpus_each, Slurm())


def _plan(
    each: Mapping[str, Resolved], names: Sequence[str], *, executor: str, runs: Path
) -> list[SearchPlan]:
    """Return the plan of every search; raise together what is wrong with any of them."""
    plans, errors = [], {}
    for (model, resolved), name in zip(each.items(), names, strict=True):
        try:
            plans.append(
                plan_search(model, resolved.settings, executor=executor, name=name, runs=runs)
            )
        except ElmanError as exc:
            errors[model] = exc
    if len(each) > 1 and len({error.message for error in errors.values()}) > 1:
        for model, error in errors.items():
            for part in error.parts or (error,):
                part.message = f"{model}: {part.message}"
    faults = Faults()
    for error in errors.values():
        faults.add(error)
    faults.raise_any()
    return plans


def _mode(asynchronous: bool | None) -> str | None:
    if asynchronous is None:
        return None
    return ASYNCHRONOUS if asynchronous else GENERATIONAL


def gpu_list(text: str | None) -> list[int | str] | None:
    """Read the value of `--gpus`: numbers or names; raise UsageError for another one."""
    if text is None:
        return None
    words = [word.strip() for word in text.split(",")]
    if not all(word.isdecimal() or GPU_NAME.fullmatch(word) for word in words):
        raise UsageError(
            f"`--gpus` is a list of numbers like 0,1 or of names like GPU-8932f937, not `{text}`"
        )
    return [int(word) if word.isdecimal() else word for word in words]


def _names(runs: Path, models: Sequence[str], name: str | None, suffix: str | None) -> list[str]:
    """Return the names of the runs: as the user wants, or like their models and not taken."""
    if name is not None:
        return [name] if len(models) == 1 else [f"{name}-{_plain(model)}" for model in models]
    wanted = [_plain(f"{model}-{suffix}" if suffix else model) for model in models]
    numbered = ([f"{base}-{number}" for base in wanted] for number in count(2))
    free = (names for names in chain([wanted], numbered) if not _taken(runs, names))
    return next(free)


def _plain(name: str) -> str:
    # A budget may be written 480,000,000.
    return re.sub(r"[^a-z0-9._-]", "", name.lower())


def _taken(runs: Path, names: Sequence[str]) -> bool:
    return any((runs / name).exists() for name in names)


def _next_free(runs: Path, base: str) -> str:
    names = chain([base], (f"{base}-{number}" for number in count(2)))
    return next(name for name in names if not (runs / name).exists())


def _create_all(plans: Sequence[SearchPlan], *, is_named: bool) -> list[Path]:
    """Create the runs of all plans, or none."""
    folders: list[Path] = []
    try:
        for plan in plans:
            folders.append(_create(plan, is_named=is_named))
    except BaseException:
        for folder in folders:
            discard_run(folder)
        raise
    return folders


def _create(plan: SearchPlan, *, is_named: bool) -> Path:
    """Create the run; if another command just took its default name, under the next free one."""
    while True:
        try:
            return create_run(plan)
        except FileExistsError as exc:
            if is_named or not plan.folder.is_dir():
                raise UsageError(
                    f"{plan.folder} exists: another command has just created it",
                    hint="pass another `--name`",
                ) from exc
        name = _next_free(plan.folder.parent, plan.name)
        say(f"`{plan.name}` was just taken; this run is named `{name}`")
        plan = replace(plan, name=name, folder=plan.folder.with_name(name))
