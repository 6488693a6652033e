"""`snapshot.json`: the summary of a run up to one event, which saves readers a full replay.

The file is derived and may be removed at any time.  The holder of the lease writes it whenever
the ledger has grown by `EVERY_BYTES`.  A reader takes it only when the line of the ledger that it
names is still that event, applies the events after it by the same handlers, and replays the whole
ledger whenever anything does not fit; so a snapshot makes an answer quick and never different.
"""

import hashlib
import json
import logging
import math
import typing
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, fields, replace
from functools import cache
from itertools import islice
from pathlib import Path
from typing import Any, Generic, TypeVar

from elmanctl.codec import decode, encode, json_field
from elmanctl.errors import LedgerCorrupt, LedgerError, NotFound
from elmanctl.ledger.contents import LONGEST_LINE_BYTES, parse, read_lines
from elmanctl.ledger.events import DamagedLine, decode_line, seal
from elmanctl.ledger.files import open_regular, parse_object, read_small, write_atomically
from elmanctl.ledger.records import Evaluation
from elmanctl.ledger.run_state import RunState
from elmanctl.ledger.state import apply, load_run
from elmanctl.ledger.store import LEDGER_FILE, LedgerWriter
from elmanctl.ledger.submissions import Submission, SubmissionState
from elmanctl.ledger.summary import (
    RunSummary,
    newest_groups,
    newest_members,
    page,
    summarize,
    trimmed,
)

logger = logging.getLogger(__name__)

_Record = TypeVar("_Record")

SNAPSHOT_FILE = "snapshot.json"

# Shorter ledgers are always read whole: that is quick, and checks every line.
EVERY_BYTES = 256 * 1024
LIMIT_BYTES = 8_000_000

# So many evaluations are held beside one that is taken up again, as others often follow it.
_NEIGHBOURS = 128

_READS = 3

# What makes a state of events; after any change to it older snapshots are not used.
_MAKERS = (
    *("disk_use", "handlers", "idle", "payloads", "records", "run_state", "shared_keys"),
    *("snapshot", "spending", "state", "submissions", "summary", "transitions"),
)


@dataclass(frozen=True, slots=True, kw_only=True)
class _File:
    """The contents of a snapshot; `last_line_at` is where the line of its last event begins."""

    code: str
    last_line_at: int
    line_crc: str
    state: Mapping[str, object]
    crc: str = json_field(default="", omit=True)


@dataclass(frozen=True, slots=True, kw_only=True)
class LoadedSummary:
    """A run in brief as a reader finds it, and a warning where the ledger is not quite whole."""

    summary: RunSummary
    warning: str | None = None
    from_snapshot: bool = False


class _Unfit(ValueError):
    """A snapshot that says nothing about the ledger as it is."""


def load_summary(folder: Path) -> LoadedSummary:
    """Read the summary of a run, from its snapshot where there is one; writes and locks nothing.

    Raises NotFound, LedgerCorrupt, LedgerTooNew.
    """
    path = folder / LEDGER_FILE
    try:
        if path.stat().st_size > EVERY_BYTES:
            for _ in range(_READS):
                found = _from_snapshot(folder, path)
                if found is not None:
                    return found
    except (OSError, ValueError, TypeError, LookupError, LedgerError, NotFound) as exc:
        # Whatever is really wrong with the ledger, reading all of it says better.
        logger.info("%s is read whole: %s", path, exc)
    loaded = load_run(folder)
    return LoadedSummary(summary=summarize(loaded.state), warning=loaded.warning)


def read_snapshot(folder: Path) -> tuple[int, RunState] | None:
    """Return where the line of a snapshot's last event begins, and the part of the state it holds.

    None when there is no snapshot, or one that other code made.  Raises ValueError or LedgerError
    for one that is damaged, or that the ledger contradicts.
    """
    try:
        # The writer makes none above its limit.
        raw = read_small(folder / SNAPSHOT_FILE, LIMIT_BYTES)
    except FileNotFoundError:
        return None
    body, found_seal = raw[:-19], raw[-19:-1]
    if raw[-1:] != b"\n" or found_seal != seal(body):
        raise _Unfit(f"{SNAPSHOT_FILE} is damaged: the checksum does not match")
    data = decode(_File, parse_object(raw), SNAPSHOT_FILE, LedgerCorrupt)
    if data.code != _fingerprint():
        return None
    hints = typing.get_type_hints(RunState)
    state = RunState(
        **{
            name: decode(hint, data.state[name], f"state.{name}", LedgerCorrupt, named=False)
            for name, hint in hints.items()
        }
    )
    with open_regular(folder / LEDGER_FILE) as file:
        file.seek(data.last_line_at)
        line = file.readline(LONGEST_LINE_BYTES).removesuffix(b"\n")
    if _identity(line) != [state.seq, state.fence, data.line_crc]:
        raise _Unfit(f"{SNAPSHOT_FILE} is of another ledger")
    return data.last_line_at, state


