"""Reading what an attempt left behind: result, heartbeat, the end of its log."""

import os
import shutil
import time
from collections.abc import Mapping
from dataclasses import dataclass
from math import isfinite
from pathlib import Path
from typing import Any, BinaryIO

from elmanctl.clock import from_text
from elmanctl.jobs.executor import JobReport
from elmanctl.jobs.paths import AttemptPaths
from elmanctl.jobs.verdict import Log, Observation, needs_no_log
from elmanctl.ledger.files import open_regular, parse_object, read_small

# What a verdict needs of a log is at its end.
_TAIL_BYTES = 64 * 1024

# Of a longer log lines are counted from its last part: reading it all may take minutes.
_COUNTED_BYTES = 1 << 30
_BLOCK_BYTES = 1 << 20

# What workers write has a few kilobytes and two levels or three; it goes into the ledger.
_TABLE_BYTES = 256 * 1024
_DEEPEST = 20

# What a step's number cannot be.
_MOST_STEPS = 10**15

# Ten years: no worker lives longer, and no clock that says so is right.
_LONGEST_S = 10 * 365 * 86400.0


def observe(
    paths: AttemptPaths,
    log: Path,
    report: JobReport | None,
    *,
    root: Path,
    limit_s: float,
    stale_after_s: float | None = None,
    cancel_requested: bool = False,
    has_started: bool = False,
) -> Observation:
    """Return everything known of an attempt; files are named relative to `root`, the run.

    A heartbeat older than `stale_after_s` is no sign of life.  `has_started`: the scheduler has
    said that the job runs.
    """
    heartbeat = read_table(paths.heartbeat)
    traces = (paths.claim, paths.heartbeat, paths.metrics, paths.result, log)
    result = read_table(paths.result)
    return Observation(
        result=result,
        result_file=str(paths.result.relative_to(root)),
        report=report,
        log=None if needs_no_log(result) else read_log(log, root),
        log_path=str(log),
        is_in_sight=paths.spec.is_file(),
        left_trace=any(os.path.lexists(trace) for trace in traces),
        has_started=has_started,
        heartbeat=heartbeat,
        heartbeat_file=str(paths.heartbeat.relative_to(root)),
        heartbeat_age_s=heartbeat_age_s(paths, time.time()),
        stale_after_s=stale_after_s,
        cancel_requested=cancel_requested,
        elapsed_s=elapsed_s(heartbeat),
        limit_s=limit_s,
        run_folder=str(root),
        free_bytes=shutil.disk_usage(root).free,
    )


def read_table(path: Path) -> dict[str, Any] | None:
    """Return the JSON object of a file, None when there is none or it is not readable yet.

    What no worker of elmanctl writes is not readable: a pipe, more than 256 KiB, deep nesting.
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


def read_log(path: Path, root: Path) -> Log | None:
    """Return the end of a log with its true line numbers, named relative to the run's folder."""
    try:
        with open_regular(path) as stream:
            size_bytes = os.fstat(stream.fileno()).st_size
            skipped = max(0, size_bytes - _TAIL_BYTES)
            is_counted = size_bytes <= _COUNTED_BYTES
            first_line = 1 + (_count_lines(stream, skipped) if is_counted else 0)
            stream.seek(skipped)
            # It may grow meanwhile.
            text = stream.read(2 * _TAIL_BYTES).decode(errors="replace")
    except OSError:
        # None, or none that can be read: a verdict is reached without.
        return None
    name = str(path.relative_to(root)) if path.is_relative_to(root) else str(path)
    if not is_counted:
        name += f" (its last {_TAIL_BYTES // 1024} KiB)"
    # Not splitlines: it also parts lines where no editor counts one, e.g. at a form feed.
    return Log(file=name, lines=text.removesuffix("\n").split("\n"), first_line=first_line)


def _count_lines(stream: BinaryIO, end: int) -> int:
    """Count the lines that end among the first `end` bytes, without holding them all."""
    lines = 0
    while end > 0 and (block := stream.read(min(_BLOCK_BYTES, end))):
        lines += block.count(b"\n")
        end -= len(block)
    return lines


@dataclass(frozen=True, slots=True, kw_only=True)
class Progress:
    """How far a running worker said it was; what it did not say, or not in numbers, is None."""

    phase: str | None
    step: int | None
    loss: float | None
    elapsed_s: float | None
    age_s: float | None


def read_progress(paths: AttemptPaths) -> Progress | None:
    """Return how far an attempt is by its heartbeat, None without one that can be read."""
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


def elapsed_s(heartbeat: Mapping[str, Any] | None) -> float | None:
    """Return how long a worker lived, in seconds, None where it does not say.

    Its own count does not follow a clock that is set meanwhile; workers of version 0.1 have none.
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


def heartbeat_age_s(paths: AttemptPaths, now_s: float) -> float | None:
    """Return the seconds since the heartbeat file was last written, None without one."""
    try:
        return now_s - paths.heartbeat.stat().st_mtime
    except FileNotFoundError:
        return None
