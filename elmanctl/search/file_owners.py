"""Map every file of a run folder to its owner in the ledger; the rest are orphans.

Names come from the disk and never from the ledger, and no link is followed, so no path leaves the
run folder.
"""

import os
import re
import stat
from collections import Counter
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass

from elmanctl.ledger.disk import Found, allocated_bytes, category_of, each_once, walk
from elmanctl.ledger.disk_use import CATEGORY_OF_KIND, OTHER
from elmanctl.ledger.records import Attempt
from elmanctl.ledger.reserve import RESERVE_FOLDER
from elmanctl.ledger.run_state import RunState
from elmanctl.run.paths import RunPaths
from elmanctl.schedulers.lanes import lane_folder, slurm_job

OPTIMIZER = "optimizer"
MODELS = "models"

# The kinds of files that `clean` removes.
KINDS = (*CATEGORY_OF_KIND, OPTIMIZER)
_KIND_OF_CATEGORY = {category: kind for kind, category in CATEGORY_OF_KIND.items()}

# The folder of a submission holds the files of all its tasks, by job id or by task number.
_OF_JOB = re.compile(r"(.+)_(?:submitted\.pkl|\d+_result\.pkl|\d+_log\.(?:out|err))")
_OF_TASK = re.compile(r"task-(\d+)\.pkl")
# Attempts that share a job have folders of their own, for what is named by the job alone.
_LANE = re.compile(r"task-(\d+)")
_ATTEMPT = re.compile(r"attempt-([1-9]\d*)")
_TEMPORARY = re.compile(r"\..*\.tmp")
_TORN = re.compile(r"ledger\.torn-.*")
# Since version 0.2 the name contains the fence of the lease.
_STATE = re.compile(r"g(\d+)-(\d+)(?:-lease\d+)?\.pickle")


@dataclass(frozen=True, slots=True, kw_only=True)
class OwnedFile:
    """One file or folder of a run, with its owner; `orphan` says why it has none.

    `kind` is its name for `clean`, None for a file that is never removed.
    """

    found: Found
    category: str
    kind: str | None = None
    evaluation: str | None = None
    attempt: Attempt | None = None
    orphan: str | None = None

    @property
    def name(self) -> str:
        """The path relative to the run folder."""
        return "/".join(self.found.parts)

    @property
    def size_bytes(self) -> int:
        """The bytes allocated on disk."""
        return self.found.size_bytes


def scan(paths: RunPaths, state: RunState) -> list[OwnedFile]:
    """Return every file and folder of a run, each once; raises LedgerError."""
    owners = _Owners(state)
    return [owners.classify(found) for found in each_once(walk(paths.folder, passes_locked=True))]


def attempt_sizes(
    paths: RunPaths, evaluation: str, attempt: Attempt, *, ranks: int = 1
) -> dict[str, int]:
    """Return the bytes of an attempt by category, in its own folder and its submission's.

    Each of its ranks left a log and a pickle.
    """
    sizes = Counter[str]()
    for name, size_bytes in _written_by(paths, evaluation, attempt, ranks):
        sizes[category_of(name)] += size_bytes
    return dict(sizes)


def _written_by(
    paths: RunPaths, evaluation: str, attempt: Attempt, ranks: int
) -> Iterator[tuple[str, int]]:
    folder = paths.attempt(evaluation, attempt.number).folder
    with suppress(FileNotFoundError, NotADirectoryError):
        yield folder.name, allocated_bytes(folder.stat())
    for found in each_once(walk(folder, passes_locked=True)):
        yield found.parts[0], found.size_bytes
    # Looked up by name, not scanned: the folder of an array holds the files of all its tasks.
    submission = paths.submission(attempt.submission)
    job = attempt.job_id
    ends = ["_submitted.pkl"]
    for rank in range(ranks):
        ends += [f"_{rank}_result.pkl", f"_{rank}_log.out", f"_{rank}_log.err"]
    for name in (f"task-{attempt.task_index}.pkl", *(f"{job}{end}" for end in ends)):
        with suppress(FileNotFoundError, NotADirectoryError):
            status = os.lstat(f"{submission}/{name}")
            if stat.S_ISREG(status.st_mode):
                yield name, allocated_bytes(status)
    if job is not None and slurm_job(job) != job:
        lane = lane_folder(submission, attempt.task_index)
        for found in each_once(walk(lane, passes_locked=True)):
            yield found.parts[-1], found.size_bytes


