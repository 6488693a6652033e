"""Feed of metrics: a worker's side of the process that writes them for TensorBoard and W&B.

In a process of their own, libraries that are slow, hang or fail cost the training nothing.
"""

import contextlib
import fcntl
import json
import logging
import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path
from threading import Thread
from typing import Any

import elmanctl
from elmanctl.jobs.metrics import StepRecord
from elmanctl.run.paths import AttemptPaths
from elmanctl.run.spec import AttemptSpec

logger = logging.getLogger(__name__)

# For the steps that are made while the process starts.
_PIPE_BYTES = 1 << 20

# What is not written so long after the end of the training is given up.
END_S = 30

# Slurm ends all of a job with its worker, which waits so long for the process.
_LAST_S = 2.0

# The process ends itself by then, unless even that hangs.
_GRACE_S = 5

# They are meant for the worker, whose end is the end of the feed.
_OF_THE_WORKER = (
    *(signal.SIGINT, signal.SIGTERM, signal.SIGHUP, signal.SIGQUIT),
    *(signal.SIGUSR1, signal.SIGUSR2),
)


def open_feed(paths: AttemptPaths, spec: AttemptSpec) -> "MetricsFeed | None":
    """Start the feed that a spec asks for; None if it asks for none, or no process can start."""
    if not spec.metrics.asked:
        return None
    try:
        return MetricsFeed(paths.folder)
    except OSError as exc:
        logger.warning("only metrics.jsonl gets the metrics: %s", exc.strerror)
        return None


class MetricsFeed:
    """Passes each step to the metrics process, and what that says to the log.

    Nothing waits but `close`, and nothing raises: a failure is one warning.
    """

    def __init__(self, folder: Path) -> None:
        paths = (str(Path(elmanctl.__file__).parents[1]), os.environ.get("PYTHONPATH"))
        with _blocked(_OF_THE_WORKER):
            self._process = subprocess.Popen(
                [
                    sys.executable,
                    "-P",
                    "-m",
                    "elmanctl.jobs.metrics_process",
                    str(folder),
                    str(END_S),
                ],
                bufsize=0,
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=subprocess.DEVNULL,
                env={**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, paths))},
                start_new_session=True,
            )
        assert self._process.stdin is not None
        self._pipe = self._process.stdin
        self._has_complained = False
        os.set_blocking(self._pipe.fileno(), False)
        with contextlib.suppress(OSError):
            # A user may have no more such memory left; the pipe is smaller then.
            fcntl.fcntl(self._pipe, fcntl.F_SETPIPE_SZ, _PIPE_BYTES)
        self._relay = Thread(target=self._relay_answers, name="metrics feed", daemon=True)
        self._relay.start()

    def step(self, record: StepRecord) -> None:
        """Pass on a step."""
        self._send({name: value for name, value in asdict(record).items() if value is not None})

    def validation(self, step: int, loss: float) -> None:
        """Pass on the held-out loss after a step."""
        self._send({"step": step, "val_loss": loss})

    def end_soon(self) -> None:
        """Let the process write what it has, for two seconds; for the handler of a signal."""
        self._pipe.close()
        self._wait(_LAST_S)

    def close(self) -> None:
        """Wait until all is written, for half a minute at most."""
        self._pipe.close()
        try:
            code = self._wait(END_S + _GRACE_S)
        finally:
            # Nothing if it has ended; else it hangs, or the user has interrupted the wait.
            self._process.kill()
        self._wait(_GRACE_S)
        self._relay.join(_GRACE_S)
        if code is None or code == -signal.SIGALRM:
            self._complain(f"the last metrics were not written within {END_S} s")
        elif code:
            self._complain(f"the process that writes metrics ended with exit code {code}")

    def _send(self, values: dict[str, Any]) -> None:
        if self._pipe.closed:
            return
        # A line is shorter than what a pipe takes whole or not at all, see pipe(7).
        line = json.dumps(values).encode() + b"\n"
        try:
            os.write(self._pipe.fileno(), line)
        except BlockingIOError:
            self._pipe.close()
            self._complain("only metrics.jsonl gets more metrics: no process takes them")
        except BrokenPipeError:
            self._pipe.close()
            # It is ending: the pipe is closed before there is an exit code.
            code = self._wait(_GRACE_S)
            self._complain(f"the process that writes metrics ended with exit code {code}")

    def _wait(self, timeout_s: float) -> int | None:
        """Return the exit code of the process, None if it has not ended within a time."""
        with contextlib.suppress(subprocess.TimeoutExpired):
            return self._process.wait(timeout_s)
        return None

    def _complain(self, text: str) -> None:
        if not self._has_complained:
            self._has_complained = True
            logger.warning("%s", text)

    def _relay_answers(self) -> None:
        assert self._process.stdout is not None
        with self._process.stdout as answers:
            for line in answers:
                logger.warning("%s", line.decode(errors="replace").rstrip())


@contextmanager
def _blocked(signals: tuple[signal.Signals, ...]) -> Iterator[None]:
    """Block signals for this thread, and for good in the processes that it starts meanwhile."""
    earlier = signal.pthread_sigmask(signal.SIG_BLOCK, signals)
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, earlier)
