"""The command line's tree: global options, and the commands in the order of their help."""

import logging
import os
from pathlib import Path
from typing import Annotated, Any

import typer
from typer.core import TyperGroup

from elmanctl import __version__
from elmanctl.cli import classify, data, disk, doctor, inspect, ledger, manage, model, search
from elmanctl.cli import requeue as again
from elmanctl.cli import status as look
from elmanctl.cli.context import Globals
from elmanctl.cli.output import configure, print_line, printable
from elmanctl.errors import NotFound

PANELS = {
    "Start": ["init", "doctor", "models", "params", "calc-dim", "data", "eval"],
    "Search": ["search", "resume", "cancel", "requeue"],
    "Look": ["status", "show", "logs", "classify"],
    "Keep": ["disk", "clean", "ledger", "config", "completion"],
}

_COLORS = ("auto", "always", "never")


class Commands(TyperGroup):
    """A group whose help lists its commands under the headings of `PANELS`."""

    def format_options(self, ctx: Any, formatter: Any) -> None:
        """Write the commands first and the options last."""
        for title, names in PANELS.items():
            with formatter.section(title):
                formatter.write_dl([(name, self._summary(ctx, name)) for name in names])
        super().format_options(ctx, formatter)

    def format_commands(self, ctx: Any, formatter: Any) -> None:
        """Nothing: `format_options` has written them."""

    def _summary(self, ctx: Any, name: str) -> str:
        command = self.get_command(ctx, name)
        assert command is not None, name
        return str(command.get_short_help_str(80))


app = typer.Typer(
    cls=Commands,
    rich_markup_mode=None,
    pretty_exceptions_enable=False,
    add_completion=False,
    no_args_is_help=True,
    context_settings={"help_option_names": ["-h", "--help"]},
)


def _print_version(value: bool) -> None:
    if value:
        print_line(f"elmanctl {__version__}")
        raise typer.Exit


class _Plain(logging.Formatter):
    """Shows control characters: a log names files that anybody may have made."""

    def format(self, record: logging.LogRecord) -> str:
        """Return the line of a record."""
        return printable(str(super().format(record)))


@app.callback()
def root(
    ctx: typer.Context,
    directory: Annotated[
        Path | None, typer.Option("-C", "--directory", help="Run as if started in PATH")
    ] = None,
    config: Annotated[
        Path | None, typer.Option(help="Use this file instead of the discovered elman.toml")
    ] = None,
    color: Annotated[str, typer.Option(help="auto, always or never", metavar="WHEN")] = "auto",
    quiet: Annotated[
        bool, typer.Option("-q", "--quiet", help="Print only results and errors")
    ] = False,
    verbose: Annotated[
        int, typer.Option("-v", "--verbose", count=True, help="Print more; repeat for debug")
    ] = 0,
    version: Annotated[
        bool,
        typer.Option("--version", help="Print the version", callback=_print_version, is_eager=True),
    ] = False,
) -> None:
    """Search recurrent models with CMA-ES, one Slurm GPU job per evaluation"""
    if color not in _COLORS:
        raise typer.BadParameter(f"{color} is not one of {', '.join(_COLORS)}")
    configure(color=color, quiet=quiet)
    level = (logging.WARNING, logging.INFO, logging.DEBUG)[min(verbose, 2)]
    handler = logging.StreamHandler()
    handler.setFormatter(_Plain("%(levelname)s: %(message)s"))
    logging.basicConfig(level=level, handlers=[handler])
    if config is not None:
        config = config.resolve()
    if directory is not None:
        try:
            os.chdir(directory)
        except OSError as exc:
            raise NotFound(f"no such folder: {directory}") from exc
    ctx.obj = Globals(config=config)


app.command("init")(manage.init)
app.command("doctor")(doctor.doctor)
app.command("models")(model.models)
app.command("params")(model.params)
app.command("calc-dim")(model.calc_dim)
app.add_typer(data.app, name="data")
app.command("eval")(model.evaluate)
app.command("search")(search.search)
app.command("resume")(search.resume)
app.command("cancel")(manage.cancel)
app.command("requeue")(again.requeue)
app.command("status")(look.status)
app.command("show")(inspect.show)
app.command("logs")(inspect.logs)
app.command("classify")(classify.classify)
app.command("disk")(disk.disk)
app.command("clean")(disk.clean)
app.add_typer(ledger.app, name="ledger")
app.command("config")(manage.config)
app.command("completion")(manage.completion)
