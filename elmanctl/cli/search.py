"""The `search` command: plan a search, ask for confirmation, and drive it."""

import re
from dataclasses import replace
from itertools import chain, count
from pathlib import Path
from typing import Annotated

from typer import Argument, Context, Option

from elmanctl.cli.assignments import model_fields
from elmanctl.cli.completion import backends, model_names, spaces, templates
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
from elmanctl.cli.output import confirm, say
from elmanctl.cli.plan import describe_plan, print_dry_run, warn_of_plan, warn_of_variables
from elmanctl.config import parse_assignments
from elmanctl.constants import GPU_NAME
from elmanctl.errors import UsageError
from elmanctl.run.ownership import refuse_foreign_files
from elmanctl.run.paths import RunPaths
from elmanctl.schedulers import make_executor
from elmanctl.search.plan import SearchPlan, plan_search
from elmanctl.search.run_creation import create_run


def search(
    ctx: Context,
    model: Annotated[
        str,
        Argument(help="Model to search, e.g. e88 or E75n32", autocompletion=model_names),
    ],
    assignments: Annotated[
        list[str] | None, Argument(help="Fields to hold fixed, e.g. use_gate=false")
    ] = None,
    params: Annotated[
        str | None, Option(help="Parameter budget, e.g. 480M; dim is solved to meet it")
    ] = None,
    generations: Annotated[int | None, Option(help="Generations of CMA-ES")] = None,
    population: Annotated[int | None, Option(help="Evaluations per generation")] = None,
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
    tolerance: Annotated[
        float | None, Option(help="Largest relative deviation from the budget")
    ] = None,
    backend: Annotated[
        str | None,
        Option(help="Backend of the model; default: the fastest", autocompletion=backends),
    ] = None,
    sigma: Annotated[float | None, Option(help="Initial step size of CMA-ES")] = None,
    seed: Annotated[int | None, Option(help="Seed of the optimizer")] = None,
    start_from_best: Annotated[
        bool | None,
        Option("--start-from-best", help="Start at the known best configuration"),
    ] = None,
    preset: PresetOption = None,
    name: Annotated[str | None, Option(help="Name of the run")] = None,
    partition: Annotated[str | None, Option("-p", "--partition", help="Slurm partition")] = None,
    account: Annotated[str | None, Option(help="Slurm account")] = None,
    template: Annotated[
        str | None, Option(help="Resource template of the jobs", autocompletion=templates)
    ] = None,
    max_jobs: Annotated[int | None, Option(help="Most jobs in flight")] = None,
    gpu_hours: Annotated[
        float | None, Option(help="Pause after this many GPU-hours; see [budget]")
    ] = None,
    wall_hours: Annotated[
        float | None, Option(help="Pause after this many hours of controller time")
    ] = None,
    local: Annotated[bool, Option("--local", help="Train on this machine, without Slurm")] = False,
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
    """Start a search

    Each evaluation is a job that trains a model; the jobs of a generation are one array.
    Ctrl-C leaves the jobs running; `elmanctl resume` continues from the ledger.

    \b
    Examples:
        elmanctl search e88 --local --preset tiny --yes
        elmanctl search e88 --partition gpu --params 480M --train-minutes 10
        elmanctl search e88 --template h100 --params 480M --train-minutes 10 --dry-run
        elmanctl search E88n32 use_gate=false --space sweep --params 480M --train-minutes 10
    """
    if (gpus is not None or workers is not None) and not local:
        raise UsageError(
            "`--gpus` and `--workers` go with `--local`",
            hint="add `--local`, or leave them out: a Slurm job asks for `slurm.gres`",
        )
    fields = model_fields(assignments, with_lr=True)
    flags = {
        "search.params": params,
        "search.generations": generations,
        "search.population": population,
        "search.space": space,
        "search.tolerance": tolerance,
        "search.sigma": sigma,
        "search.seed": seed,
        "search.start_from_best": start_from_best,
        "search.max_jobs": max_jobs,
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
        "local.gpus": _gpu_list(gpus),
        "local.workers": workers,
        **{f"model.{key}": value for key, value in fields.items()},
        **parse_assignments(assigned or []),
    }
    resolved = resolve_settings(ctx, flags, preset)
    refuse_foreign_files(
        resolved.files, why="its shell lines are run as you; name it with `--config` to use it"
    )
    if not local:
        warn_of_variables(resolved)
    settings = resolved.settings
    runs = Path(settings.paths.runs).expanduser()
    plan = plan_search(
        model,
        settings,
        executor="local" if local else "slurm",
        name=name or _free_name(runs, model, preset or settings.search.params),
        runs=runs,
    )
    if dry_run:
        print_dry_run(plan, resolved, as_json=as_json)
        return
    executor = make_executor(RunPaths(plan.folder), plan.executor, plan.settings)
    executor.check()
    check_partition(plan.executor, plan.settings.slurm.partition)
    warn_of_plan(plan)
    described = describe_plan(plan, resolved)
    if not confirm(f"{described}\nstart the search?", yes=yes):
        say("nothing was started")
        return
    if yes:
        say(described)
    folder = _create(plan, is_named=name is not None)
    drive(RunPaths(folder), as_json=as_json)


def _gpu_list(text: str | None) -> list[int | str] | None:
    if text is None:
        return None
    words = [word.strip() for word in text.split(",")]
    if not all(word.isdecimal() or GPU_NAME.fullmatch(word) for word in words):
        raise UsageError(
            f"`--gpus` is a list of numbers like 0,1 or of names like GPU-8932f937, not `{text}`"
        )
    return [int(word) if word.isdecimal() else word for word in words]


def _free_name(runs: Path, model: str, suffix: str | None) -> str:
    wanted = f"{model}-{suffix}" if suffix else model
    # A budget may be written 480,000,000.
    return _next_free(runs, re.sub(r"[^a-z0-9._-]", "", wanted.lower()))


def _next_free(runs: Path, base: str) -> str:
    names = chain([base], (f"{base}-{number}" for number in count(2)))
    return next(name for name in names if not (runs / name).exists())


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
