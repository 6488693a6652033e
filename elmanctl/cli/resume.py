"""The `resume` command: continue a search from its ledger."""

from typing import Annotated

from typer import Context, Option

from elmanctl.cli.completion import setting_keys
from elmanctl.cli.context import JsonFlag, RunArgument, run_to_change
from elmanctl.cli.controller import drive
from elmanctl.config import parse_assignments


def resume(
    ctx: Context,
    run: RunArgument = None,
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
    as_json: JsonFlag = False,
) -> None:
    """Continue a search from its ledger

    Live jobs are adopted, submissions that were accepted but never recorded are found by name, and
    the optimizer proposes the same points as in an uninterrupted search.

    \b
    Examples:
        elmanctl resume
        elmanctl resume e88-480m --generations 30
        elmanctl resume --set slurm.partition=long --set slurm.mem_gb=80
        elmanctl resume --set budget.gpu_hours=200
    """
    paths = run_to_change(ctx, run)
    drive(paths, generations=generations, changes=parse_assignments(changes or []), as_json=as_json)
