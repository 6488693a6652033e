"""What `clean` may remove, decided first and removed after; never outside the run's folder.

Kept always: the ledger, every result, spec and claim, whatever belongs to an unfinished
evaluation or to none, and everything of the best evaluations and the newest generations.
"""

import logging
import os
import stat
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from elmanctl.errors import UsageError
from elmanctl.ledger.disk import allocated_bytes
from elmanctl.ledger.payloads import Cleaned
from elmanctl.ledger.records import Evaluation, State
from elmanctl.ledger.run_state import RunState
from elmanctl.run.paths import RunPaths
from elmanctl.search.file_owners import KINDS, OPTIMIZER, Held, optimizer_states_in_use, scan
from elmanctl.search.session import Session
from elmanctl.settings import DiskSettings

logger = logging.getLogger(__name__)

# Removed, then put on record, so many at a time: a kill leaves little that is gone and unrecorded.
_CHUNK = 256


@dataclass(frozen=True, slots=True, kw_only=True)
class Retention:
    """What cleaning keeps whole: the best evaluations, the newest generations, failures' logs."""

    keep_best: int
    keep_last: int
    keep_failed_logs: bool


@dataclass(frozen=True, slots=True, kw_only=True)
class Removable:
    """One file that may go, and which file it was when that was decided."""

    path: Path
    size_bytes: int
    kind: str
    category: str
    evaluation: str | None
    identity: tuple[int, int]


@dataclass(frozen=True, slots=True, kw_only=True)
class Freed:
    """What one removal came to."""

    size_bytes: int = 0
    files: int = 0


def retention(settings: DiskSettings, asked: Mapping[str, Any]) -> Retention:
    """Return the policy of the run's settings, where a command does not ask for another one."""
    names = ("keep_best", "keep_last", "keep_failed_logs")
    values = {name: asked.get(name) for name in names}
    return Retention(
        **{n: getattr(settings, n) if value is None else value for n, value in values.items()}
    )


def plan_cleaning(
    paths: RunPaths, state: RunState, policy: Retention, *, kinds: Sequence[str] = ()
) -> list[Removable]:
    """Return the files that may be removed, in order of their paths.

    Raises UsageError for an unknown kind, LedgerError when a folder cannot be read.
    """
    return choose(paths, state, scan(paths, state), policy, kinds=kinds)


def choose(
    paths: RunPaths,
    state: RunState,
    held: Sequence[Held],
    policy: Retention,
    *,
    kinds: Sequence[str] = (),
) -> list[Removable]:
    """Return what of the files found may be removed; see `plan_cleaning`."""
    unknown = [kind for kind in kinds if kind not in KINDS]
    if unknown:
        named = ", ".join(f"`{kind}`" for kind in unknown)
        raise UsageError(f"no kind of file named {named}", hint=f"kinds: {', '.join(KINDS)}")
    device = paths.folder.stat().st_dev
    kept = kept_whole(state, policy)
    states = optimizer_states_in_use(
        state, (item.found.parts[-1] for item in held if item.kind == OPTIMIZER)
    )
    plan = [
        _removable(paths, item)
        for item in held
        if item.kind in (kinds or KINDS)
        and _frees_something(item, device)
        and (
            item.found.parts[-1] not in states
            if item.kind == OPTIMIZER
            else _may_go(state, item, kept, policy)
        )
    ]
    return sorted(plan, key=lambda item: item.path)


def kept_whole(state: RunState, policy: Retention) -> set[str]:
    """Return the evaluations of which nothing is removed."""
    best = {e.id for e in state.ranked()[: policy.keep_best]}
    oldest = state.generation - policy.keep_last + 1
    return best | {e.id for e in state.evaluations.values() if e.generation >= oldest}


def _may_go(state: RunState, item: Held, kept: set[str], policy: Retention) -> bool:
    if item.evaluation is None or item.attempt is None or item.evaluation in kept:
        return False
    if not _is_settled(state.evaluations[item.evaluation]):
        return False
    is_failure = item.attempt.state is State.FAILED
    return not (item.kind == "logs" and is_failure and policy.keep_failed_logs)


