"""Cleaning of a run folder: plan which files may go, then remove exactly those.

Never removed: the ledger, results, specs, claims, files of unfinished evaluations, orphans, and
all files of the best and of the confirmed evaluations and of the newest generations.  Of models
those go that `disk.keep_models` does not keep.
"""

import logging
import os
import stat
from collections import Counter, defaultdict
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

from elmanctl.config import refuse_outside
from elmanctl.errors import UsageError
from elmanctl.ledger.disk import allocated_bytes
from elmanctl.ledger.payloads import Cleaned
from elmanctl.ledger.records import State
from elmanctl.ledger.run_state import RunState
from elmanctl.run.paths import RunPaths
from elmanctl.search.effective_settings import effective_settings
from elmanctl.search.estimate import by_estimate
from elmanctl.search.file_owners import (
    KINDS,
    MODELS,
    OPTIMIZER,
    OwnedFile,
    scan,
)
from elmanctl.search.kept_models import kept_files
from elmanctl.search.request_schema import CleanRequest
from elmanctl.search.session import Session
from elmanctl.settings import DiskSettings

logger = logging.getLogger(__name__)

# Files removed between two records: a kill leaves few that are gone and not recorded.
_CHUNK = 256


def retention(settings: DiskSettings, request: CleanRequest) -> DiskSettings:
    """Return the run's own rules, overridden by a request; raise ConfigError out of bounds."""
    values = {key: getattr(request, key) for key in ("keep_best", "keep_last", "keep_failed_logs")}
    values["keep_models"] = request.keep_models
    refuse_outside({f"disk.{key}": value for key, value in values.items()})
    return replace(settings, **{k: value for k, value in values.items() if value is not None})


def plan_cleaning(
    paths: RunPaths,
    state: RunState,
    policy: DiskSettings,
    *,
    kinds: Sequence[str] = (),
    files: Sequence[OwnedFile] | None = None,
) -> list[OwnedFile]:
    """Return the files that may be removed, sorted by path; `files` are those of the run, if known.

    Raises UsageError for an unknown kind, LedgerError when a folder cannot be read.
    """
    unknown = [kind for kind in kinds if kind not in KINDS]
    if unknown:
        named = ", ".join(f"`{kind}`" for kind in unknown)
        raise UsageError(f"no kind of file named {named}", hint=f"kinds: {', '.join(KINDS)}")
    files = scan(paths, state) if files is None else files
    device = paths.folder.stat().st_dev
    whole = _kept_whole(state, policy)
    models = kept_files(paths, state, replace(effective_settings(state), disk=policy))

    def may_go(file: OwnedFile) -> bool:
        if file.kind == OPTIMIZER:
            # No state that an earlier version saved is read any more.
            return True
        is_kept = (
            Path(*file.found.parts) in models if file.kind == MODELS else file.evaluation in whole
        )
        return not is_kept and _may_go(state, file, policy)

    plan = [
        file
        for file in files
        if file.kind in (kinds or KINDS)
        and _is_plain(file.found.status)
        and file.found.status.st_dev == device
        and may_go(file)
    ]
    return sorted(plan, key=lambda file: file.found.parts)


def _kept_whole(state: RunState, policy: DiskSettings) -> set[str]:
    """Return the evaluations all files of which are kept."""
    best = {e.id for e in by_estimate(state)[: policy.keep_best]}
    if policy.keep_best:
        for name, confirmations in state.confirmations.items():
            best |= {name, *confirmations}
    oldest = state.generation - policy.keep_last + 1
    return best | {e.id for e in state.evaluations.values() if e.generation >= oldest}


def _may_go(state: RunState, file: OwnedFile, policy: DiskSettings) -> bool:
    if file.evaluation is None or file.attempt is None:
        return False
    evaluation = state.evaluations[file.evaluation]
    if not evaluation.state.is_finished or evaluation.has_live_attempt:
        return False
    is_failure = file.attempt.state is State.FAILED
    return not (file.kind == "logs" and is_failure and policy.keep_failed_logs)


def _is_plain(status: os.stat_result) -> bool:
    """Whether this is a link, or a file by its only name: unlinking another name frees nothing."""
    return stat.S_ISLNK(status.st_mode) or (stat.S_ISREG(status.st_mode) and status.st_nlink == 1)


def remove_planned(session: Session, plan: Sequence[OwnedFile]) -> list[int]:
    """Remove the planned files, record what that freed, and return the bytes of each.

    Files go before the record: on a full disk they make room for it.
    """
    freed: list[int] = []
    for start in range(0, len(plan), _CHUNK):
        removed: dict[str, list[tuple[str | None, int]]] = defaultdict(list)
        for file in plan[start : start + _CHUNK]:
            size_bytes = remove_file(session.paths.folder, file)
            if size_bytes is not None:
                removed[str(file.kind)].append((file.evaluation, size_bytes))
        for kind, sizes in removed.items():
            owners = Counter[str]()
            for name, size_bytes in sizes:
                if name is not None:
                    owners[name] += size_bytes
            of_kind = [size_bytes for _, size_bytes in sizes]
            freed += of_kind
            session.record(
                Cleaned(
                    kind=kind,
                    freed_bytes=sum(of_kind),
                    files=len(of_kind),
                    evaluations=dict(owners) or None,
                )
            )
    return freed


def remove_file(root: Path, file: OwnedFile) -> int | None:
    """Unlink one planned file under `root`; return the bytes freed, None when it was kept.

    Its folders are opened one by one without following links, so a link swapped in meanwhile leads
    nowhere, and the inode must still be the planned one.
    """
    planned = file.found.status
    try:
        with _opened(root, file.found.parts[:-1]) as folder:
            status = os.stat(file.found.parts[-1], dir_fd=folder, follow_symlinks=False)
            is_same = (status.st_dev, status.st_ino) == (planned.st_dev, planned.st_ino)
            if not is_same or not _is_plain(status):
                logger.warning("%s is not removed: it was replaced meanwhile", root / file.name)
                return None
            os.unlink(file.found.parts[-1], dir_fd=folder)
    except FileNotFoundError:
        return None
    except OSError as exc:
        # A link in place of a folder, or a file of another user: skip it and go on.
        logger.warning("%s is not removed: %s", root / file.name, exc.strerror)
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
