"""Verification of a run: its ledger, and every other file that the ledger has a record of."""

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from elmanctl.errors import LedgerCorrupt, LedgerError
from elmanctl.ledger.files import DamagedFile, read_json
from elmanctl.ledger.lease import LEASE_FILE, read_holder
from elmanctl.ledger.records import Attempt, Evaluation
from elmanctl.ledger.run_state import RunState
from elmanctl.ledger.scan import Fault, Scan, scan
from elmanctl.ledger.snapshot import SNAPSHOT_FILE, load_summary, read_snapshot
from elmanctl.ledger.submissions import SubmissionState
from elmanctl.ledger.summary import summarize
from elmanctl.run.paths import RunPaths


@dataclass(frozen=True, slots=True, kw_only=True)
class Verification:
    """The ledger as read, and all faults found."""

    scan: Scan
    findings: tuple[Fault, ...]


def verify_run(paths: RunPaths) -> Verification:
    """Compare the files of a run with its ledger; writes nothing.

    Raises NotFound, LedgerTooNew, LedgerError when the ledger cannot be read at all.
    """
    found = scan(paths.ledger)
    findings = [*found.faults, *_lease(paths)]
    if found.state.run:
        findings += _submissions(paths, found.state)
        findings += _attempts(paths, found.state)
        if not found.faults:
            findings += _snapshot(paths, found.state)
    elif not found.faults:
        findings.append(Fault(text="there is no event in it"))
    return Verification(scan=found, findings=tuple(findings))


def _lease(paths: RunPaths) -> Iterator[Fault]:
    try:
        read_holder(paths.folder)
    except LedgerCorrupt:
        yield Fault(file=LEASE_FILE, text="it is damaged")


def _snapshot(paths: RunPaths, state: RunState) -> Iterator[Fault]:
    try:
        read_snapshot(paths.folder)
    except (OSError, ValueError, TypeError, LookupError, LedgerError) as exc:
        yield Fault(file=SNAPSHOT_FILE, text=f"{exc}; `status` reads the ledger instead")
        return
    loaded = load_summary(paths.folder)
    # Compared only if no controller has written an event meanwhile.
    if loaded.summary.seq == state.seq and loaded.summary != summarize(state):
        yield Fault(file=SNAPSHOT_FILE, text="it differs from the ledger")


def _submissions(paths: RunPaths, state: RunState) -> Iterator[Fault]:
    for submission in state.submissions.values():
        folder = paths.submission(submission.id)
        if submission.state is SubmissionState.ACCEPTED and not folder.is_dir():
            yield Fault(file=_name(paths, folder), text="the folder of the submission is missing")


def _attempts(paths: RunPaths, state: RunState) -> Iterator[Fault]:
    for evaluation in state.evaluations.values():
        for attempt in evaluation.attempts:
            yield from _attempt(paths, evaluation, attempt)


def _attempt(paths: RunPaths, evaluation: Evaluation, attempt: Attempt) -> Iterator[Fault]:
    files = paths.attempt(evaluation.id, attempt.number)
    if not files.spec.is_file():
        yield Fault(file=_name(paths, files.spec), text="the spec of the attempt is missing")
    if attempt.result is None:
        return
    try:
        result = read_json(files.result)
    except (DamagedFile, OSError) as exc:
        yield Fault(file=_name(paths, files.result), text=str(exc))
        return
    if result is None:
        yield Fault(file=_name(paths, files.result), text="the result on record is missing")
    elif (loss := result.get("loss")) != (recorded := attempt.result.get("loss")):
        text = f"its loss is {loss}, {recorded} is on record"
        yield Fault(file=_name(paths, files.result), text=text)


def _name(paths: RunPaths, path: Path) -> str:
    return str(path.relative_to(paths.folder))