def _is_settled(evaluation: Evaluation) -> bool:
    return evaluation.state.is_finished and not evaluation.has_live_attempt


def _frees_something(item: Held, device: int) -> bool:
    """Whether this is a file by its only name, or a link: nothing else is ever unlinked."""
    return _is_plain(item.found.status) and item.found.status.st_dev == device


def _is_plain(status: os.stat_result) -> bool:
    # Of a file with a second name nothing is freed, and the other name may be somebody's copy.
    return stat.S_ISLNK(status.st_mode) or (stat.S_ISREG(status.st_mode) and status.st_nlink == 1)


def _removable(paths: RunPaths, item: Held) -> Removable:
    assert item.kind is not None
    return Removable(
        path=paths.folder.joinpath(*item.found.parts),
        size_bytes=item.found.size_bytes,
        kind=item.kind,
        category=item.category,
        evaluation=item.evaluation,
        identity=(item.found.status.st_dev, item.found.status.st_ino),
    )


def remove_planned(session: Session, plan: Sequence[Removable]) -> Freed:
    """Remove the planned files and put on record what that freed; return the sum.

    Files go first: on a full disk they make the room for the record.
    """
    total = Freed()
    for start in range(0, len(plan), _CHUNK):
        freed: dict[str, dict[str | None, Freed]] = {}
        for item in plan[start : start + _CHUNK]:
            size_bytes = remove_file(session.paths.folder, item)
            if size_bytes is not None:
                of_kind = freed.setdefault(item.kind, {})
                before = of_kind.get(item.evaluation, Freed())
                of_kind[item.evaluation] = _add(before, size_bytes, 1)
        for kind, by_owner in freed.items():
            total = _record(session, kind, by_owner, total)
    return total


def _record(
    session: Session, kind: str, by_owner: Mapping[str | None, Freed], total: Freed
) -> Freed:
    size_bytes = sum(freed.size_bytes for freed in by_owner.values())
    files = sum(freed.files for freed in by_owner.values())
    owners = {name: freed.size_bytes for name, freed in by_owner.items() if name is not None}
    session.record(
        Cleaned(kind=kind, freed_bytes=size_bytes, files=files, evaluations=owners or None)
    )
    return _add(total, size_bytes, files)


def _add(freed: Freed, size_bytes: int, files: int) -> Freed:
    return Freed(size_bytes=freed.size_bytes + size_bytes, files=freed.files + files)


def remove_file(root: Path, item: Removable) -> int | None:
    """Unlink one planned file under `root`; return the bytes freed, None when it was left.

    It is reached through descriptors of its folders, so that a link put in place of a folder
    meanwhile is never followed, and must still be the file that was planned.
    """
    try:
        with _opened(root, item.path.relative_to(root).parts[:-1]) as folder:
            status = os.stat(item.path.name, dir_fd=folder, follow_symlinks=False)
            if (status.st_dev, status.st_ino) != item.identity or not _is_plain(status):
                logger.warning("%s is not removed: it is another file by now", item.path)
                return None
            os.unlink(item.path.name, dir_fd=folder)
    except FileNotFoundError:
        return None
    except OSError as exc:
        # A link where a folder was, or a file that is not ours: it stays, and so do the others.
        logger.warning("%s is not removed: %s", item.path, exc.strerror)
        return None
    return allocated_bytes(status)


@contextmanager
def _opened(root: Path, parts: Sequence[str]) -> Iterator[int]:
    """Yield a descriptor of a folder below `root`, reached without following any link."""
    flags = os.O_RDONLY | os.O_DIRECTORY
    descriptor = os.open(root, flags)
    try:
        for part in parts:
            below = os.open(part, flags | os.O_NOFOLLOW, dir_fd=descriptor)
            os.close(descriptor)
            descriptor = below
        yield descriptor
    finally:
        os.close(descriptor)
