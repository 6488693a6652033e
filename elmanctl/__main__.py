"""The program: run the command line, turn an error into one message and an exit code."""

import logging
import os
import sys

from elmanctl.constants import COMPLETION_VARIABLE, PROGRAM
from elmanctl.errors import ElmanError

logger = logging.getLogger(__name__)

INTERRUPTED = 130


def main() -> None:
    """Run `elmanctl` with the arguments of this process, and exit."""
    from elmanctl.cli.app import app
    from elmanctl.cli.output import print_error

    if COMPLETION_VARIABLE in os.environ:
        # Typer knows the shells only after this, since `completion` is a command of our own.
        from typer._completion_classes import completion_init

        completion_init()
    try:
        app(prog_name=PROGRAM)
    except ElmanError as exc:
        logger.debug("where it happened", exc_info=True)
        print_error(exc)
        sys.exit(exc.exit_code)
    except BrokenPipeError:
        # The reader of our output went away, e.g. `elmanctl status | head -1`.
        sys.stderr.close()
        sys.exit(0)
    except KeyboardInterrupt:
        sys.exit(INTERRUPTED)
    except Exception as exc:
        logger.debug("where it happened", exc_info=True)
        internal = ElmanError(
            f"internal error: {type(exc).__name__}: {exc}",
            hint="repeat with `elmanctl -vv ...` for the traceback, and report it",
        )
        print_error(internal)
        sys.exit(1)


if __name__ == "__main__":
    main()
