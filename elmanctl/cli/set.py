"""The `set` command: change settings of a run, also while it is being searched."""

from typing import Annotated, Any

from typer import Argument, Context, Option

from elmanctl.cli import context, output
from elmanctl.cli.completion import run_names_and_settings
from elmanctl.cli.controller import check_partition
from elmanctl.cli.run_client import act_on_run
from elmanctl.cli.search import gpu_list
from elmanctl.codec import encode
from elmanctl.config import parse_assignments
from elmanctl.errors import UsageError


def set_settings(
    ctx: Context,
    words: Annotated[
        list[str] | None,
        Argument(
            help="Run, default the only unfinished one; then settings, e.g. search.max_jobs=16",
            metavar="[RUN] KEY=VALUE...",
            autocompletion=run_names_and_settings,
        ),
    ] = None,
    gpus: Annotated[
        str | None, Option(help="GPUs of a search on this machine; 0,1 or GPU-8932f9")
    ] = None,
    as_json: context.JsonFlag = False,
) -> None:
    """Change settings of a run, also while it is being searched

    Takes what `resume --set` takes: where and how jobs run and what they may cost, not what they
    measure. The controller uses it from its next turn on; attempts that run keep what they have.

    \b
    Examples:
        elmanctl set search.max_jobs=16
        elmanctl set e88-480m slurm.partition=long budget.gpu_hours=200
        elmanctl set e88-tiny --gpus 0,1,3
    """
    words = words or []
    runs = [word for word in words if "=" not in word]
    assigned = [word for word in words if "=" in word]
    if len(runs) > 1:
        raise UsageError(
            f"`{runs[1]}` is neither a setting nor the run, which is `{runs[0]}`",
            hint="settings are written section.key=value, e.g. search.max_jobs=16",
        )
    changes: dict[str, Any] = parse_assignments(assigned)
    if gpus is not None:
        changes["local.gpus"] = gpu_list(gpus)
    if not changes:
        raise UsageError(
            "name a setting and its value", hint="e.g. `elmanctl set search.max_jobs=16`"
        )
    paths = context.run_to_change(ctx, runs[0] if runs else None)
    check_partition(context.load_brief(paths).run["executor"], changes.get("slurm.partition"))
    answer = act_on_run(paths, "set", {"changes": encode(changes)})
    if as_json:
        output.print_json(answer)
        return
    rows = [[row["setting"], _shown(row["was"]), _shown(row["now"])] for row in answer["changed"]]
    output.print_table(output.columns("SETTING", "WAS", "NOW"), rows)
    if not answer.get("by_controller"):
        output.hint(f"no controller is at work: `elmanctl resume {paths.folder.name}` goes on")


def _shown(value: object) -> str | None:
    if isinstance(value, list):
        return ",".join(map(str, value)) or None
    return None if value is None else str(value)
