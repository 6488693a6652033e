"""The `resume` command: continue one search or several from their ledgers."""

from typing import Annotated

from typer import Argument, Context, Option

from elmanctl.cli.completion import run_names, setting_keys
from elmanctl.cli.context import JsonFlag, run_to_change
from elmanctl.cli.controller import drive
from elmanctl.cli.inside import InsideFlag
from elmanctl.cli.joint_controller import drive_together
from elmanctl.config import parse_assignments
from elmanctl.errors import UsageError


def resume(
    ctx: Context,
    runs: Annotated[
        list[str] | None,
        Argument(help="Runs; default: the only unfinished one", autocompletion=run_names),
    ] = None,
    generations: Annotated[
        int | None, Option(help="Extend the search to this many generations in total")
    ] = None,
    changes: Annotated[
        list[str] | None,
        Option(
            "--set",
            help="Change a setting of the jobs or the budget, e.g. slurm.partition=long",
            autocompletion=setting_keys,
        ),
    ] = None,
    inside: InsideFlag = False,
    as_json: JsonFlag = False,
) -> None:
    """Continue a search, or several, from their ledgers

    Live jobs are adopted, submissions that were accepted but never recorded are found by name, and
    the optimizer proposes the same points as in an uninterrupted search. Several runs take turns,
    so that they get equally far. A search on Slurm may go on by jobs or inside an allocation,
    whichever it was before.

    \b
    Examples:
        elmanctl resume
        elmanctl resume e88-480m --generations 30
        elmanctl resume e88-480m mamba2-480m
        elmanctl resume e88-480m --inside
        elmanctl resume --set slurm.partition=long --set slurm.mem_gb=80
        elmanctl resume --set budget.gpu_hours=200
    """
    changed = parse_assignments(changes or [])
    if not runs or len(runs) == 1:
        path = run_to_change(ctx, runs[0] if runs else None)
        drive(path, generations=generations, changes=changed, inside=inside, as_json=as_json)
        return
    paths = [run_to_change(ctx, run) for run in runs]
    names = [one.folder.name for one in paths]
    twice = next((name for name in names if names.count(name) > 1), None)
    if twice is not None:
        raise UsageError(f"the run `{twice}` is named twice", hint="name each run once")
    drive_together(paths, generations=generations, changes=changed, inside=inside, as_json=as_json)
