"""The context that commands share: effective settings, the chosen run, common options."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Any

from typer import Argument, Context, Option, Typer

from elmanctl.cli.completion import (
    presets,
    protocols,
    run_names,
    run_or_evaluation_names,
    setting_keys,
)
from elmanctl.cli.output import warn
from elmanctl.config import Resolved, resolve
from elmanctl.folders import as_written
from elmanctl.ledger.run_state import RunState
from elmanctl.ledger.snapshot import load_summary
from elmanctl.ledger.state import load_run
from elmanctl.ledger.summary import RunSummary
from elmanctl.run.paths import RunPaths
from elmanctl.search.effective_settings import require_run
from elmanctl.search.selection import find_run, find_run_to_change, list_runs

RunArgument = Annotated[
    str | None,
    Argument(help="Run; default: the only unfinished one", autocompletion=run_names),
]
ReadRunArgument = Annotated[
    str | None, Argument(help="Run; default: the newest", autocompletion=run_names)
]
RunOption = Annotated[
    str | None,
    Option(help="Run; default: the only unfinished one", autocompletion=run_names),
]
RunAndEvaluations = Annotated[
    list[str] | None,
    Argument(
        help="Run, then evaluations; default: the only unfinished run",
        autocompletion=run_or_evaluation_names,
    ),
]
JsonFlag = Annotated[bool, Option("--json", help="Print JSON")]
YesFlag = Annotated[bool, Option("-y", "--yes", help="Skip the confirmation prompt")]
PresetOption = Annotated[
    str | None, Option(help="Named settings, e.g. tiny", autocompletion=presets)
]
ProtocolOption = Annotated[
    str | None,
    Option(help="Named conditions of a comparison; default fair", autocompletion=protocols),
]
SetOption = Annotated[
    list[str] | None,
    Option("--set", help="Any other setting, e.g. train.batch=32", autocompletion=setting_keys),
]
DryRunFlag = Annotated[bool, Option("--dry-run", help="Print what would be done")]


@dataclass(frozen=True, slots=True, kw_only=True)
class Globals:
    """The global options that commands need."""

    config: Path | None = None
    warned: set[str] = field(default_factory=set)


def command_group(name: str, help_text: str) -> Typer:
    """Return an application whose commands form a group, even a single one."""
    group = Typer(
        name=name,
        help=help_text,
        rich_markup_mode=None,
        add_completion=False,
        no_args_is_help=True,
    )
    # A callback makes a group of a single command.
    group.callback()(lambda: None)
    return group


def resolve_settings(ctx: Context, flags: Mapping[str, Any], preset: str | None = None) -> Resolved:
    """Return the effective settings of a command with these flags; print each warning once."""
    resolved = resolve(flags, preset=preset, config=ctx.obj.config)
    for warning in resolved.warnings:
        if warning not in ctx.obj.warned:
            ctx.obj.warned.add(warning)
            warn(warning)
    return resolved


def runs_folder(ctx: Context) -> Path:
    """Return the folder of all runs."""
    return Path(resolve_settings(ctx, {}).settings.paths.runs).expanduser()


def known_runs(ctx: Context) -> list[str]:
    """Return the names of all runs."""
    return [path.name for path in list_runs(runs_folder(ctx))]


def chosen_run(ctx: Context, name: str | None) -> RunPaths:
    """Return the run that the user named, or the newest one."""
    return RunPaths(as_written(find_run(runs_folder(ctx), name)))


def load_brief(paths: RunPaths) -> RunSummary:
    """Return the summary of a run, reading as little as possible; otherwise as `load_readable`."""
    loaded = load_summary(paths.folder)
    if loaded.warning:
        warn(loaded.warning)
    require_run(paths, loaded.summary)
    return loaded.summary


def run_to_change(ctx: Context, name: str | None, *, whole_name: bool = False) -> RunPaths:
    """Return the run that a command changes: the named one, or the only candidate."""
    folder = find_run_to_change(runs_folder(ctx), name, whole_name=whole_name)
    return RunPaths(as_written(folder))


def split_names(
    ctx: Context, run: str | None, names: Sequence[str]
) -> tuple[str | None, list[str]]:
    """Split names into the run, named in full and first, and its evaluations."""
    if run is None and names and names[0] in known_runs(ctx):
        return names[0], list(names[1:])
    return run, list(names)


def load_readable(paths: RunPaths) -> RunState:
    """Return the state of a run; print a warning if its ledger is torn.

    Raises NotFound for an empty ledger.
    """
    loaded = load_run(paths.folder)
    if loaded.warning:
        warn(loaded.warning)
    require_run(paths, loaded.state)
    return loaded.state
