"""A snapshot and the rest of a ledger tell what the whole ledger does, whatever happened."""

import random

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import invariant, precondition, rule

from elmanctl.ledger import snapshot
from elmanctl.ledger.payloads import decode_payload
from elmanctl.ledger.snapshot import SNAPSHOT_FILE, SnapshotKeeper, load_summary
from elmanctl.ledger.state import commit, load_run, prepare
from elmanctl.ledger.summary import PAGE_ROWS, summarize
from tests.properties.test_ledger import DICE, Run


class SnapshotRun(Run):
    """A run whose snapshots are written, lost, damaged, and put back, at any instant."""

    def __init__(self) -> None:
        super().__init__()
        # Also of ledgers as short as these.
        self._patch = pytest.MonkeyPatch()
        self._patch.setattr(snapshot, "EVERY_BYTES", 0)
        self._patch.setattr(snapshot, "_NEIGHBOURS", 1)
        self._keep()
        self.old: list[bytes] = []
        self.must_fit = False

    def teardown(self) -> None:
        self._patch.undo()
        super().teardown()

    def _keep(self) -> None:
        self.keeper = SnapshotKeeper(self.folder, self.writer, self.state)

    def tell(self, kind: str, /, **data: object) -> None:
        prepared = prepare(self.writer, self.state, decode_payload(kind, data))
        self.keeper.before(prepared.evaluations)
        commit(self.writer, self.state, prepared)

    def _take_over(self) -> None:
        super()._take_over()
        self._keep()

    @rule()
    def snapshot_is_written(self) -> None:
        self.tell("note", text="the ledger grows")
        self.keeper.after()
        self.old.append((self.folder / SNAPSHOT_FILE).read_bytes())
        self.must_fit = True

    @precondition(lambda self: self.old)
    @rule(dice=DICE)
    def deposed_writer_puts_an_old_snapshot_back(self, dice: int) -> None:
        (self.folder / SNAPSHOT_FILE).write_bytes(random.Random(dice).choice(self.old))
        self.must_fit = False

    @precondition(lambda self: self.old)
    @rule(at=st.integers(0, 10**6), bit=st.integers(0, 7))
    def snapshot_is_damaged(self, at: int, bit: int) -> None:
        raw = bytearray((self.folder / SNAPSHOT_FILE).read_bytes())
        raw[at % len(raw)] ^= 1 << bit
        (self.folder / SNAPSHOT_FILE).write_bytes(raw)
        self.must_fit = False

    @invariant()
    def the_snapshot_tells_the_same_story(self) -> None:
        loaded = load_summary(self.folder)
        assert loaded.summary == summarize(load_run(self.folder).state)
        if self.must_fit:
            assert loaded.from_snapshot

    @invariant()
    def the_totals_are_those_counted_anew(self) -> None:
        state, summary = self.state, summarize(self.state)
        ranked = state.ranked()
        assert sum(summary.counts().values()) == len(state.evaluations)
        assert summary.size_bytes == sum(map(state.size_of, state.evaluations.values()))
        assert summary.refused_share == state.refused_share
        assert (summary.best and summary.best[2]) == (ranked[0].id if ranked else None)
        assert [e.id for e in state.waiting_evaluations()] == [
            e.id
            for e in state.evaluations.values()
            if not e.has_live_attempt and not e.state.is_finished
        ]
        assert [e.id for e, _ in state.live_attempts()] == [
            e.id for e in state.evaluations.values() if e.has_live_attempt
        ]
        assert [e.id for e in summary.page] == [
            e.id
            for e in state.evaluations.values()
            if e.generation >= state.generation - 1
            or e.generation in state.open
            or e.confirms is not None
            or not e.state.is_finished
            or e.has_live_attempt
        ][-PAGE_ROWS:]
        for generation in range(state.generation + 1):
            assert [e.id for e in state.generation_members(generation)] == [
                e.id for e in state.evaluations.values() if e.generation == generation
            ]


TestSnapshotRun = SnapshotRun.TestCase
TestSnapshotRun.settings = settings(max_examples=30, stateful_step_count=25, deadline=None)
