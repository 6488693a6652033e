"""`search` and `resume`: start a search, or go on with one."""

import os
import re
import resource
import signal
import threading
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from types import FrameType
from typing import Annotated, Any

import typer

from elmanctl.cli.complete import (
    backends,
    model_names,
    presets,
    setting_keys,
    spaces,
    templates,
)
from elmanctl.cli.context import (
    DryRunFlag,
    JsonFlag,
    RunArgument,
    YesFlag,
    resolve_settings,
    run_to_change,
)
from elmanctl.cli.fields import model_fields
from elmanctl.cli.output import confirm, hint, print_json, say, warn
from elmanctl.cli.plan import (
    describe_plan,
    describe_variables,
    print_dry_run,
    warn_of_dropped,
    warn_of_plan,
)
from elmanctl.cli.progress import make_view, print_summary, run_summary
from elmanctl.config import Resolved, parse_assignments
from elmanctl.errors import ElmanError, UsageError, together
from elmanctl.ledger.records import RunStatus
from elmanctl.run.ownership import refuse_foreign_files
from elmanctl.run.paths import RunPaths
from elmanctl.schedulers import make_executor
from elmanctl.schedulers.gpus import GPU_NAME
from elmanctl.schedulers.quoting import check_path
from elmanctl.search.disk_forecast import explained
from elmanctl.search.run_identity import refuse_changed_code, refuse_copy, refuse_other_clusters
from elmanctl.search.session import Session
from elmanctl.search.start import SearchPlan, create_run, plan_search

# How often result files are looked for; Slurm itself is asked far less often.
_TICK_S = 2.0
_LOCAL_TICK_S = 0.5

_Params = Annotated[str | None, typer.Option(help="Parameter budget, e.g. 480M; dim meets it")]
_Generations = Annotated[int | None, typer.Option(help="Generations of CMA-ES")]


