"""Signals of a foreground search: the first stops it between two steps, the second at once."""

import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType

from elmanctl.cli.output import say


@contextmanager
def interruptible(run: str) -> Iterator[threading.Event]:
    """Turn the first Ctrl-C, SIGTERM or SIGHUP into an event; the second leaves at once.

    The loop stops between two steps, so that no ledger line is cut by its own user.
    """
    stop = threading.Event()

    def handle(number: int, frame: FrameType | None) -> None:
        if stop.is_set():
            say(f"\nleft at once; nothing is lost: `elmanctl resume {run}` goes on")
            raise KeyboardInterrupt
        stop.set()
        if number == signal.SIGINT:
            say("\nstopping; jobs are left running (Ctrl-C again leaves at once)")

    numbers = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
    # What is ignored stays ignored: `nohup` is meant to outlive the terminal.
    heard = [number for number in numbers if signal.getsignal(number) is not signal.SIG_IGN]
    before = {number: signal.signal(number, handle) for number in heard}
    try:
        yield stop
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
