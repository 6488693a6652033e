"""What `clean` may remove, decided first and removed after; never outside the run's folder.

Kept always: the ledger, every result and spec, whatever belongs to an unfinished evaluation, and
everything of the best ones.
"""

import logging
import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from elmanctl.errors import UsageError
from elmanctl.jobs.paths import RunPaths
from elmanctl.ledger.records import Evaluation, SubmissionState
from elmanctl.ledger.state import RunState

logger = logging.getLogger(__name__)

# What each kind of file is named; results, specs and claims are in none of them.
KINDS = {
    "metrics": ("metrics*.jsonl",),
    "logs": ("*_log.out",),
    "pickles": ("*.pkl", "*_submitted.pkl"),
}


@dataclass(frozen=True, slots=True, kw_only=True)
class Removable:
    """One file that may go."""

    path: Path
    size_bytes: int
    kind: str
    evaluation: str


def plan_cleaning(
    paths: RunPaths, state: RunState, *, keep_best: int, kinds: Sequence[str]
) -> list[Removable]:
    """Return the files that may be removed, in order of their paths.

    Raises UsageError for an unknown kind.
    """
    unknown = [kind for kind in kinds if kind not in KINDS]
    if unknown:
        raise UsageError(f"no kind of file named `{unknown[0]}`", hint=f"kinds: {', '.join(KINDS)}")
    kept = {e.id for e in state.ranked()[:keep_best]}
    plan: list[Removable] = []
    for evaluation in state.evaluations.values():
        if evaluation.id in kept or not _is_settled(evaluation):
            continue
        for kind in kinds or list(KINDS):
            for path in _files(paths, state, evaluation, kind):
                size_bytes = path.lstat().st_blocks * 512
                plan.append(
                    Removable(path=path, size_bytes=size_bytes, kind=kind, evaluation=evaluation.id)
                )
    return sorted(plan, key=lambda item: item.path)


def remove_planned(
    paths: RunPaths, plan: Sequence[Removable]
) -> dict[tuple[str, str], tuple[int, int]]:
    """Remove the planned files; return (bytes, files) freed by (evaluation, kind).

    Files are reached through descriptors of their folders, so that a link put in place of a
    folder meanwhile is never followed.
    """
    freed: dict[tuple[str, str], tuple[int, int]] = {}
    for item in plan:
        if _remove(paths.folder, item.path):
            size_bytes, files = freed.get((item.evaluation, item.kind), (0, 0))
            freed[item.evaluation, item.kind] = (size_bytes + item.size_bytes, files + 1)
    return freed


def _is_settled(evaluation: Evaluation) -> bool:
    return evaluation.state.is_finished and not evaluation.has_live_attempt


def _files(paths: RunPaths, state: RunState, evaluation: Evaluation, kind: str) -> list[Path]:
    found: set[Path] = set()
    for attempt in evaluation.attempts:
        submission = state.submissions[attempt.submission]
        if submission.state is SubmissionState.INTENDED:
            continue
        folder = paths.attempt(evaluation.id, attempt.number).folder
        for pattern in KINDS[kind]:
            found |= set(folder.glob(pattern))
            # A submission's folder holds the files of all its tasks: take only this one's.
            names = (f"{attempt.job_id}_", f"task-{attempt.task_index}.")
            for path in paths.submission(attempt.submission).glob(pattern):
                if path.name.startswith(names):
                    found.add(path)
    return [path for path in found if path.is_file() or path.is_symlink()]


def _remove(root: Path, path: Path) -> bool:
    """Unlink one file under `root` without following any link; return whether it was there."""
    flags = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW
    descriptor = os.open(root, os.O_RDONLY | os.O_DIRECTORY)
    try:
        for part in path.relative_to(root).parts[:-1]:
            below = os.open(part, flags, dir_fd=descriptor)
            os.close(descriptor)
            descriptor = below
        os.unlink(path.name, dir_fd=descriptor)
    except FileNotFoundError:
        return False
    except OSError as exc:
        # A link where a folder was, or a file that is not ours: it stays, and so do the others.
        logger.warning("%s is not removed: %s", path, exc.strerror)
        return False
    finally:
        os.close(descriptor)
    return True
