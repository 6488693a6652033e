"""Observation of an attempt that no longer runs: all that its files and its scheduler show."""

import os
import re
import shutil
import signal
import time
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from elmanctl.clock import from_text
from elmanctl.ledger.records import VerdictKind
from elmanctl.run.paths import AttemptPaths
from elmanctl.run.progress import elapsed_s, heartbeat_age_s, read_table
from elmanctl.schedulers.executor import JobReport
from elmanctl.verdicts.job_end import signal_of
from elmanctl.verdicts.log_tail import LogTail, read_log_tail

# Slurm warns this long before a time limit, and checks limits once a minute.
_WARNING_S = 90.0
_MINUTE_S = 60.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Observation:
    """Everything known of an attempt.

    `elapsed_s` is the worker's lifetime by its own clock, `limit_s` the job's time limit.  The
    heartbeat was last written `heartbeat_age_s` ago and is stale after `stale_after_s`.
    `free_bytes` are left on the file system of `run_folder`.  `is_in_sight`: the files that the
    controller wrote for the attempt can be seen from here.  `left_trace`: so can any file that the
    job wrote, such as its log at `log_path`.  `has_started`: the scheduler reported it as running.
    """

    result: Mapping[str, object] | None = None
    result_file: str | None = None
    report: JobReport | None = None
    log: LogTail | None = None
    log_path: str | None = None
    is_in_sight: bool = False
    left_trace: bool = False
    has_started: bool = False
    heartbeat: Mapping[str, object] | None = None
    heartbeat_file: str | None = None
    heartbeat_age_s: float | None = None
    stale_after_s: float | None = None
    cancel_requested: bool = False
    stop_requested: bool = False
    elapsed_s: float | None = None
    limit_s: float | None = None
    free_bytes: int | None = None
    run_folder: str | None = None

    @property
    def is_alive(self) -> bool:
        """Whether the heartbeat is fresh, and not the worker's last one."""
        if self.heartbeat_age_s is None or self.stale_after_s is None:
            return False
        done = self.heartbeat is not None and self.heartbeat.get("phase") == "done"
        return self.heartbeat_age_s <= self.stale_after_s and not done

    @property
    def lost_rank(self) -> Mapping[str, object] | None:
        """What rank 0 noted of another rank that ended without a word, None if none did."""
        return lost_rank_of(self.heartbeat)

    @property
    def signals(self) -> list[tuple[str, float | None]]:
        """The signals that the worker received, each with its lifetime in seconds until then."""
        noted = (self.heartbeat or {}).get("signals")
        listed = noted if isinstance(noted, list | tuple) else ()
        return [
            (str(one["name"]), _seconds_between((self.heartbeat or {}).get("started_at"), one))
            for one in listed
            if isinstance(one, Mapping) and "name" in one
        ]

    @property
    def reached_limit(self) -> bool:
        """Whether the job ended at its time limit, judging by its last heartbeat."""
        if self.elapsed_s is None or not self.limit_s:
            return False
        # A worker starts later than its job, and its last heartbeat is a while before its end.
        return self.elapsed_s >= self.limit_s - min(_MINUTE_S, 0.1 * self.limit_s)

    @property
    def reached_cpu_limit(self) -> bool:
        """Whether the kernel ended a process at its limit on CPU time: nobody else does."""
        ended_by = None if self.report is None else signal_of(self.report)
        if ended_by is not None:
            return ended_by == signal.SIGXCPU
        return any(name == "SIGXCPU" for name, _ in self.signals)

    @property
    def was_warned_early(self) -> bool:
        """Whether Slurm warned of an end long before the time limit, as before a preemption."""
        if not self.limit_s:
            return False
        earliest = self.limit_s - _WARNING_S - 2 * _MINUTE_S
        return any(
            name == "SIGUSR2" and at is not None and at < earliest for name, at in self.signals
        )


def observe(
    paths: AttemptPaths,
    log: Path,
    report: JobReport | None,
    *,
    result: Mapping[str, object] | None = None,
    root: Path,
    limit_s: float,
    stale_after_s: float | None = None,
    cancel_requested: bool = False,
    stop_requested: bool = False,
    has_started: bool = False,
) -> Observation:
    """Read everything that is known of an attempt; files are named relative to `root`, the run.

    `result` is the worker's, where it was read before.  Where another rank was lost, its log is the
    one that may say why.
    """
    heartbeat = read_table(paths.heartbeat)
    log = _log_of_lost_rank(log, heartbeat)
    traces = (paths.claim, paths.heartbeat, paths.metrics, paths.result, log)
    result = read_table(paths.result) if result is None else result
    return Observation(
        result=result,
        result_file=str(paths.result.relative_to(root)),
        report=report,
        log=None if is_self_sufficient(result) else read_log_tail(log, root),
        log_path=str(log),
        is_in_sight=paths.spec.is_file(),
        left_trace=any(os.path.lexists(trace) for trace in traces),
        has_started=has_started,
        heartbeat=heartbeat,
        heartbeat_file=str(paths.heartbeat.relative_to(root)),
        heartbeat_age_s=heartbeat_age_s(paths, time.time()),
        stale_after_s=stale_after_s,
        cancel_requested=cancel_requested,
        stop_requested=stop_requested,
        elapsed_s=elapsed_s(heartbeat),
        limit_s=limit_s,
        run_folder=str(root),
        free_bytes=shutil.disk_usage(root).free,
    )


def is_self_sufficient(result: Mapping[str, object] | None) -> bool:
    """Whether a worker's result says so much that its log would add nothing."""
    verdict = None if result is None else result.get("verdict")
    silent = (VerdictKind.COMPLETED, VerdictKind.STOPPED, VerdictKind.DIVERGED)
    return isinstance(verdict, Mapping) and verdict.get("kind") in silent


def lost_rank_of(heartbeat: Mapping[str, object] | None) -> Mapping[str, object] | None:
    """Return what a heartbeat says of a lost rank, None if it names none."""
    noted = (heartbeat or {}).get("lost_rank")
    return noted if isinstance(noted, Mapping) else None


def _log_of_lost_rank(log: Path, heartbeat: Mapping[str, object] | None) -> Path:
    rank = (lost_rank_of(heartbeat) or {}).get("rank")
    own = log.with_name(re.sub(r"_0(_log\.\w+)$", rf"_{rank}\1", log.name))
    return own if isinstance(rank, int) and own.is_file() else log


def _seconds_between(began: object, later: Mapping[str, object]) -> float | None:
    try:
        return (from_text(str(later["at"])) - from_text(str(began))).total_seconds()
    except (KeyError, ValueError, TypeError):
        return None
