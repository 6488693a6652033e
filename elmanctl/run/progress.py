"""Progress of a worker, from the JSON tables that it writes."""

import time
from collections.abc import Mapping
from dataclasses import dataclass
from math import isfinite
from pathlib import Path
from typing import Any

from elmanctl.clock import from_text
from elmanctl.constants import LOOKS
from elmanctl.ledger.files import parse_object, read_small
from elmanctl.run.paths import AttemptPaths

# Tables of workers have a few kilobytes and two or three levels; they go into the ledger.
_TABLE_BYTES = 256 * 1024
_DEEPEST = 20

# No step has such a number.
_MOST_STEPS = 10**15

# A worker counts as dead after so many missed heartbeats.
_TIMEOUT_INTERVALS = 4

# Ten years: no worker lives longer, and no clock that says so is right.
_LONGEST_S = 10 * 365 * 86400.0


def read_table(path: Path) -> dict[str, Any] | None:
    """Return the JSON object in a file, None if there is none or it is not readable yet.

    A pipe, a table of more than 256 KiB and deep nesting count as unreadable: no worker writes
    them.
    """
    try:
        table = parse_object(read_small(path, _TABLE_BYTES))
    except (OSError, ValueError):
        return None
    return None if _is_deep(table) else table


def _is_deep(table: Mapping[str, Any]) -> bool:
    level: list[Any] = [table]
    for _ in range(_DEEPEST):
        level = [
            inner
            for item in level
            if isinstance(item, dict | list)
            for inner in (item.values() if isinstance(item, dict) else item)
        ]
        if not level:
            return False
    return True


@dataclass(frozen=True, slots=True, kw_only=True)
class Progress:
    """The progress of a running worker; a value that is missing or no number is None."""

    phase: str | None
    step: int | None
    loss: float | None
    elapsed_s: float | None
    age_s: float | None


def read_progress(paths: AttemptPaths) -> Progress | None:
    """Return the progress of an attempt by its heartbeat, None without a readable one."""
    beat = read_table(paths.heartbeat)
    if beat is None:
        return None
    phase, step, loss = beat.get("phase"), beat.get("step"), beat.get("loss")
    age_s = heartbeat_age_s(paths, time.time())
    return Progress(
        phase=phase if isinstance(phase, str) else None,
        step=step if type(step) is int and 0 <= step < _MOST_STEPS else None,
        loss=loss if isinstance(loss, float) and isfinite(loss) else None,
        elapsed_s=elapsed_s(beat),
        age_s=None if age_s is None else round(max(0.0, age_s), 3),
    )


def read_curve(value: object) -> tuple[float | None, ...]:
    """Return the losses at the looks of a training, as a heartbeat or a result has them.

    Empty for anything but a list of so many numbers and gaps.
    """
    if not isinstance(value, list | tuple) or len(value) > LOOKS:
        return ()
    if not all(each is None or (type(each) in (int, float) and isfinite(each)) for each in value):
        return ()
    return tuple(None if each is None else float(each) for each in value)


def elapsed_s(heartbeat: Mapping[str, Any] | None) -> float | None:
    """Return how long a worker has lived, in seconds, None if it does not say.

    Its own count is immune to changes of the clock; workers of version 0.1 have none.
    """
    if heartbeat is None:
        return None
    counted = heartbeat.get("elapsed_s")
    if isinstance(counted, float | int) and 0 <= counted <= _LONGEST_S:
        return round(float(counted), 3)
    try:
        began, last = from_text(heartbeat["started_at"]), from_text(heartbeat["at"])
        passed_s = (last - began).total_seconds()
    except (KeyError, TypeError, ValueError):
        return None
    return round(passed_s, 3) if 0 <= passed_s <= _LONGEST_S else None


def heartbeat_timeout_s(interval_s: float) -> float:
    """Return the age from which a heartbeat is stale, for workers that write one per interval.

    A shared file system may show a heartbeat late.
    """
    return _TIMEOUT_INTERVALS * interval_s


def heartbeat_age_s(paths: AttemptPaths, now_s: float) -> float | None:
    """Return the seconds since the heartbeat file was last written, None without one."""
    try:
        return now_s - paths.heartbeat.stat().st_mtime
    except FileNotFoundError:
        return None
