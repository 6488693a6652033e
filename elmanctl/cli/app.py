"""The Typer application: global options, and the commands as `--help` groups them."""

import logging
from collections.abc import Iterator, Mapping
from functools import cache
from importlib import import_module
from pathlib import Path
from typing import Annotated, Any

from typer import BadParameter, Context, Exit, Option, Typer
from typer.core import TyperGroup
from typer.main import get_command

from elmanctl import __version__
from elmanctl.cli.completion import one_of
from elmanctl.cli.context import Globals
from elmanctl.cli.output import configure, print_line, printable
from elmanctl.errors import NotFound
from elmanctl.folders import as_written, enter

_HELP = {"help_option_names": ["-h", "--help"]}

PANELS = {
    "Start": ["init", "doctor", "models", "params", "calc-dim", "data", "eval"],
    "Search": ["search", "resume", "set", "confirm", "cancel", "requeue"],
    "Inspect": ["status", "show", "explain", "best", "logs", "compare", "classify"],
    "Use": ["sample"],
    "Measure": ["bench", "replay"],
    "Maintain": ["disk", "clean", "ledger", "config", "completion"],
}

# The function of each command, or the `app` of a group.  Its module is imported when the command
# is run or listed, so that `status` does not pay for imports that only `search` needs.
_LOCATIONS = {
    **{name: f"{name}:{name}" for names in PANELS.values() for name in names},
    **{"models": "model:models", "params": "model:params", "calc-dim": "model:calc_dim"},
    **{"eval": "eval:evaluate", "logs": "show:logs", "set": "set:set_settings"},
    **{"data": "data:app", "bench": "bench:app", "ledger": "ledger:app"},
}

_COLORS = ("auto", "always", "never")


class _LazyCommands(Mapping[str, Any]):
    """The click commands by name, each loaded on first access."""

    def __getitem__(self, name: str) -> Any:
        return _load(_LOCATIONS[name], name)

    def __iter__(self) -> Iterator[str]:
        return iter(_LOCATIONS)

    def __len__(self) -> int:
        return len(_LOCATIONS)


@cache
def _load(location: str, name: str) -> Any:
    """Import the module of a command and return the click command."""
    module, _, attribute = location.partition(":")
    found = getattr(import_module(f"elmanctl.cli.{module}"), attribute)
    if isinstance(found, Typer):
        command = get_command(found)
    else:
        single = Typer(rich_markup_mode=None, add_completion=False)
        single.command(name, context_settings=_HELP)(found)
        command = get_command(single)
    command.name = name
    return command


class Commands(TyperGroup):
    """A group that loads its commands lazily and lists them under the headings of `PANELS`."""

    def __init__(self, *args: Any, **options: Any) -> None:
        super().__init__(*args, **options)
        self.commands: Any = _LazyCommands()

    def format_options(self, ctx: Any, formatter: Any) -> None:
        """Write the commands first and the options last."""
        for title, names in PANELS.items():
            with formatter.section(title):
                formatter.write_dl(
                    [(name, self.commands[name].get_short_help_str(80)) for name in names]
                )
        super().format_options(ctx, formatter)

    def format_commands(self, ctx: Any, formatter: Any) -> None:
        """Write nothing: `format_options` has listed the commands already."""


app = Typer(
    cls=Commands,
    rich_markup_mode=None,
    pretty_exceptions_enable=False,
    add_completion=False,
    no_args_is_help=True,
    context_settings=_HELP,
)


def _print_version(value: bool) -> None:
    if value:
        print_line(f"elmanctl {__version__}")
        raise Exit


class _EscapingFormatter(logging.Formatter):
    """Escapes control characters: log records name files that anybody may have created."""

    def format(self, record: logging.LogRecord) -> str:
        """Format a record as one line."""
        return printable(str(super().format(record)))


@app.callback()
def root(
    ctx: Context,
    directory: Annotated[
        Path | None, Option("-C", "--directory", help="Run as if started in PATH")
    ] = None,
    config: Annotated[
        Path | None, Option(help="Use this file instead of the discovered elman.toml")
    ] = None,
    color: Annotated[
        str,
        Option(help="auto, always or never", metavar="WHEN", autocompletion=one_of(_COLORS)),
    ] = "auto",
    quiet: Annotated[bool, Option("-q", "--quiet", help="Print only results and errors")] = False,
    verbose: Annotated[
        int, Option("-v", "--verbose", count=True, help="Log more; repeat for debug output")
    ] = 0,
    version: Annotated[
        bool,
        Option("--version", help="Print the version", callback=_print_version, is_eager=True),
    ] = False,
) -> None:
    """Search recurrent models with CMA-ES, one Slurm GPU job per evaluation"""
    if color not in _COLORS:
        raise BadParameter(f"{color} is not one of {', '.join(_COLORS)}")
    configure(color=color, quiet=quiet)
    level = (logging.WARNING, logging.INFO, logging.DEBUG)[min(verbose, 2)]
    handler = logging.StreamHandler()
    handler.setFormatter(_EscapingFormatter("%(levelname)s: %(message)s"))
    logging.basicConfig(level=level, handlers=[handler])
    if config is not None:
        config = as_written(config)
    if directory is not None:
        try:
            enter(directory)
        except OSError as exc:
            raise NotFound(f"no such folder: {directory}") from exc
    ctx.obj = Globals(config=config)
