"""A controller in a process of its own, which kills itself with SIGKILL after an event.

usage: killed_controller.py FOLDER SEQ

Drives the run of FOLDER with scripted workers, whose jobs are kept beside it so that they outlive
the controller; SEQ 0 goes on to the end.
"""

import json
import os
import signal
import sys
from pathlib import Path

from elmanctl.ledger.payloads import Payload
from elmanctl.ledger.submissions import Submission
from elmanctl.search.session import Session
from tests.search.scripted import Run, World


class LastingWorld(World):
    """Jobs that outlive the process of their controller."""

    def __init__(self, folder: Path) -> None:
        super().__init__(folder)
        self._file = folder.with_name(f"{folder.name}-world.json")
        if self._file.exists():
            jobs, tasks = json.loads(self._file.read_text(encoding="utf-8"))
            self.jobs = jobs
            self.tasks = {job_id: (name, attempt) for job_id, (name, attempt) in tasks.items()}

    def accept(self, submission: Submission) -> str:
        job_id = super().accept(submission)
        self._file.write_text(json.dumps([self.jobs, self.tasks]), encoding="utf-8")
        return job_id


def kill_after(seq: int) -> None:
    """Wrap `Session.record` so that this process dies once an event has this number."""
    record = Session.record

    def recorded(self: Session, payload: Payload) -> None:
        record(self, payload)
        if self.state.seq >= seq:
            os.kill(os.getpid(), signal.SIGKILL)

    Session.record = recorded  # type: ignore[method-assign]


def main() -> None:
    """Do what the usage says."""
    run = Run(Path(sys.argv[1]))
    run.world = LastingWorld(run.folder)
    if int(sys.argv[2]):
        kill_after(int(sys.argv[2]))
    run.drive()


if __name__ == "__main__":
    main()
