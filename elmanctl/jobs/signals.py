"""Handlers of the signals that a scheduler sends to a worker."""

import os
import resource
import signal
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import FrameType

from elmanctl.jobs.heartbeat import Heartbeat


class Warned:
    """Whether the scheduler has announced the end since this was last cleared."""

    # A plain attribute without a lock: the handler may interrupt a reader.
    is_pending = False


@contextmanager
def signals_noted(
    heartbeat: Heartbeat, before_end: Callable[[], None] | None = None
) -> Iterator[Warned]:
    """Note SIGUSR2, SIGTERM and SIGXCPU in the heartbeat file; the last two end the process.

    SIGUSR2 announces an end whose reason only the scheduler knows, so it only sets the flag that is
    yielded.  submitit's own handlers would requeue the job, or raise inside the training; they are
    replaced, and restored on exit.  SIGINT is left alone.  Main thread only.  `before_end`, which
    may take no lock, is called before the process ends.
    """

    warned = Warned()

    def note(number: int, frame: FrameType | None) -> None:
        warned.is_pending = True
        _note(heartbeat, number)

    def note_and_end(number: int, frame: FrameType | None) -> None:
        _note(heartbeat, number)
        if before_end is not None:
            before_end()
        # A worker that used up its time must not leave gigabytes of core file.
        resource.setrlimit(resource.RLIMIT_CORE, (0, resource.getrlimit(resource.RLIMIT_CORE)[1]))
        signal.signal(number, signal.SIG_DFL)
        os.kill(os.getpid(), number)
        # Reached only where the default action is to ignore: process 1 of a container.
        os._exit(128 + number)

    handlers = {
        signal.SIGUSR2: note,
        signal.SIGTERM: note_and_end,
        signal.SIGXCPU: note_and_end,
    }
    earlier = {number: signal.signal(number, handler) for number, handler in handlers.items()}
    try:
        yield warned
    finally:
        for number, handler in earlier.items():
            signal.signal(number, handler)


def _note(heartbeat: Heartbeat, number: int) -> None:
    name = signal.Signals(number).name
    heartbeat.note_signal(name)
    # Logging could deadlock: the handler may have interrupted a write to the same stream.
    os.write(2, f"{name} received\n".encode())