def _from_snapshot(folder: Path, path: Path) -> LoadedSummary | None:
    """Return a run in brief, None when an event was just being written.

    Raises whatever shows that the snapshot cannot be used.
    """
    found = read_snapshot(folder)
    if found is None:
        raise _Unfit(f"there is no {SNAPSHOT_FILE} of this version")
    last_line_at, state = found
    with open_regular(path) as file:
        file.seek(last_line_at)
        contents = parse(read_lines(file, path), path, first=state.seq)
    if contents.torn:
        return None
    # The first one is the snapshot's own; one that takes its place does not parse.
    for event in contents.events[1:]:
        apply(state, event)
    return LoadedSummary(summary=summarize(state), warning=contents.warning, from_snapshot=True)


class SnapshotKeeper:
    """Writes the snapshots of one run for the process that holds its lease."""

    def __init__(self, folder: Path, writer: LedgerWriter, state: RunState) -> None:
        self._path = folder / SNAPSHOT_FILE
        self._writer = writer
        self._state = state
        self._written_at_bytes = 0
        self._held: frozenset[str] = frozenset()
        # Nothing is known of a snapshot that an earlier holder left.
        self._held_from = math.inf
        self._evaluations: _Encoded[Evaluation] = _Encoded(trimmed)
        self._submissions: _Encoded[Submission] = _Encoded(_without_tasks)

    def before(self, evaluations: Iterable[str]) -> None:
        """Make sure that a reader of the snapshot can follow an event about these evaluations."""
        if self._writer.size_bytes <= EVERY_BYTES:
            return
        unknown = [name for name in evaluations if not self._is_held(name)]
        if unknown:
            self._write(unknown)

    def after(self) -> None:
        """Write a snapshot if the ledger has grown by enough since the last one."""
        if self._writer.size_bytes - self._written_at_bytes > EVERY_BYTES:
            self._write()

    def close(self) -> None:
        """Write the last snapshot of this process, so that readers find little to apply."""
        size_bytes = self._writer.size_bytes
        if size_bytes > EVERY_BYTES and size_bytes != self._written_at_bytes:
            self._write()

    def _is_held(self, name: str) -> bool:
        return name in self._held or self._state.positions[name] >= self._held_from

    def _write(self, also: Sequence[str] = ()) -> None:
        """Write a snapshot; a failure is logged and does no harm."""
        state = self._state
        # Not again at every event, whatever comes of it.
        self._written_at_bytes = self._writer.size_bytes
        try:
            self._writer.lease.check()
            held = _held(state, [*also, *_neighbours(state, also)])
            data = self._encode(held)
            if len(data) > LIMIT_BYTES:
                held = _held(state, also)
                data = self._encode(held)
            if len(data) > LIMIT_BYTES:
                raise _Unfit(f"it would have {len(data)} bytes")
            write_atomically(self._path, data)
        except (OSError, _Unfit, LedgerError) as exc:
            logger.warning("%s is not written, `status` will take longer: %s", self._path, exc)
            return
        self._held = frozenset(held)
        self._held_from = state.totals.get("evaluations", 0)

    def _encode(self, held: Mapping[str, Evaluation]) -> bytes:
        with self._writer.path.open("rb") as file:
            file.seek(self._writer.last_line_at)
            line = file.readline().removesuffix(b"\n")
        seq, fence, crc = _identity(line)
        if (seq, fence) != (self._state.seq, self._state.fence):
            raise _Unfit(f"the ledger's last line is event {seq}, not {self._state.seq}")
        part, at = _part(self._state, held), self._writer.last_line_at
        data: dict[str, object] = {
            "evaluations": self._evaluations.data(part.evaluations),
            "submissions": self._submissions.data(part.submissions),
        }
        rest = (each.name for each in fields(part) if each.name not in data)
        data |= {name: encode(getattr(part, name), named=False) for name in rest}
        snapshot = encode(_File(code=_fingerprint(), last_line_at=at, line_crc=crc, state={}))
        text = json.dumps({**snapshot, "state": data}, separators=(",", ":"), allow_nan=False)
        body = text.encode("ascii")[:-1]
        return body + seal(body) + b"\n"


