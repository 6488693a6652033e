"""Signal handling of a foreground search: Ctrl-C stops it gracefully, a second one at once."""

import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType

from elmanctl.cli.output import say


@contextmanager
def interruptible(run: str) -> Iterator[threading.Event]:
    """Turn the first SIGINT, SIGTERM or SIGHUP into an event; the second exits immediately.

    The loop checks the event between two steps, so that no ledger line is torn.
    """
    stop = threading.Event()

    def handle(number: int, frame: FrameType | None) -> None:
        if stop.is_set():
            say(f"\nexited immediately; nothing is lost, continue with `elmanctl resume {run}`")
            raise KeyboardInterrupt
        stop.set()
        if number == signal.SIGINT:
            say("\nstopping; jobs are left running (Ctrl-C again exits immediately)")

    numbers = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
    # Ignored signals stay ignored: `nohup` is meant to outlive the terminal.
    handled = [number for number in numbers if signal.getsignal(number) is not signal.SIG_IGN]
    before = {number: signal.signal(number, handle) for number in handled}
    try:
        yield stop
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
