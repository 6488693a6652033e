"""Whatever legal thing happens to a run, in whatever order: its file tells the same story."""

import math
import os
import random
import tempfile
from collections import Counter
from copy import deepcopy
from pathlib import Path
from typing import Any

from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from elmanctl.errors import LedgerError
from elmanctl.ledger.contents import read_events
from elmanctl.ledger.events import (
    DamagedLine,
    Event,
    MalformedEvent,
    decode_line,
    encode_event,
    to_plain,
)
from elmanctl.ledger.lease import LEASE_FILE, Lease
from elmanctl.ledger.payloads import Note, decode_payload
from elmanctl.ledger.records import Evaluation, State, VerdictKind
from elmanctl.ledger.run_state import RunState
from elmanctl.ledger.state import apply, load_run, replay
from elmanctl.ledger.store import LEDGER_FILE, LedgerWriter
from elmanctl.ledger.submissions import SubmissionState
from tests.ledger.conftest import record

NUMBERS = st.floats(allow_nan=False, allow_infinity=False) | st.integers(-(2**70), 2**70)
JSON = st.recursive(
    st.none() | st.booleans() | NUMBERS | st.text(),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(), inner, max_size=3),
    max_leaves=8,
)
DICE = st.integers(0, 2**32)

# Thousands of syncs: in memory they cost nothing, and what is tested here is not the disk.
SCRATCH = "/dev/shm"

RUN = {
    "name": "e88-tiny",
    "token": "a1b2c3d4",
    "model": "E88",
    "executor": "local",
    **{key: {} for key in ("settings", "space", "start", "optimizer", "data", "protocol")},
    "budget": {"generations": 1},
    "code": {"sha256": "0"},
    "versions": {},
}
VERDICTS = [kind.value for kind in VerdictKind if kind is not VerdictKind.COMPLETED]


@given(
    seq=st.integers(1, 2**40),
    fence=st.integers(1, 2**40),
    kind=st.text(),
    data=st.dictionaries(st.text(), JSON, max_size=4),
)
def test_any_event_survives_its_line(seq: int, fence: int, kind: str, data: dict[str, Any]) -> None:
    event = Event(seq=seq, at="2026-05-01T10:00:00.000Z", fence=fence, kind=kind, data=data)
    line = encode_event(event)
    assert line.count(b"\n") == 1 and line.isascii()
    assert decode_line(line[:-1]) == event
    assert to_plain(data, "data") == data


@given(line=st.binary(max_size=300))
def test_no_bytes_pass_for_an_event_by_accident(line: bytes) -> None:
    try:
        decode_line(line)
    except (DamagedLine, MalformedEvent):
        return
    raise AssertionError("random bytes were read as an event")


