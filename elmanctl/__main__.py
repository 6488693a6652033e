"""The program: run the command line, turn an error into one message and an exit code."""

import logging
import os
import sys
from typing import Any

import typer

from elmanctl.constants import COMPLETION_VARIABLE, PROGRAM
from elmanctl.errors import ElmanError, UsageError

logger = logging.getLogger(__name__)

INTERRUPTED = 130

# Typer exports only its children.
TYPER_USAGE_ERROR: Any = typer.BadParameter.__base__


def main() -> None:
    """Run `elmanctl` with the arguments of this process, and exit."""
    from elmanctl.cli.app import app
    from elmanctl.cli.output import print_error

    if COMPLETION_VARIABLE in os.environ:
        # Typer knows the shells only after this, since `completion` is a command of our own.
        from typer._completion_classes import completion_init

        completion_init()
    try:
        code = app(prog_name=PROGRAM, standalone_mode=False)
        sys.exit(code if isinstance(code, int) else 0)
    except ElmanError as exc:
        logger.debug("where it happened", exc_info=True)
        print_error(exc)
        sys.exit(exc.exit_code)
    except TYPER_USAGE_ERROR as exc:
        _print_usage_error(exc)
        sys.exit(UsageError.exit_code)
    except typer.Abort:
        sys.exit(INTERRUPTED)
    except Exception as exc:
        logger.debug("where it happened", exc_info=True)
        internal = ElmanError(
            f"internal error: {type(exc).__name__}: {exc}",
            hint="repeat with `elmanctl -vv ...` for the traceback, and report it",
        )
        print_error(internal)
        sys.exit(1)


def _print_usage_error(error: Any) -> None:
    """Say in our own words what Typer refuses; a group without a command shows its help."""
    from elmanctl.cli.output import print_error, say

    message = error.format_message().rstrip(".")
    if message.startswith("Usage:"):
        say(message)
        return
    command = error.ctx.command_path if error.ctx else PROGRAM
    print_error(UsageError(message, hint=f"see `{command} -h`"))


if __name__ == "__main__":
    main()
