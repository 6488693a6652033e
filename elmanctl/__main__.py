"""The program: run the command line, turn an error into one message and an exit code."""

import logging
import sys

from elmanctl.errors import ElmanError

logger = logging.getLogger(__name__)

INTERRUPTED = 130


def main() -> None:
    """Run `elmanctl` with the arguments of this process, and exit."""
    from elmanctl.cli.app import app
    from elmanctl.cli.output import print_error

    try:
        app()
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
