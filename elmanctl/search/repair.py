"""Repair of a damaged run: keep the intact start of its ledger, and set aside all the rest."""

import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from elmanctl import clock
from elmanctl.codec import decode
from elmanctl.errors import LedgerCorrupt, LedgerError, LedgerLocked
from elmanctl.ledger.events import Event
from elmanctl.ledger.files import link, sync_folder, write_atomically
from elmanctl.ledger.lease import LEASE_FILE, STALE_S, Lease, read_holder
from elmanctl.ledger.payloads import Note, PointsAsked, SubmissionAbandoned, SubmissionIntended
from elmanctl.ledger.run_state import RunState
from elmanctl.ledger.scan import Fault, Scan, scan
from elmanctl.ledger.snapshot import SNAPSHOT_FILE
from elmanctl.ledger.store import LedgerWriter
from elmanctl.ledger.submissions import SubmissionIntent
from elmanctl.run.ownership import refuse_foreign_run
from elmanctl.run.paths import RunPaths
from elmanctl.search.session import Session

_ATTEMPT = re.compile(r"attempt-(\d+)")
_SUBMISSION = re.compile(r"s(\d+)")


@dataclass(frozen=True, slots=True, kw_only=True)
class RepairPlan:
    """The damage of a run, and the effect of its repair.

    `fault` is the first damage of the ledger, which is cut there: `lost_events` are the intact
    events after it, with their evaluations and submissions.  Jobs of `adopted` submissions are
    looked up by name on resume; those of `job_names`, of lost submissions, are not.  `orphans` are
    the folders of attempts that are no longer on record, `results` those with a result.
    """

    fault: Fault | None
    lost_events: int
    lost_evaluations: tuple[str, ...]
    lost_submissions: tuple[str, ...]
    adopted: tuple[str, ...]
    job_names: tuple[str, ...]
    orphans: tuple[str, ...]
    results: tuple[str, ...]
    torn_bytes: int

    @property
    def is_needed(self) -> bool:
        """Whether there is anything to repair."""
        return self.fault is not None or self.torn_bytes > 0


def plan_repair(paths: RunPaths) -> RepairPlan:
    """Return what a repair would do; writes nothing.

    Raises NotFound, LedgerTooNew, LedgerError for a ledger without an intact start.
    """
    return _plan(paths, scan(paths.ledger))


def repair_run(paths: RunPaths, say: Callable[[str], None]) -> RepairPlan:
    """Repair a run under its lease, and report each step to `say`.

    Raises ForeignFolder where another user may write, LedgerLocked while a controller is alive.
    """
    refuse_foreign_run(paths)
    found = scan(paths.ledger)
    with _lease(paths, found.highest_fence) as lease:
        # Scanned again: a controller may have written until the lease was taken.
        found = scan(paths.ledger)
        plan = _plan(paths, found)
        if plan.fault is not None:
            say(f"the whole old ledger is now {_set_aside(paths, found)}")
            for name in plan.orphans:
                path = paths.folder / name
                target = path.with_name(f"lost-{path.name}-{_timestamp()}")
                # A new attempt of that number gets an empty folder.
                path.rename(target)
                say(f"moved {name} to {target.relative_to(paths.folder)}")
        with Session(paths, lease, LedgerWriter(paths.ledger, lease)) as session:
            if plan.fault is not None:
                _record_losses(session, plan, found.later)
            if plan.torn_bytes:
                say(f"{plan.torn_bytes} bytes of an incomplete last line are saved and cut off")
    return plan


def _plan(paths: RunPaths, found: Scan) -> RepairPlan:
    state = found.state
    if not state.run:
        raise LedgerError(
            f"nothing of {paths.ledger} can be kept: its first event is missing or damaged",
            hint="copy the ledger from a backup",
        )
    fault = found.faults[0] if found.faults else None
    intents = _lost_intents(state, found.later)
    adopted = _adoptable(state, intents)
    adopted_names = tuple(str(item["id"]) for item in adopted)
    orphans = _orphans(paths, state, adopted) if fault is not None else []
    asked = [
        item["id"]
        for event in found.later
        if event.kind == PointsAsked.event_kind()
        for item in event.data["evaluations"]
    ]
    on_disk = _names(paths.submissions, _SUBMISSION) if fault is not None else []
    lost = sorted({*on_disk, *intents} - {*state.submissions, *adopted_names})
    return RepairPlan(
        fault=fault,
        lost_events=len(found.later),
        lost_evaluations=tuple(name for name in asked if name not in state.evaluations),
        lost_submissions=tuple(lost),
        adopted=adopted_names,
        job_names=tuple(_job_name(state, name) for name in lost),
        orphans=tuple(str(path.relative_to(paths.folder)) for path in orphans),
        results=tuple(
            str(path.relative_to(paths.folder))
            for path in orphans
            if (path / "result.json").is_file()
        ),
        torn_bytes=found.torn_bytes,
    )


