"""Runs elmanctl and kills it with SIGKILL just before or after its Nth ledger event of a kind.

usage: killed_at.py (before|after) KIND N ARGUMENTS...
"""

import os
import signal
import sys

from elmanctl.__main__ import main
from elmanctl.ledger.payloads import Payload
from elmanctl.search.session import Session


def kill_at(moment: str, kind: str, count: int) -> None:
    """Wrap `Session.record` so that this process dies at the chosen instant."""
    record = Session.record
    seen = 0

    def recorded(self: Session, payload: Payload) -> None:
        nonlocal seen
        is_one = payload.event_kind() == kind
        seen += is_one
        now = is_one and seen == count
        if now and moment == "before":
            os.kill(os.getpid(), signal.SIGKILL)
        record(self, payload)
        if now:
            os.kill(os.getpid(), signal.SIGKILL)

    Session.record = recorded  # type: ignore[method-assign]


if __name__ == "__main__":
    kill_at(sys.argv[1], sys.argv[2], int(sys.argv[3]))
    sys.argv = ["elmanctl", *sys.argv[4:]]
    main()
