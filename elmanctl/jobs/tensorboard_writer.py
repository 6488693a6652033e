"""TensorBoard writer: the metrics of an attempt as an event file in its folder."""

import os
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

FLUSH_INTERVAL_S = 10.0


class TensorBoardWriter:
    """Writes an event file; tensorboardX is imported here.

    The classes below `SummaryWriter` are used, since that one hands events to a thread whose errors
    it swallows.
    """

    def __init__(self, folder: Path) -> None:
        from tensorboardX.event_file_writer import EventsWriter

        # Two starts of a job may be of the same second.
        self._file = EventsWriter(str(folder / "events"), f".{os.getpid()}")
        self._has_begun = False
        self._flushed_at_s = float("-inf")

    def write(self, values: Mapping[str, Any]) -> None:
        """Write the numbers of one step; raises OSError, for example on a full disk."""
        from tensorboardX.proto.event_pb2 import Event, SessionLog
        from tensorboardX.proto.summary_pb2 import Summary

        step = values["step"]
        if not self._has_begun:
            # What an earlier start of the job wrote from here on is not shown.
            log = SessionLog(status=SessionLog.START)
            self._file.write_event(Event(wall_time=time.time(), step=step, session_log=log))
            self._has_begun = True
        numbers = [
            Summary.Value(tag=name, simple_value=value)
            for name, value in values.items()
            if name != "step"
        ]
        event = Event(wall_time=time.time(), step=step, summary=Summary(value=numbers))
        self._file.write_event(event)
        if time.monotonic() - self._flushed_at_s >= FLUSH_INTERVAL_S:
            self._file.flush()
            self._flushed_at_s = time.monotonic()

    def close(self) -> None:
        """Write what is left."""
        self._file.close()
