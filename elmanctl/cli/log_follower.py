"""Reading a log as it grows, until its attempt is over by all that files tell."""

import time
from collections.abc import Iterator
from pathlib import Path

from elmanctl import clock
from elmanctl.cli.output import say
from elmanctl.cli.scheduler_status import is_driven
from elmanctl.ledger.files import open_regular
from elmanctl.ledger.records import Attempt
from elmanctl.ledger.run_state import RunState
from elmanctl.ledger.state import load_run
from elmanctl.run.paths import RunPaths
from elmanctl.run.progress import heartbeat_age_s, heartbeat_timeout_s, read_table

_FOLLOW_S = 0.5
_BLOCK_BYTES = 1 << 20

_SILENT_S = 60.0

# Before its first heartbeat a worker imports torch, from a slow disk maybe.
_STARTING_S = 300.0


class Follower:
    """Follows the log of one attempt."""

    def __init__(self, paths: RunPaths, evaluation: str, number: int, log: Path) -> None:
        self._paths = paths
        self._evaluation = evaluation
        self._number = number
        self._attempt = paths.attempt(evaluation, number)
        self._log = log
        self._ledger_size: int | None = None
        self._is_finished = False
        self._submission = ""
        self._beats_s = 0.0

    def read_on(self, start: int, *, follow: bool) -> Iterator[str]:
        """Yield what is in the log from byte `start`, and on as it grows until it is over."""
        offset = start
        while True:
            over = self._why_over() if follow else None
            if self._log.exists():
                with open_regular(self._log) as stream:
                    stream.seek(offset)
                    while data := stream.read(_BLOCK_BYTES):
                        offset += len(data)
                        yield data.decode(errors="replace")
            if over:
                say(over)
            if not follow or over is not None:
                return
            time.sleep(_FOLLOW_S)

    def _why_over(self) -> str | None:
        """Return None while more may come, otherwise what has to be said of the end, if anything.

        An attempt with a result, or with a verdict on record, needs no word.
        """
        self._read_ledger()
        if self._is_finished or read_table(self._attempt.result) is not None:
            return ""
        if is_driven(self._paths):
            # Its controller will say how it ended.
            return None
        if (self._paths.submission(self._submission) / "exit").exists():
            return self._words("its worker has ended without a result")
        age_s = heartbeat_age_s(self._attempt, time.time())
        if age_s is not None and age_s > max(_SILENT_S, heartbeat_timeout_s(self._beats_s)):
            return self._words(f"its last heartbeat is {clock.format_rough(age_s)} old")
        if age_s is None and self._log.exists():
            quiet_s = time.time() - self._log.stat().st_mtime
            if quiet_s > _STARTING_S:
                quiet = clock.format_rough(quiet_s)
                return self._words(f"its log is {quiet} old, and it never wrote a heartbeat")
        return None

    def _words(self, why: str) -> str:
        return (
            f"{self._evaluation} gives no sign of life and no controller is at work: {why}; "
            f"`elmanctl resume {self._paths.folder.name}` finds out how it ended"
        )

    def _read_ledger(self) -> None:
        """Read the ledger where it grew since the last time."""
        size = self._paths.ledger.stat().st_size
        if size == self._ledger_size:
            return
        self._ledger_size = size
        state = load_run(self._paths.folder).state
        self._beats_s = float(state.run["settings"]["train"]["heartbeat_s"])
        attempt = _attempt(state, self._evaluation, self._number)
        if attempt is None:
            # Taken back: its job never was.
            self._is_finished = True
            return
        self._is_finished = attempt.state.is_finished
        self._submission = attempt.submission


def _attempt(state: RunState, evaluation: str, number: int) -> Attempt | None:
    attempts = state.evaluations[evaluation].attempts
    return next((one for one in attempts if one.number == number), None)