def search(
    ctx: typer.Context,
    model: Annotated[
        str,
        typer.Argument(help="Model to search, e.g. e88 or E75n32", autocompletion=model_names),
    ],
    assignments: Annotated[
        list[str] | None, typer.Argument(help="Fields to hold fixed, e.g. use_gate=false")
    ] = None,
    params: _Params = None,
    generations: _Generations = None,
    population: Annotated[int | None, typer.Option(help="Evaluations a generation")] = None,
    train_minutes: Annotated[
        float | None, typer.Option(help="Training time of one evaluation in minutes")
    ] = None,
    train_steps: Annotated[
        int | None, typer.Option(help="Training steps of one evaluation, instead of time")
    ] = None,
    train_tokens: Annotated[
        int | None, typer.Option(help="Training bytes of one evaluation, instead of time")
    ] = None,
    data: Annotated[
        str | None, typer.Option(help="Corpus: a file of bytes; default the built-in one")
    ] = None,
    space: Annotated[
        str | None, typer.Option(help="Search space of the model", autocompletion=spaces)
    ] = None,
    tolerance: Annotated[
        float | None, typer.Option(help="Largest relative distance from the budget")
    ] = None,
    backend: Annotated[
        str | None,
        typer.Option(help="Implementation; default the best", autocompletion=backends),
    ] = None,
    sigma: Annotated[float | None, typer.Option(help="First step size of CMA-ES")] = None,
    seed: Annotated[int | None, typer.Option(help="Seed of the optimizer")] = None,
    start_from_best: Annotated[
        bool | None,
        typer.Option("--start-from-best", help="Start at the known best configuration"),
    ] = None,
    preset: Annotated[
        str | None, typer.Option(help="Named settings, e.g. tiny", autocompletion=presets)
    ] = None,
    name: Annotated[str | None, typer.Option(help="Name of the run")] = None,
    partition: Annotated[
        str | None, typer.Option("-p", "--partition", help="Slurm partition")
    ] = None,
    account: Annotated[str | None, typer.Option(help="Slurm account")] = None,
    template: Annotated[
        str | None, typer.Option(help="Named resources of a job", autocompletion=templates)
    ] = None,
    max_jobs: Annotated[int | None, typer.Option(help="Most jobs at one time")] = None,
    gpu_hours: Annotated[
        float | None, typer.Option(help="Pause when this much is spent; see [budget]")
    ] = None,
    wall_hours: Annotated[
        float | None, typer.Option(help="Pause after so many hours of the controller's work")
    ] = None,
    local: Annotated[
        bool, typer.Option("--local", help="Train on this machine, without Slurm")
    ] = False,
    gpus: Annotated[
        str | None, typer.Option(help="With --local: GPUs, one evaluation each; 0,1 or GPU-8932f9")
    ] = None,
    workers: Annotated[
        int | None, typer.Option(help="With --local: evaluations at one time on the CPU")
    ] = None,
    dry_run: DryRunFlag = False,
    yes: YesFlag = False,
    as_json: JsonFlag = False,
) -> None:
    """Start a search

    Each evaluation is one job that trains a model; all jobs of a generation are one array.
    Ctrl-C leaves the jobs running, and `elmanctl resume` goes on from the ledger.

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
        "train.backend": backend,
        "data.path": data,
        "slurm.partition": partition,
        "slurm.account": account,
        "slurm.template": template,
        "local.gpus": _gpu_list(gpus),
        "local.workers": workers,
        **{
            f"model.{field}": value
            for field, value in model_fields(assignments, with_lr=True).items()
        },
    }
    resolved = resolve_settings(ctx, flags, preset)
    refuse_foreign_files(
        resolved.files, why="its shell lines are run as you; name it with `--config` to use it"
    )
    if not local:
        _heed_variables(resolved)
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
    _check_partition(plan.executor, plan.settings.slurm.partition)
    warn_of_plan(plan)
    described = "\n".join([describe_plan(plan), *describe_variables(plan, resolved)])
    if not confirm(f"{described}\nstart it?", yes=yes):
        say("nothing was started")
        return
    if yes:
        say(described)
    folder = _create(plan, is_named=name is not None)
    drive(RunPaths(folder), as_json=as_json)


def resume(
    ctx: typer.Context,
    run: RunArgument = None,
    generations: Annotated[
        int | None, typer.Option(help="Go on to this many generations in all")
    ] = None,
    changes: Annotated[
        list[str] | None,
        typer.Option(
            "--set",
            help="Change where jobs run or the budget: slurm.partition=long",
            autocompletion=setting_keys,
        ),
    ] = None,
    as_json: JsonFlag = False,
) -> None:
    """Continue a search from its ledger

    Running jobs are adopted, submissions that were accepted but never recorded are found again,
    and the same points are asked as if the search had never stopped.

    \b
    Examples:
        elmanctl resume
        elmanctl resume e88-480m --generations 30
        elmanctl resume --set slurm.partition=long --set slurm.mem_gb=80
        elmanctl resume --set budget.gpu_hours=200
    """
    paths = run_to_change(ctx, run)
    drive(paths, generations=generations, changes=parse_assignments(changes or []), as_json=as_json)


def drive(
    paths: RunPaths,
    *,
    generations: int | None = None,
    changes: Mapping[str, Any] | None = None,
    as_json: bool = False,
) -> None:
    """Run a search's controller in the foreground until it ends or is interrupted."""
    from elmanctl.search.loop import Controller

    _raise_cpu_limit()
    with (
        explained(paths.folder.name),
        Session.open(paths.folder) as session,
        interruptible(paths.folder.name) as stop,
    ):
        if session.warning:
            warn(session.warning)
        session.refuse_cancelled()
        refuse_copy(paths, session.state)
        refuse_other_clusters(session.state, os.environ)
        refuse_changed_code(paths, session.run)
        check_path(paths.folder)
        if changes:
            session.check_changes(changes)
            if "slurm.partition" in changes:
                _check_partition(session.run["executor"], changes["slurm.partition"])
        if generations is not None:
            session.extend(generations)
        if changes:
            before = session.settings.slurm.extra
            session.change_settings(changes)
            warn_of_dropped(before, session.settings.slurm.extra)
        executor = make_executor(paths, session.run["executor"], session.settings)
        # Slurm is asked by the first look, which keeps to its pace.
        executor.check(asks=False)
        session.start_controller()
        poll_s = _LOCAL_TICK_S if executor.name == "local" else session.settings.slurm.poll_s
        tick_s = min(poll_s, _TICK_S)
        try:
            with make_view(session) as view:
                Controller(session, executor, view, poll_s=poll_s, tick_s=tick_s, stop=stop).drive()
        except (ElmanError, OSError) as exc:
            session.pause(exc)
            raise
        state = session.state
        if as_json:
            print_json(run_summary(session))
        elif state.status is not RunStatus.INTERRUPTED:
            print_summary(session)
    if state.status is RunStatus.INTERRUPTED:
        running = len(state.live_attempts())
        if running:
            jobs = "1 job goes" if running == 1 else f"{running} jobs go"
            say(f"interrupted; {jobs} on without the controller")
        hint(f"continue with `elmanctl resume {state.run['name']}`")
        raise typer.Exit(130)


