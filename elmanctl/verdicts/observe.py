"""Reading what an attempt left behind: result, heartbeat, the end of its log."""

import os
import shutil
import time
from pathlib import Path
from typing import BinaryIO

from elmanctl.ledger.files import open_regular
from elmanctl.run.paths import AttemptPaths
from elmanctl.run.progress import elapsed_s, heartbeat_age_s, read_table
from elmanctl.schedulers.executor import JobReport
from elmanctl.verdicts.judge import Log, Observation, needs_no_log

# What a verdict needs of a log is at its end.
_TAIL_BYTES = 64 * 1024

# Of a longer log lines are counted from its last part: reading it all may take minutes.
_COUNTED_BYTES = 1 << 30
_BLOCK_BYTES = 1 << 20


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
