"""Process beside a worker that writes its metrics for TensorBoard and Weights & Biases.

It reads one JSON object a line from stdin, a step each, until that ends with the training or with
the worker.  On stdout it says, in one line each, which destination gets no more, and why.
"""

import json
import os
import queue
import signal
import sys
from collections.abc import Callable, Mapping
from pathlib import Path
from threading import Thread
from typing import Any, Protocol

from elmanctl.jobs.tensorboard_writer import TensorBoardWriter
from elmanctl.jobs.wandb_writer import WandbWriter
from elmanctl.run.paths import AttemptPaths
from elmanctl.run.spec import AttemptSpec

# So many steps wait for a destination that is slow, for example to log in.
MOST_WAITING = 100_000

_LONGEST_REASON = 200
_END = b""


class Writer(Protocol):
    """Receiver of the metrics of one attempt; it may raise anything."""

    def write(self, values: Mapping[str, Any]) -> None:
        """Write the numbers of one step."""

    def close(self) -> None:
        """Write what is left."""


class Destination:
    """A writer in a thread of its own, with the lines that wait for it.

    Its first failure is reported to `say`, and is its end.
    """

    def __init__(
        self, title: str, open_writer: Callable[[], Writer], say: Callable[[str], None]
    ) -> None:
        self._title = title
        self._open = open_writer
        self._say = say
        self._waiting: queue.Queue[bytes] = queue.Queue(MOST_WAITING)
        self._is_off = False
        self._thread = Thread(target=self._run, name=title, daemon=True)
        self._thread.start()

    def put(self, line: bytes) -> None:
        """Pass on a line without waiting."""
        if self._is_off:
            return
        try:
            self._waiting.put_nowait(line)
        except queue.Full:
            self._give_up(f"{MOST_WAITING} steps wait for it")

    def end(self) -> None:
        """Wait until all lines are written."""
        self.put(_END)
        if not self._is_off:
            self._thread.join()

    def _run(self) -> None:
        try:
            writer = self._open()
            for line in iter(self._waiting.get, _END):
                writer.write(json.loads(line))
            writer.close()
        except ModuleNotFoundError as exc:
            self._give_up(f"`{exc.name}` is not installed on {os.uname().nodename}")
        except (Exception, SystemExit) as exc:
            # Whatever it is: the libraries are other people's, and the training goes on.
            self._give_up(next(iter(str(exc).splitlines()), "") or type(exc).__name__)

    def _give_up(self, reason: str) -> None:
        if not self._is_off:
            self._is_off = True
            self._say(f"{self._title} gets no more metrics: {reason[:_LONGEST_REASON]}")


def main() -> None:
    """Write the metrics of an attempt; the arguments are its folder and `END_S` of the feed."""
    answers = os.dup(1)
    # What a library prints is no answer.
    os.dup2(os.open(os.devnull, os.O_WRONLY), 1)
    # tensorboardX imports it where it can: 2 s and 200 MB for what no event needs.
    sys.modules["torch"] = None  # type: ignore[assignment]

    def say(text: str) -> None:
        os.write(answers, f"{text}\n".encode())

    paths = AttemptPaths(Path(sys.argv[1]))
    spec = AttemptSpec.read(paths.spec)
    destinations = []
    if spec.metrics.tensorboard:
        destinations.append(
            Destination("TensorBoard", lambda: TensorBoardWriter(paths.folder), say)
        )
    if spec.metrics.wandb:
        destinations.append(Destination("Weights & Biases", lambda: WandbWriter(paths, spec), say))
    for line in sys.stdin.buffer:
        for destination in destinations:
            destination.put(line)
    # Its default action ends the process, whatever a library waits for.
    signal.alarm(int(sys.argv[2]))
    for destination in destinations:
        destination.end()


if __name__ == "__main__":
    main()