def _raise_cpu_limit() -> None:
    """Let the shell's soft limit on CPU time, meant for what one types, not end a controller."""
    _, hard_s = resource.getrlimit(resource.RLIMIT_CPU)
    resource.setrlimit(resource.RLIMIT_CPU, (hard_s, hard_s))


@contextmanager
def interruptible(run: str) -> Iterator[threading.Event]:
    """Turn the first Ctrl-C, SIGTERM or SIGHUP into an event; the second leaves at once.

    The loop stops between two steps, so that no ledger line is cut by its own user.
    """
    stop = threading.Event()

    def handle(number: int, frame: FrameType | None) -> None:
        if stop.is_set():
            say(f"\nleft at once; nothing is lost: `elmanctl resume {run}` goes on")
            raise KeyboardInterrupt
        stop.set()
        if number == signal.SIGINT:
            say("\nstopping; jobs are left running (Ctrl-C again leaves at once)")

    numbers = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
    # What is ignored stays ignored: `nohup` is meant to outlive the terminal.
    heard = [number for number in numbers if signal.getsignal(number) is not signal.SIG_IGN]
    before = {number: signal.signal(number, handle) for number in heard}
    try:
        yield stop
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def _gpu_list(text: str | None) -> list[int | str] | None:
    if text is None:
        return None
    words = [word.strip() for word in text.split(",")]
    if not all(word.isdecimal() or GPU_NAME.fullmatch(word) for word in words):
        raise UsageError(
            f"`--gpus` is a list of numbers like 0,1 or of names like GPU-8932f937, not `{text}`"
        )
    return [int(word) if word.isdecimal() else word for word in words]


def _heed_variables(resolved: Resolved) -> None:
    """Warn of variables of sbatch that are not used; raise ConfigError for those that forbid."""
    if resolved.sbatch is not None:
        for line in resolved.sbatch.unused:
            warn(line)
        if resolved.sbatch.refused:
            raise together(resolved.sbatch.refused)


def _free_name(runs: Path, model: str, suffix: str | None) -> str:
    asked = f"{model}-{suffix}" if suffix else model
    # A budget may be written 480,000,000.
    return _next_free(runs, re.sub(r"[^a-z0-9._-]", "", asked.lower()))


def _next_free(runs: Path, base: str) -> str:
    number = 1
    while (runs / (base if number == 1 else f"{base}-{number}")).exists():
        number += 1
    return base if number == 1 else f"{base}-{number}"


def _create(plan: SearchPlan, *, is_named: bool) -> Path:
    """Make the run; where another command took the name meanwhile, under the next free one."""
    while True:
        try:
            return create_run(plan)
        except FileExistsError as exc:
            if is_named or not plan.folder.is_dir():
                raise UsageError(
                    f"{plan.folder} exists: another command has just made it",
                    hint="pass another `--name`",
                ) from exc
        name = _next_free(plan.folder.parent, plan.name)
        say(f"`{plan.name}` is taken by now; this run is `{name}`")
        plan = replace(plan, name=name, folder=plan.folder.with_name(name))


def _check_partition(executor: str, partition: str | None) -> None:
    if executor == "slurm" and partition:
        from elmanctl.schedulers.slurm import Slurm

        Slurm().check_partition(partition)