def _lost_intents(state: RunState, later: Sequence[Event]) -> dict[str, Any]:
    """Return the submissions intended after the damage, by name."""
    intents = [e.data["submission"] for e in later if e.kind == SubmissionIntended.event_kind()]
    return {item["id"]: item for item in intents if item["id"] not in state.submissions}


def _adoptable(state: RunState, intents: dict[str, Any]) -> list[Any]:
    """Return the intents that fit the kept events, so that their jobs can be looked up."""
    busy: set[str] = set()
    chosen = []
    for item in intents.values():
        names = {task["evaluation"] for task in item["tasks"]}
        if all(_is_next(state, task) for task in item["tasks"]) and not names & busy:
            busy |= names
            chosen.append(item)
    return chosen


def _is_next(state: RunState, task: Any) -> bool:
    evaluation = state.evaluations.get(task["evaluation"])
    return (
        evaluation is not None
        and not evaluation.state.is_finished
        and not evaluation.has_live_attempt
        and task["attempt"] == len(evaluation.attempts) + 1
    )


def _orphans(paths: RunPaths, state: RunState, adopted: Sequence[Any]) -> list[Path]:
    """Return the folders of attempts that the repaired ledger has no record of."""
    known = {(e.id, a.number) for e in state.evaluations.values() for a in e.attempts}
    known |= {(task["evaluation"], task["attempt"]) for item in adopted for task in item["tasks"]}
    if not paths.evaluations.is_dir():
        return []
    found = []
    for folder in sorted(paths.evaluations.iterdir()):
        for name in _names(folder, _ATTEMPT):
            if (folder.name, int(name.removeprefix("attempt-"))) not in known:
                found.append(folder / name)
    return found


def _names(folder: Path, pattern: re.Pattern[str]) -> list[str]:
    if not folder.is_dir():
        return []
    return sorted(path.name for path in folder.iterdir() if pattern.fullmatch(path.name))


def _job_name(state: RunState, submission: str) -> str:
    return f"elman-{state.run['name']}-{state.run['token']}-{submission}"


def _lease(paths: RunPaths, fence: int) -> Lease:
    try:
        return Lease.acquire(paths.folder, minimum_fence=fence)
    except LedgerLocked as exc:
        try:
            read_holder(paths.folder)
        except LedgerCorrupt:
            raise LedgerLocked(
                f"{paths.folder / LEASE_FILE} is damaged, so whether a controller of this run is"
                " alive is not known",
                hint="look for one on every machine that it may run on; when there is none, remove"
                f" the file, or wait until it is unchanged for {STALE_S:.0f} s; then repair",
            ) from exc
        raise


def _set_aside(paths: RunPaths, found: Scan) -> str:
    """Keep the ledger up to the damage; return the new name of the damaged one.

    A kill in between leaves the damaged ledger in place, under both names.
    """
    kept = paths.folder / f"ledger.damaged-{_timestamp()}"
    link(kept, paths.ledger)
    sync_folder(paths.folder)
    with kept.open("rb") as file:
        write_atomically(paths.ledger, file.read(found.good_size_bytes))
    (paths.folder / SNAPSHOT_FILE).unlink(missing_ok=True)
    return kept.name


def _record_losses(session: Session, plan: RepairPlan, later: Sequence[Event]) -> None:
    """Record the lost submissions, so that no new one gets the name of a lost one."""
    assert plan.fault is not None
    intents = _lost_intents(session.state, later)
    numbers = [int(name[1:]) for name in (*plan.adopted, *plan.lost_submissions)]
    for number in range(len(session.state.submissions) + 1, max(numbers, default=0) + 1):
        name = f"s{number:04}"
        if name in plan.adopted:
            session.record(
                decode(SubmissionIntended, {"submission": intents[name]}, "data", LedgerCorrupt)
            )
            continue
        empty = SubmissionIntent(id=name, job_name=_job_name(session.state, name), tasks=())
        session.record(SubmissionIntended(submission=empty))
        session.record(
            SubmissionAbandoned(submission=name, error="its record was lost with the ledger's")
        )
    session.record(
        Note(
            text=f"repaired: everything from line {plan.fault.line} on was set aside"
            f" ({plan.fault.text})"
        )
    )


def _timestamp() -> str:
    return clock.to_text(clock.now()).replace(":", "").replace("-", "")
