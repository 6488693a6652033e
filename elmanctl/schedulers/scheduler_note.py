"""Note of the last poll of the scheduler, a file for `status`: derived, and never relied on.

The controller rewrites it at each poll.  The next controller takes only its first wait from it, one
interval at most, so a note that is stale, damaged or missing costs little but messages.
"""

import logging
from collections.abc import Mapping
from dataclasses import dataclass, field, fields
from pathlib import Path

from elmanctl import clock
from elmanctl.codec import decode, encode
from elmanctl.errors import LedgerCorrupt
from elmanctl.ledger.files import parse_object, read_small, write_json

logger = logging.getLogger(__name__)

_VERSION = 1

# Controllers of earlier versions write none of these.
_ADDED_LATER: Mapping[str, object] = {"asked_at": None, "unlisted": {}, "refusal": None}

# A reason for each of 100,000 pending jobs.
_LIMIT_BYTES = 16 << 20

# Two commands may take a minute each, and a submission three, before the next poll is due.
_LATE_S = 300.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Refusal:
    """Why the newest submission was refused, and what to do about it, if anything.

    A refusal that `is_final` is not retried until the running jobs have ended.
    """

    words: str
    hint: str | None = None
    is_final: bool = False

    @property
    def text(self) -> str:
        """One line, the same each time."""
        refusal = "refuses more jobs" if self.is_final else "takes no more jobs for now"
        advice = f" (hint: {self.hint})" if self.hint else ""
        return f"Slurm {refusal}: {self.words}{advice}"


@dataclass(frozen=True, slots=True, kw_only=True)
class SchedulerNote:
    """One poll: `pending` is Slurm's reason by job id, `next_s` the time to the next poll.

    `asked_at` is when Slurm was last polled, None if it was not yet: a refusal is noted, too.
    `unlisted` holds the evidence for and against each job that only accounting takes for alive.
    """

    version: int = _VERSION
    at: str
    next_s: float
    asked_at: str | None = None
    silent_reason: str | None = None
    accounting: bool | None = None
    pending: Mapping[str, str] = field(default_factory=dict)
    unlisted: Mapping[str, str] = field(default_factory=dict)
    refusal: Refusal | None = None

    @property
    def age_s(self) -> float:
        """The age of the note in seconds."""
        return (clock.now() - clock.from_text(self.at)).total_seconds()

    @property
    def is_stale(self) -> bool:
        """Whether the next poll is overdue, so that the note is out of date."""
        return self.age_s > self.next_s + _LATE_S


def write_note(path: Path, note: SchedulerNote) -> None:
    """Replace the file; an error of the disk is no reason to stop a search."""
    try:
        write_json(path, encode(note))
    except OSError as exc:
        logger.debug("%s is not written: %s", path, exc)


def read_note(path: Path) -> SchedulerNote | None:
    """Return the note in a file, None if there is none or it cannot be used."""
    try:
        data = {**_ADDED_LATER, **parse_object(read_small(path, _LIMIT_BYTES))}
        own = {item.name: data[item.name] for item in fields(SchedulerNote)}
        note = decode(SchedulerNote, own, path.name, LedgerCorrupt)
        for moment in (note.at, note.asked_at or note.at):
            clock.from_text(moment)
    except (OSError, ValueError, KeyError, LedgerCorrupt):
        return None
    return note if note.version == _VERSION else None
