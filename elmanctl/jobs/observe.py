"""Reading what an attempt left behind: result, heartbeat, the end of its log."""

import shutil
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from elmanctl.clock import from_text
from elmanctl.jobs.executor import JobReport
from elmanctl.jobs.paths import AttemptPaths
from elmanctl.jobs.verdict import Log, Observation
from elmanctl.ledger.files import parse_object

# What a verdict needs of a log is at its end.
_TAIL_BYTES = 64 * 1024


def observe(
    paths: AttemptPaths,
    log: Path,
    report: JobReport | None,
    *,
    root: Path,
    limit_s: float,
    stale_after_s: float | None = None,
    cancel_requested: bool = False,
) -> Observation:
    """Return everything known of an attempt; files are named relative to `root`, the run.

    A heartbeat older than `stale_after_s` is no sign of life.
    """
    heartbeat = read_table(paths.heartbeat)
    return Observation(
        result=read_table(paths.result),
        result_file=str(paths.result.relative_to(root)),
        report=report,
        log=read_log(log, root),
        heartbeat=heartbeat,
        heartbeat_file=str(paths.heartbeat.relative_to(root)),
        heartbeat_age_s=heartbeat_age_s(paths, time.time()),
        stale_after_s=stale_after_s,
        cancel_requested=cancel_requested,
        elapsed_s=elapsed_s(heartbeat),
        limit_s=limit_s,
        free_bytes=shutil.disk_usage(root).free,
    )


def read_table(path: Path) -> dict[str, Any] | None:
    """Return the JSON object of a file, None when there is none or it is not readable yet."""
    try:
        return parse_object(path.read_bytes())
    except (OSError, ValueError):
        return None


def read_log(path: Path, root: Path) -> Log | None:
    """Return the end of a log with its true line numbers, named relative to the run's folder."""
    try:
        size_bytes = path.stat().st_size
        with path.open("rb") as stream:
            skipped = max(0, size_bytes - _TAIL_BYTES)
            first_line = _count_lines(stream.read(skipped)) + 1 if skipped else 1
            text = stream.read().decode(errors="replace")
    except FileNotFoundError:
        return None
    name = str(path.relative_to(root)) if path.is_relative_to(root) else str(path)
    # Not splitlines: it also parts lines where no editor counts one, e.g. at a form feed.
    return Log(file=name, lines=text.removesuffix("\n").split("\n"), first_line=first_line)


def _count_lines(data: bytes) -> int:
    return data.count(b"\n")


def elapsed_s(heartbeat: Mapping[str, Any] | None) -> float | None:
    """Return how long a worker lived, in seconds, by its own clock."""
    if heartbeat is None:
        return None
    try:
        began, last = from_text(heartbeat["started_at"]), from_text(heartbeat["at"])
    except (KeyError, TypeError, ValueError):
        return None
    return round((last - began).total_seconds(), 3)


def heartbeat_age_s(paths: AttemptPaths, now_s: float) -> float | None:
    """Return the seconds since the heartbeat file was last written, None without one."""
    try:
        return now_s - paths.heartbeat.stat().st_mtime
    except FileNotFoundError:
        return None