class _Owners:
    """Index of the ledger by the names that its files have."""

    def __init__(self, state: RunState) -> None:
        self._state = state
        self._of_job: dict[tuple[str, str], tuple[str, Attempt]] = {}
        self._of_task: dict[tuple[str, int], tuple[str, Attempt]] = {}
        self._attempts: dict[tuple[str, int], Attempt] = {}
        for evaluation in state.evaluations.values():
            for attempt in evaluation.attempts:
                owner = (evaluation.id, attempt)
                self._attempts[evaluation.id, attempt.number] = attempt
                self._of_task[attempt.submission, attempt.task_index] = owner
                if attempt.job_id is not None:
                    self._of_job[attempt.submission, attempt.job_id] = owner

    def classify(self, found: Found) -> OwnedFile:
        """Return a file with its owner, category and kind."""
        match found.parts:
            case ("evaluations", evaluation, *rest):
                return self._of_evaluation(found, evaluation, rest)
            case ("submissions", submission, *rest):
                return self._of_submission(found, submission, rest)
            case ("optimizer", name):
                kind = OPTIMIZER if _STATE.fullmatch(name) else None
                return OwnedFile(found=found, category=OPTIMIZER, kind=kind, orphan=_leftover(name))
            case (("optimizer" | "code" | "requests" | "reserve") as room, *rest):
                name = rest[-1] if rest and room != RESERVE_FOLDER else ""
                return OwnedFile(found=found, category=room, orphan=_leftover(name))
            case (name, *_):
                is_torn = _TORN.fullmatch(name) is not None
                orphan = "bytes cut off a torn ledger" if is_torn else _leftover(name)
                category = OTHER if orphan else "ledger"
                return OwnedFile(found=found, category=category, orphan=orphan)
        return OwnedFile(found=found, category=OTHER)

    def _of_evaluation(self, found: Found, evaluation: str, rest: list[str]) -> OwnedFile:
        if evaluation not in self._state.evaluations:
            lost = "an evaluation that is not on record"
            return OwnedFile(found=found, category=OTHER, orphan=lost)
        number = _ATTEMPT.fullmatch(rest[0]) if rest else None
        attempt = self._attempts.get((evaluation, int(number[1]))) if number else None
        if attempt is None:
            is_orphan = bool(rest) and self._state.evaluations[evaluation].state.is_finished
            why = "an attempt that is not on record" if is_orphan else None
            return OwnedFile(found=found, category=OTHER, evaluation=evaluation, orphan=why)
        category = category_of(rest[1]) if len(rest) > 1 else OTHER
        return OwnedFile(
            found=found,
            category=category,
            kind=_kind_in_attempt(category, rest[1:]),
            evaluation=evaluation,
            attempt=attempt,
        )

    def _of_submission(self, found: Found, submission: str, rest: list[str]) -> OwnedFile:
        if submission not in self._state.submissions:
            lost = "a submission that is not on record"
            return OwnedFile(found=found, category=OTHER, orphan=lost)
        lane = _LANE.fullmatch(rest[0]) if rest else None
        name = rest[-1] if len(rest) == 1 + (lane is not None) else ""
        category = category_of(name) if name else OTHER
        of_job, of_task = _OF_JOB.fullmatch(name), _OF_TASK.fullmatch(name)
        owner = None
        if lane:
            owner = self._of_task.get((submission, int(lane[1])))
        elif of_job:
            owner = self._of_job.get((submission, of_job[1]))
        elif of_task:
            owner = self._of_task.get((submission, int(of_task[1])))
        if owner is None:
            return OwnedFile(found=found, category=category, orphan=_leftover(name))
        kind = _KIND_OF_CATEGORY.get(category) if category in ("log", "pickle") else None
        return OwnedFile(
            found=found, category=category, kind=kind, evaluation=owner[0], attempt=owner[1]
        )


def _kind_in_attempt(category: str, names: list[str]) -> str | None:
    # W&B fills a folder.
    if category in ("checkpoint", "metrics", "model"):
        return _KIND_OF_CATEGORY[category]
    if len(names) != 1:
        return None
    return "temporaries" if _TEMPORARY.fullmatch(names[0]) else None


def _leftover(name: str) -> str | None:
    return "a temporary file of a process that ended" if _TEMPORARY.fullmatch(name) else None