class _Encoded(Generic[_Record]):
    """Records as JSON data, each of which is encoded once; `shorten` leaves out parts of one."""

    def __init__(self, shorten: Callable[[_Record], _Record]) -> None:
        self._shorten = shorten
        self._known: dict[str, tuple[_Record, object]] = {}

    def data(self, records: Mapping[str, _Record]) -> dict[str, object]:
        """Return the data of some records by their names, and forget all others."""
        known, self._known = self._known, {}
        for name, record in records.items():
            found = known.get(name)
            if found is None or found[0] is not record:
                found = (record, encode(self._shorten(record), named=False))
            self._known[name] = found
        return {name: data for name, (_, data) in self._known.items()}


def _part(state: RunState, held: Mapping[str, Evaluation]) -> RunState:
    """Return what a snapshot holds of a state: all but most of what grows with a run."""
    placed = {*held, *state.waiting, *state.live, *newest_members(state)}
    return replace(
        state,
        evaluations=dict(held),
        submissions=_held_submissions(state),
        repeats={name: names for name, names in state.repeats.items() if name in held},
        told=_newest(state, state.told),
        reported={name: state.reported[name] for name in placed if name in state.reported},
        exchanges=[],
        refused=_newest(state, state.refused),
        members=_newest(state, state.members),
        positions={name: state.positions[name] for name in placed},
        applied_requests={},
        freed_bytes={name: size for name, size in state.freed_bytes.items() if name in held},
        notes=[],
    )


def _held_submissions(state: RunState) -> dict[str, Submission]:
    """Return those that may still be answered, and those with live attempts."""
    live = {attempt.submission for _, attempt in state.live_attempts()}
    costs = {name: state.submissions[name] for name in sorted(live)}
    return costs | {item.id: item for item in state.unanswered()}


def _without_tasks(submission: Submission) -> Submission:
    """Return a submission as far as it is needed: once it was answered, what it costs."""
    is_open = submission.state is SubmissionState.INTENDED
    return submission if is_open else replace(submission, tasks=())


def _newest(state: RunState, table: Mapping[int, Any]) -> dict[int, Any]:
    return {group: table[group] for group in newest_groups(state) if group in table}


def _held(state: RunState, also: Iterable[str]) -> dict[str, Evaluation]:
    """Return the evaluations of a snapshot, in order: the page, the best, and more.

    These are all that are not decided, which events will be about in any order; those that replace
    others, by which `newest_settled` is known; and what was confirmed or confirms it.
    """
    names = {item.id for item in page(state)} | {name for _, _, name in state.leaders} | {*also}
    names.update(state.live, state.waiting)
    newest = (state.evaluations[name] for name in newest_members(state))
    names.update(item.id for item in newest if item.replaces is not None)
    for name, confirmations in state.confirmations.items():
        names |= {name, *confirmations}
    ordered = sorted(names, key=state.positions.__getitem__)
    return {name: state.evaluations[name] for name in ordered}


def _neighbours(state: RunState, names: Sequence[str]) -> list[str]:
    """Return what is likely taken up after these: the next in order, and the next of their kind."""
    found: list[str] = []
    for name in names[:1]:
        start = state.positions[name]
        kind = state.evaluations[name].state
        later = list(islice(state.evaluations.values(), start + 1, None))
        found += [item.id for item in later[:_NEIGHBOURS]]
        found += islice((item.id for item in later if item.state is kind), _NEIGHBOURS)
    return found


def _identity(line: bytes) -> list[Any]:
    try:
        event = decode_line(line)
    except DamagedLine as exc:
        raise LedgerCorrupt(f"there is no event where one ended: {exc}") from exc
    return [event.seq, event.fence, line[-10:-2].decode("ascii")]


@cache
def _fingerprint() -> str:
    """Return the checksum of the modules that make a state of events."""
    package = Path(__file__).parent
    digest = hashlib.sha256((package.parent / "codec.py").read_bytes())
    for name in _MAKERS:
        digest.update((package / f"{name}.py").read_bytes())
    return digest.hexdigest()