class Run(RuleBasedStateMachine):
    """A run that is searched, torn, killed and taken over; `state` is what ought to be known."""

    def __init__(self) -> None:
        super().__init__()
        self._scratch = tempfile.TemporaryDirectory(dir=SCRATCH)
        self.folder = Path(self._scratch.name)
        self.path = self.folder / LEDGER_FILE
        self.lease = Lease.acquire(self.folder)
        self.writer = LedgerWriter.create(self.path, self.lease, "run_created", run=RUN)
        self.state = replay(self.writer.contents.events)
        self.requests = 0
        self.late_events = 0

    def teardown(self) -> None:
        self.writer.close()
        self.lease.release()
        self._scratch.cleanup()

    def tell(self, kind: str, /, **data: object) -> None:
        record(self.writer, self.state, decode_payload(kind, data))

    def choose(self, dice: int, *states: State, live: bool | None = None) -> Evaluation | None:
        fitting = [
            evaluation
            for evaluation in self.state.evaluations.values()
            if evaluation.state in states and live in (None, evaluation.has_live_attempt)
        ]
        return random.Random(dice).choice(fitting) if fitting else None

    def intended(self) -> list[str]:
        return [
            submission.id
            for submission in self.state.submissions.values()
            if submission.state is SubmissionState.INTENDED
        ]

    @initialize(pid=st.integers(1, 1000))
    def controller_starts(self, pid: int) -> None:
        self.tell("controller_started", host="login", pid=pid)

    @rule(count=st.integers(1, 3), opens=st.booleans(), number=NUMBERS)
    def ask_points(self, count: int, opens: bool, number: float) -> None:
        generation = self.state.generation
        if opens or generation < 0 or generation in self.state.told:
            generation += 1
        first = len(self.state.evaluations)
        searched = [e for e in self.state.evaluations.values() if e.confirms is None]
        originals = [e.id for e in searched if e.repeats is None]
        self.tell(
            "points_asked",
            generation=generation,
            evaluations=[
                {
                    "id": f"g{generation:03}-e{first + index:02}",
                    "point": [number, index],
                    "config": {"dim": index, "lr": 1e-3},
                    "parameters": index,
                    "seed": 1,
                    **({"repeats": originals[index]} if index < len(originals) else {}),
                }
                for index in range(count)
            ],
            refused=count,
            optimizer={"file": f"{first}", "sha256": "0"},
        )

    @rule(dice=DICE, count=st.integers(1, 3))
    def confirm(self, dice: int, count: int) -> None:
        chosen = self.choose(dice, State.COMPLETED)
        if chosen is None or chosen.confirms is not None:
            return
        first = len(self.state.evaluations)
        plan = {
            "point": [0.0],
            "config": chosen.hyperparameters,
            "parameters": chosen.parameters,
            "confirms": chosen.id,
        }
        self.tell(
            "confirmation_asked",
            evaluations=[
                {"id": f"c000-e{first + index:02}", "seed": 2 + first + index, **plan}
                for index in range(count)
            ],
        )

    @rule(dice=DICE, loss=st.floats(0, 9), seconds=st.floats(0, 1e6))
    def answer_repeat(self, dice: int, loss: float, seconds: float) -> None:
        waiting = [
            evaluation
            for evaluation in self.state.evaluations.values()
            if evaluation.repeats
            and evaluation.state is State.CREATED
            and not evaluation.has_live_attempt
        ]
        if waiting:
            chosen = random.Random(dice).choice(waiting)
            ends: list[dict[str, Any]] = [
                {"state": "completed", "verdict": "completed", "loss": loss},
                {"state": "failed", "verdict": "diverged", "step": 3},
                {"state": "cancelled"},
            ]
            self.tell(
                "evaluation_answered",
                evaluation=chosen.id,
                by=chosen.repeats,
                **random.Random(dice).choice(ends),
                saved={"elapsed_s": seconds, "device_s": 2 * seconds},
            )

    @rule(dice=DICE)
    def intend(self, dice: int) -> None:
        waiting = [
            evaluation
            for evaluation in self.state.evaluations.values()
            if evaluation.state is State.CREATED and not evaluation.has_live_attempt
        ]
        chosen = [e for e in waiting if random.Random(f"{dice} {e.id}").random() < 0.7]
        name = f"s{len(self.state.submissions)}"
        tasks = [
            {"index": index, "evaluation": e.id, "attempt": len(e.attempts) + 1}
            for index, e in enumerate(chosen)
        ]
        submission = {"id": name, "job_name": name, "tasks": tasks, "resources": {}}
        self.tell("submission_intended", submission=submission)

    @precondition(lambda self: self.intended())
    @rule(dice=DICE, answer=st.sampled_from(["accepted", "refused", "abandoned"]))
    def scheduler_answers(self, dice: int, answer: str) -> None:
        name = random.Random(dice).choice(self.intended())
        told = {"job_id": "7", "adopted": False} if answer == "accepted" else {"error": "no"}
        self.tell(f"submission_{answer}", submission=name, **told)

    @rule(dice=DICE)
    def attempt_starts(self, dice: int) -> None:
        chosen = self.choose(dice, *State, live=True)
        if chosen is not None:
            number = chosen.attempts[-1].number
            self.tell("attempt_started", evaluation=chosen.id, attempt=number)

    @rule(dice=DICE, loss=st.none() | st.floats(0, 9), size_bytes=st.integers(0, 10**12))
    def attempt_ends(self, dice: int, loss: float | None, size_bytes: int) -> None:
        chosen = self.choose(dice, *State, live=True)
        if chosen is not None:
            kind = random.Random(dice).choice(VERDICTS) if loss is None else "completed"
            self.tell(
                "attempt_finished",
                evaluation=chosen.id,
                attempt=chosen.attempts[-1].number,
                verdict={"kind": kind, "evidence": []},
                result=None if loss is None else {"loss": loss},
                size_bytes=size_bytes,
                elapsed_s=dice / 1000,
            )

    @rule(dice=DICE)
    def close(self, dice: int) -> None:
        chosen = self.choose(dice, State.CREATED, live=False)
        if chosen is not None:
            state = State.FAILED if chosen.loss is None else State.COMPLETED
            self.tell("evaluation_closed", evaluation=chosen.id, state=state)

    @rule(dice=DICE)
    def cancel(self, dice: int) -> None:
        chosen = self.choose(dice, State.CREATED, State.SUBMITTED, State.RUNNING)
        if chosen is not None:
            self.tell("evaluation_closed", evaluation=chosen.id, state="cancelled")

    @rule(dice=DICE, changes=st.dictionaries(st.sampled_from(["mem_gb", "x"]), JSON, max_size=2))
    def reopen(self, dice: int, changes: dict[str, Any]) -> None:
        finished = (State.FAILED, State.CANCELLED, State.COMPLETED)
        chosen = self.choose(dice, *finished, live=False)
        if chosen is not None:
            self.tell("evaluation_reopened", evaluation=chosen.id, changes=changes, by="me")

    @rule(dice=DICE, fitness=NUMBERS)
    def report(self, dice: int, fitness: float) -> None:
        """As in an asynchronous search, where generations may end in any order."""
        unreported = list(self.state.unreported)
        if unreported:
            name = unreported[dice % len(unreported)]
            self.tell("value_reported", evaluation=name, value=fitness)
            assert name in self.state.reported and name not in self.state.unreported

    @rule(dice=DICE, fitness=NUMBERS)
    def tell_generation(self, dice: int, fitness: float) -> None:
        if self.state.open:
            generation = [*self.state.open][dice % len(self.state.open)]
            members = [e.id for e in self.state.generation_members(generation)]
            told = [[name, fitness] for name in members if name not in self.state.reported]
            self.tell("generation_told", generation=generation, told=told)
            assert generation in self.state.told and generation not in self.state.open

    @rule(dice=DICE, answer=st.dictionaries(st.text(), JSON, max_size=2))
    def small_events(self, dice: int, answer: dict[str, Any]) -> None:
        self.requests += 1
        kinds: list[tuple[str, dict[str, Any]]] = [
            ("run_paused", {"reason": "x"}),
            ("run_interrupted", {}),
            ("run_finished", {"reason": "x"}),
            ("run_cancelled", {}),
            ("run_extended", {"generations": self.state.generations + 1}),
            ("controller_started", {"host": "h", "pid": 1}),
            ("note", {"text": "ü\n"}),
            ("cleaned", {"kind": "logs", "freed_bytes": 1, "files": 1}),
            ("request_applied", {"request": f"{self.requests}", "command": "c", "answer": answer}),
        ]
        kind, data = random.Random(dice).choice(kinds)
        self.tell(kind, **data)

    @rule(dice=DICE)
    def impossible_events_change_nothing(self, dice: int) -> None:
        before = (self.path.read_bytes(), deepcopy(self.state))
        kinds: list[tuple[str, dict[str, Any]]] = [
            ("run_created", {"run": RUN}),
            ("evaluation_closed", {"evaluation": "none", "state": "failed"}),
            ("note", {}),
        ]
        kind, data = random.Random(dice).choice(kinds)
        try:
            self.tell(kind, **data)
        except LedgerError:
            assert (self.path.read_bytes(), self.state) == before
        else:
            raise AssertionError(f"{kind} was accepted")

    @rule()
    def controller_is_replaced(self) -> None:
        self._take_over()

    @rule(kept=st.integers(0, 10**6))
    def controller_is_killed_while_it_writes(self, kept: int) -> None:
        line = self.writer.draft("note", text="torn").line
        torn = line[: kept % (len(line) - 1)]
        with self.path.open("ab") as file:
            file.write(torn)
        contents = read_events(self.path)
        assert contents.torn == torn
        assert replay(contents.events) == self.state
        self._take_over()
        if torn:
            assert torn in [path.read_bytes() for path in self.folder.glob("ledger.torn-*")]

    @rule(first=st.booleans())
    def deposed_controller_wakes_up_late(self, first: bool) -> None:
        """Its event lands before the first event of the new one, or after it; neither counts."""
        late = self.writer.draft("note", text="late").line
        lease = self.folder / LEASE_FILE
        lease.write_bytes(lease.read_bytes().replace(b'"pid_start": ', b'"pid_start": 1'))
        self._take_over()
        if not first:
            self.tell("note", text="new")
        with self.path.open("ab") as file:
            file.write(late)
        if first:
            self.tell("note", text="new")
        self.late_events += 1

    def _take_over(self) -> None:
        self.writer.close()
        self.lease.release()
        self.lease = Lease.acquire(self.folder, minimum_fence=self.state.fence)
        self.writer = LedgerWriter(self.path, self.lease)
        assert replay(self.writer.contents.events) == self.state

    @invariant()
    def the_file_tells_the_same_story(self) -> None:
        loaded = load_run(self.folder)
        assert loaded.state == self.state
        assert (loaded.warning is not None) is (self.late_events > 0)

    @invariant()
    def the_state_makes_sense(self) -> None:
        state = self.state
        assert sum(state.counts().values()) == len(state.evaluations)
        for evaluation in state.evaluations.values():
            live = [a for a in evaluation.attempts if not a.state.is_finished]
            assert live in ([], [evaluation.last_attempt])
            numbers = [a.number for a in evaluation.attempts]
            assert numbers == list(range(1, len(numbers) + 1))
            if evaluation.state in (State.SUBMITTED, State.RUNNING):
                assert live

    @invariant()
    def the_running_sums_are_those_of_the_records(self) -> None:
        state = self.state
        ended = [a for e in state.evaluations.values() for a in e.attempts if a.verdict]
        by_kind = Counter(a.verdict.kind.value for a in ended if a.verdict)
        assert {kind: spent.attempts for kind, spent in state.spent.items()} == by_kind
        total_s = math.fsum(a.elapsed_s or 0.0 for a in ended)
        for sums in ("elapsed_s", "device_s"):
            spent_s = math.fsum(getattr(spent, sums) for spent in state.spent.values())
            assert math.isclose(spent_s, total_s, abs_tol=1e-6)
        assert state.trained == sum(bool(e.attempts) for e in state.evaluations.values())
        repeats = [name for names in state.repeats.values() for name in names]
        asked = [e.id for e in state.evaluations.values() if e.repeats is not None]
        assert sorted(repeats) == sorted(asked)
        confirmations = [name for names in state.confirmations.values() for name in names]
        again = [e for e in state.evaluations.values() if e.confirms is not None]
        assert sorted(confirmations) == sorted(e.id for e in again)
        assert state.totals.get("confirmations", 0) == len(again)
        decided = state.totals.get("confirmations_decided", 0)
        assert decided == sum(e.state.is_finished for e in again)
        assert not {e.id for e in again} & {e.id for e in state.ranked()}
        assert state.wall_s >= 0


TestRun = Run.TestCase
TestRun.settings = settings(max_examples=50, stateful_step_count=25, deadline=None)


@settings(max_examples=40, deadline=None)
@given(seed=DICE)
def test_prefix_of_a_ledger_is_the_state_of_that_moment(seed: int) -> None:
    """Cut anywhere, the file tells what was known when its last whole event was written."""
    dice = random.Random(seed)
    with tempfile.TemporaryDirectory(dir=SCRATCH) as scratch:
        folder = Path(scratch)
        path = folder / LEDGER_FILE
        states = [RunState()]
        lease = Lease.acquire(folder)
        with lease, LedgerWriter.create(path, lease, "run_created", run=RUN) as writer:
            state = replay(writer.contents.events)
            states.append(deepcopy(state))
            for _ in range(dice.randrange(5)):
                record(writer, state, Note(text="x" * dice.randrange(50)))
                states.append(deepcopy(state))
        cut = dice.randrange(path.stat().st_size + 1)
        os.truncate(path, cut)
        loaded = load_run(folder)
        assert loaded.state in states
        again = RunState()
        for event in read_events(path).events:
            apply(again, event)
        assert again == loaded.state == states[loaded.state.seq]
