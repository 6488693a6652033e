"""Errors of the operating system while a run is written, as errors that say how to go on."""

from collections.abc import Iterator
from contextlib import contextmanager

from elmanctl.errors import ElmanError, EnvironmentNotReady, SearchPaused, describe_os_error
from elmanctl.ledger.reserve import full_disk


@contextmanager
def explained(run: str) -> Iterator[None]:
    """Raise SearchPaused for a full disk, EnvironmentNotReady for any other OSError."""
    try:
        yield
    except SearchPaused:
        raise
    except (OSError, ElmanError) as exc:
        full = full_disk(exc)
        if full is not None:
            raise SearchPaused(
                f"the disk is full: {describe_os_error(full)}; nothing recorded is lost",
                hint=f"make room, e.g. with `elmanctl clean {run}`, then `elmanctl resume {run}`",
            ) from exc
        if isinstance(exc, ElmanError):
            raise
        raise EnvironmentNotReady(
            f"the run cannot be written: {describe_os_error(exc)}",
            hint=f"fix the cause, then `elmanctl resume {run}`",
        ) from exc
