"""Heartbeat of a worker: a small file that a thread rewrites every few seconds."""

import contextlib
import json
import logging
import math
import os
import queue
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from elmanctl import clock
from elmanctl.jobs.claim import node_name
from elmanctl.processes import start_ticks

logger = logging.getLogger(__name__)

# A file system may fail for a moment; after so many failures in a row `check` raises.
FAILURES_BEFORE_ERROR = 3
_SIGNAL_WAIT_S = 2.0


class Heartbeat:
    """Writes `path` at once, every `interval_s` seconds, and a last time on exit.

    Only the thread writes; the main loop and signal handlers replace values and request a write.  A
    failed write never ends the thread: `check` raises it in the main loop.
    """

    def __init__(self, path: Path, *, interval_s: float, job_id: str, restart: int) -> None:
        self._path = path
        # Unpredictable, like all temporary names.
        self._temporary = path.with_name(f".{path.name}.{os.urandom(8).hex()}.tmp")
        self._interval_s = interval_s
        self._fixed = {
            "version": 1,
            "host": node_name(),
            "pid": os.getpid(),
            "pid_start": start_ticks(os.getpid()),
            "job_id": job_id,
            "restart": restart,
            "started_at": clock.to_text(clock.now()),
        }
        self._began_s = time.monotonic()
        self._phase = "starting"
        self._progress: dict[str, float | int | None] = {"step": 0, "loss": None, "tokens": 0}
        self._signals: tuple[dict[str, str], ...] = ()
        self._checkpoint: dict[str, Any] | None = None
        self._validation: dict[str, Any] | None = None
        self._curve: tuple[float | None, ...] = ()
        self._lost_rank: dict[str, Any] | None = None
        self._failures = 0
        self._error: OSError | None = None
        # SimpleQueue.put is reentrant: a signal handler may interrupt another put.
        self._requests: queue.SimpleQueue[bool] = queue.SimpleQueue()
        self._signals_written = 0
        self._is_loss_written = False
        self._thread = threading.Thread(target=self._run, name="heartbeat", daemon=True)

    def __enter__(self) -> "Heartbeat":
        self._write()
        self._thread.start()
        return self

    def __exit__(self, *error: object) -> None:
        self._requests.put(False)
        self._thread.join()
        self._write()

    def enter_phase(self, phase: str) -> None:
        """Record the phase of the worker: starting, warmup, training, finishing, done."""
        if phase != self._phase:
            self._phase = phase
            self._requests.put(True)

    def progress(self, *, step: int, loss: float | None, tokens: int) -> None:
        """Record the progress of the training, for the next heartbeat."""
        self._progress = {"step": step, "loss": loss, "tokens": tokens}

    def note_checkpoint(self, step: int, error: str | None) -> None:
        """Record the last checkpoint, or why it could not be written.

        It clears failed heartbeats: a checkpoint that found no room has freed it again.
        """
        self._checkpoint = {"step": step, "error": error, "at": clock.to_text(clock.now())}
        self._failures = 0
        self._requests.put(True)

    def note_validation(self, step: int, loss: float) -> None:
        """Record the last held-out loss, for the next heartbeat."""
        self._validation = {"step": step, "loss": loss} if math.isfinite(loss) else None

    def note_curve(self, losses: tuple[float | None, ...]) -> None:
        """Record the losses at the looks so far, for the next heartbeat."""
        self._curve = losses

    def note_signal(self, name: str) -> None:
        """Record a signal and wait, at most two seconds, until it is in the file.

        It may be called from a signal handler.
        """
        self._signals = (*self._signals, {"name": name, "at": clock.to_text(clock.now())})
        expected = len(self._signals)
        self._write_soon(lambda: self._signals_written >= expected)

    def note_lost_rank(self, *, rank: int, count: int, node: str, how: str) -> None:
        """Record that another rank ended without a word, and wait as long until it is written."""
        at = clock.to_text(clock.now())
        self._lost_rank = {"rank": rank, "count": count, "node": node, "how": how, "at": at}
        self._write_soon(lambda: self._is_loss_written)

    def _write_soon(self, is_written: Callable[[], bool]) -> None:
        self._requests.put(True)
        deadline = time.monotonic() + _SIGNAL_WAIT_S
        while not is_written() and time.monotonic() < deadline:
            time.sleep(0.005)

    def check(self) -> None:
        """Raise the OSError of the last write when several heartbeats in a row have failed."""
        if self._failures >= FAILURES_BEFORE_ERROR and self._error is not None:
            raise self._error

    def _run(self) -> None:
        is_running = True
        while is_running:
            with contextlib.suppress(queue.Empty):
                is_running = self._requests.get(timeout=self._interval_s)
            self._write()

    def _write(self) -> None:
        signals, lost_rank = self._signals, self._lost_rank
        text = json.dumps(self._content(signals))
        temporary = self._temporary
        try:
            # No fsync: a heartbeat lost in a crash does not matter, and the disk may be busy.
            temporary.write_text(text, encoding="utf-8")
            temporary.replace(self._path)
        except OSError as exc:
            self._failures += 1
            self._error = exc
            logger.warning("heartbeat not written: %s", exc)
            _remove(temporary)
            return
        self._failures = 0
        self._signals_written = len(signals)
        self._is_loss_written = lost_rank is not None

    def _content(self, signals: tuple[dict[str, str], ...]) -> dict[str, Any]:
        return {
            **self._fixed,
            "phase": self._phase,
            **self._progress,
            "at": clock.to_text(clock.now()),
            "elapsed_s": round(time.monotonic() - self._began_s, 3),
            "signals": list(signals),
            **({"checkpoint": self._checkpoint} if self._checkpoint else {}),
            **({"validation": self._validation} if self._validation else {}),
            **({"curve": self._curve} if self._curve else {}),
            **({"lost_rank": self._lost_rank} if self._lost_rank else {}),
        }


def _remove(path: Path) -> None:
    try:
        path.unlink(missing_ok=True)
    except OSError as exc:
        logger.warning("temporary file left behind: %s", exc)
