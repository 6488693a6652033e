"""The log follower: prints a log as it grows, until the files show that its attempt is over."""

import time
from collections.abc import Iterator
from pathlib import Path

from elmanctl import clock
from elmanctl.cli.output import say
from elmanctl.cli.scheduler_status import has_controller
from elmanctl.ledger.files import open_regular
from elmanctl.ledger.state import load_run
from elmanctl.run.paths import RunPaths
from elmanctl.run.progress import heartbeat_age_s, heartbeat_timeout_s, read_table

_FOLLOW_S = 0.5
_BLOCK_BYTES = 1 << 20

# The shortest heartbeat timeout: a shared file system may show a heartbeat late.
_MIN_TIMEOUT_S = 60.0

# Before its first heartbeat a worker imports torch, possibly from a slow disk.
_STARTUP_TIMEOUT_S = 300.0


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
        self._heartbeat_s = 0.0

    def read(self, start: int, *, follow: bool) -> Iterator[str]:
        """Yield the log from byte `start`; with `follow` also what is appended until the end."""
        offset = start
        while True:
            end = self._end() if follow else None
            if self._log.exists():
                with open_regular(self._log) as stream:
                    stream.seek(offset)
                    while data := stream.read(_BLOCK_BYTES):
                        offset += len(data)
                        yield data.decode(errors="replace")
            if end:
                say(end)
            if not follow or end is not None:
                return
            time.sleep(_FOLLOW_S)

    def _end(self) -> str | None:
        """Return None while more may follow, otherwise a message on the end of the attempt.

        It is empty for an attempt with a result or a recorded verdict.
        """
        self._read_ledger()
        if self._is_finished or read_table(self._attempt.result) is not None:
            return ""
        if has_controller(self._paths):
            # The controller will record how it ended.
            return None
        if (self._paths.submission(self._submission) / "exit").exists():
            return self._message("its worker exited without a result")
        age_s = heartbeat_age_s(self._attempt, time.time())
        if age_s is not None and age_s > max(
            _MIN_TIMEOUT_S, heartbeat_timeout_s(self._heartbeat_s)
        ):
            return self._message(f"its last heartbeat is {clock.format_rough(age_s)} old")
        if age_s is None and self._log.exists():
            quiet_s = time.time() - self._log.stat().st_mtime
            if quiet_s > _STARTUP_TIMEOUT_S:
                quiet = clock.format_rough(quiet_s)
                return self._message(f"its log is {quiet} old, and it never wrote a heartbeat")
        return None

    def _message(self, why: str) -> str:
        return (
            f"{self._evaluation} appears dead and no controller is running: {why}; "
            f"`elmanctl resume {self._paths.folder.name}` records how it ended"
        )

    def _read_ledger(self) -> None:
        """Read the ledger if it grew since the last time."""
        size = self._paths.ledger.stat().st_size
        if size == self._ledger_size:
            return
        self._ledger_size = size
        state = load_run(self._paths.folder).state
        self._heartbeat_s = float(state.run["settings"]["train"]["heartbeat_s"])
        attempts = state.evaluations[self._evaluation].attempts
        attempt = next((one for one in attempts if one.number == self._number), None)
        if attempt is None:
            # Withdrawn: its job never existed.
            self._is_finished = True
            return
        self._is_finished = attempt.state.is_finished
        self._submission = attempt.submission
