"""The program: runs the command line, and turns errors into one message and an exit code."""

import contextlib
import logging
import os
import select
import signal
import sys
from typing import Any

from elmanctl.constants import COMPLETION_VARIABLE, PROGRAM
from elmanctl.errors import ElmanError, EnvironmentNotReady, UsageError, describe_os_error

logger = logging.getLogger(__name__)

INTERRUPTED = 130


def main() -> None:
    """Run `elmanctl` with the arguments of this process, and exit."""
    _open_closed_streams()
    # Some launchers ignore it: exit codes of commands would be lost, and count as successes.
    signal.signal(signal.SIGCHLD, signal.SIG_DFL)
    with contextlib.suppress(AttributeError):
        # File names need not be UTF-8; in JSON they then read back to the same name.
        sys.stdout.reconfigure(errors="backslashreplace")  # type: ignore[union-attr]
    try:
        code = _run()
    except KeyboardInterrupt:
        # While modules are imported nothing else handles it.
        code = INTERRUPTED
    with contextlib.suppress(AttributeError, BrokenPipeError):
        # In a test stdout may not be a file.
        sys.stdout.flush()
    if _reader_is_gone():
        # Python flushes once more as it exits, and would report an error.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
    sys.exit(code)


def _open_closed_streams() -> None:
    """Open streams that `>&-` closed: the next opened file would become stdout otherwise.

    Python sets such a stream to None, and prints on stdout what is meant for a closed stderr.
    """
    for number, name in enumerate(("stdin", "stdout", "stderr")):
        if getattr(sys, name) is None:
            with contextlib.suppress(OSError):
                os.fstat(number)
                continue
            # `open` returns the lowest free descriptor, which is this one.
            descriptor = os.open(os.devnull, os.O_RDWR)
            setattr(sys, name, os.fdopen(descriptor, "w" if number else "r", encoding="utf-8"))


def _run() -> int:
    """Run the command line and return its exit code."""
    import typer

    from elmanctl.cli.app import app
    from elmanctl.cli.output import print_error

    # Typer exports only its subclasses.
    usage_error: Any = typer.BadParameter.__base__

    if COMPLETION_VARIABLE in os.environ:
        # Registers the shells with Typer, whose own completion commands are off.
        from typer._completion_classes import completion_init

        from elmanctl.cli.completion import join_options

        completion_init()
        join_options(os.environ)
    try:
        code = app(prog_name=PROGRAM, standalone_mode=False)
        return code if isinstance(code, int) else 0
    except ElmanError as exc:
        logger.debug("traceback", exc_info=True)
        print_error(exc)
        return exc.exit_code
    except usage_error as exc:
        _print_usage_error(exc)
        return UsageError.exit_code
    except typer.Abort:
        return INTERRUPTED
    except SystemExit as exc:
        # Typer and rich exit so when the reader has gone, as in `elmanctl status | head -1`.
        return 0 if _reader_is_gone() or not isinstance(exc.code, int) else exc.code
    except OSError as exc:
        logger.debug("traceback", exc_info=True)
        # By its file: the fault is the machine's, and rarely ours.
        hint = "`elmanctl -vv ...` shows the traceback"
        print_error(EnvironmentNotReady(describe_os_error(exc), hint=hint))
        return EnvironmentNotReady.exit_code
    except Exception as exc:
        logger.debug("traceback", exc_info=True)
        hint = "repeat with `elmanctl -vv ...` for the traceback, and report it"
        print_error(ElmanError(f"internal error: {type(exc).__name__}: {exc}", hint=hint))
        return 1


def _reader_is_gone() -> bool:
    """Whether stdout is a pipe without a reader."""
    try:
        descriptor = sys.stdout.fileno()
    except (AttributeError, OSError, ValueError):
        return False
    poll = select.poll()
    poll.register(descriptor, 0)
    return any(event & select.POLLERR for _, event in poll.poll(0))


def _print_usage_error(error: Any) -> None:
    """Print a usage error of Typer in our format; a group without a command shows its help."""
    from elmanctl.cli.output import print_error, say

    message = error.format_message().rstrip(".")
    if message.startswith("Usage:"):
        say(message)
        return
    command = error.ctx.command_path if error.ctx else PROGRAM
    print_error(UsageError(message, hint=f"see `{command} -h`"))


if __name__ == "__main__":
    main()
