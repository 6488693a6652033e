"""Snapshots: how little is read of a long ledger, and what happens when one cannot be used."""

import io
import json
import logging
import os
import random
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from elmanctl.codec import decode, encode
from elmanctl.errors import LedgerCorrupt
from elmanctl.ledger import snapshot
from elmanctl.ledger.files import write_atomically
from elmanctl.ledger.lease import Lease
from elmanctl.ledger.payloads import decode_payload
from elmanctl.ledger.records import State
from elmanctl.ledger.run_state import RunState
from elmanctl.ledger.snapshot import LIMIT_BYTES, SNAPSHOT_FILE, load_summary
from elmanctl.ledger.state import commit, load_run, prepare, replay
from elmanctl.ledger.store import LEDGER_FILE, LedgerWriter
from elmanctl.ledger.summary import PAGE_ROWS, summarize
from tests.ledger.conftest import run_description

POPULATION = 8

# An eighth of what it is, so that ledgers need not be long.
EVERY_BYTES = snapshot.EVERY_BYTES // 8


class LongRun:
    """A run that grows by whole generations, with a keeper of snapshots."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.path = folder / LEDGER_FILE
        self.lease = Lease.acquire(folder)
        created = LedgerWriter.create(self.path, self.lease, "run_created", run=run_description())
        self.writer = created
        self.state = replay(created.contents.events)
        self.keeper = snapshot.SnapshotKeeper(folder, created, self.state)

    def record(self, kind: str, /, **data: Any) -> None:
        prepared = prepare(self.writer, self.state, decode_payload(kind, data))
        self.keeper.before(prepared.evaluations)
        commit(self.writer, self.state, prepared)
        self.keeper.after()

    def ask(self, count: int = POPULATION) -> list[str]:
        generation = self.state.generation + 1
        names = [f"g{generation:03}-e{index:02}" for index in range(count)]
        point = [generation / 7, 0.123456789, 0.987654321]
        config = {"dim": 512, "lr": 1e-3}
        common = {"point": point, "config": config, "parameters": 10**8, "seed": 1}
        self.record(
            "points_asked",
            generation=generation,
            evaluations=[{"id": name, **common} for name in names],
            refused=1,
            optimizer={"file": "x", "sha256": "0"},
        )
        return names

    def train(self, names: list[str]) -> None:
        for name, attempt in self.submit(names):
            self.finish(name, attempt)

    def submit(self, names: list[str]) -> list[tuple[str, int]]:
        """Submit evaluations at once; return them with the numbers of their attempts."""
        number = f"s{len(self.state.submissions):04}"
        tasks = [
            {"index": i, "evaluation": n, "attempt": 1 + len(self.state.evaluations[n].attempts)}
            for i, n in enumerate(names)
        ]
        intent = {"id": number, "job_name": number, "tasks": tasks, "resources": {}}
        self.record("submission_intended", submission=intent)
        self.record("submission_accepted", submission=number, job_id="7", adopted=False)
        return [(str(task["evaluation"]), int(str(task["attempt"]))) for task in tasks]

    def finish(self, name: str, attempt: int) -> None:
        """Let an attempt complete."""
        loss = 3 - len(self.state.evaluations) / 10**6
        self.record(
            "attempt_finished",
            evaluation=name,
            attempt=attempt,
            verdict={"kind": "completed", "evidence": [{"source": "result", "text": "x" * 80}]},
            result={"loss": loss, "more": "y" * 300},
            size_bytes=1000,
        )
        self.record("evaluation_closed", evaluation=name, state="completed")

    def grow(self, size_bytes: int) -> None:
        while self.path.stat().st_size < size_bytes:
            self.train(self.ask())
            told = [[name, 2.0] for name in self.state.unreported]
            self.record("generation_told", generation=self.state.generation, told=told)

    def close(self) -> None:
        self.keeper.close()
        self.writer.close()
        self.lease.release()


@pytest.fixture
def long_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[LongRun]:
    monkeypatch.setattr(os, "fsync", lambda descriptor: None)
    monkeypatch.setattr(snapshot, "EVERY_BYTES", EVERY_BYTES)
    run = LongRun(tmp_path)
    yield run
    run.close()


@pytest.fixture
def read_bytes(monkeypatch: pytest.MonkeyPatch) -> Callable[[Path], int]:
    """Count what a reader of a summary reads of the run's files, in whatever way it does."""

    def count(folder: Path) -> int:
        total = 0

        class Counting(io.FileIO):
            def readinto(self, buffer: Any) -> int:
                nonlocal total
                got = super().readinto(buffer)
                total += got
                return got

            def readall(self) -> bytes:
                nonlocal total
                data = super().readall()
                total += len(data)
                return data

            def read(self, size: int | None = -1) -> bytes:
                nonlocal total
                data = super().read(-1 if size is None else size)
                total += len(data or b"")
                return data or b""

        def opened(path: Path | int, mode: str = "r", *rest: Any, **named: Any) -> Any:
            assert mode == "rb", "a reader of a run reads bytes"
            return io.BufferedReader(Counting(path if isinstance(path, int) else str(path), "rb"))

        def whole(path: Path) -> bytes:
            with opened(path, "rb") as file:
                return bytes(file.read())

        with monkeypatch.context() as patch:
            patch.setattr(Path, "open", opened)
            patch.setattr(os, "fdopen", opened)
            patch.setattr(Path, "read_bytes", whole)
            summary = load_summary(folder).summary
        assert summary == summarize(load_run(folder).state)
        return total

    return count


def test_summary_of_a_long_ledger_reads_one_megabyte_and_a_bounded_tail(
    long_run: LongRun, read_bytes: Callable[[Path], int]
) -> None:
    read = []
    for times in (2, 5, 10, 20):
        long_run.grow(times * EVERY_BYTES)
        read.append(read_bytes(long_run.folder))
    snapshot_bytes = (long_run.folder / SNAPSHOT_FILE).stat().st_size
    # One event may come before the writer looks again, and Python reads a buffer ahead.
    slack = 4096 + 2 * io.DEFAULT_BUFFER_SIZE
    assert 0 < max(read) < snapshot_bytes + EVERY_BYTES + slack < LIMIT_BYTES + EVERY_BYTES
    assert max(read) < long_run.path.stat().st_size / 10


def test_short_ledger_has_no_snapshot_and_is_checked_whole(long_run: LongRun) -> None:
    long_run.train(long_run.ask())
    long_run.keeper.close()
    assert not (long_run.folder / SNAPSHOT_FILE).exists()
    assert load_summary(long_run.folder).from_snapshot is False


def test_closing_leaves_nothing_for_readers_to_apply(long_run: LongRun) -> None:
    long_run.grow(EVERY_BYTES + 1)
    long_run.record("run_paused", reason="to see")
    long_run.keeper.close()
    loaded = load_summary(long_run.folder)
    assert loaded.from_snapshot and loaded.summary.reason == "to see"
    found = snapshot.read_snapshot(long_run.folder)
    assert found is not None and found[1].seq == long_run.state.seq


def test_old_evaluations_that_are_taken_up_again_are_in_a_snapshot_before(
    long_run: LongRun,
) -> None:
    long_run.grow(2 * EVERY_BYTES)
    written = (long_run.folder / SNAPSHOT_FILE).read_bytes()
    old = [f"g000-e0{index}" for index in range(POPULATION)]
    for name in old:
        long_run.record("evaluation_reopened", evaluation=name, changes={}, by="me")
        loaded = load_summary(long_run.folder)
        assert loaded.from_snapshot
        assert loaded.summary == summarize(load_run(long_run.folder).state)
    assert written != (first := (long_run.folder / SNAPSHOT_FILE).read_bytes())
    long_run.train(old)
    # Its neighbours came with the first one: no snapshot for each.
    assert first == (long_run.folder / SNAPSHOT_FILE).read_bytes()
    page = load_summary(long_run.folder).summary.page
    assert [e.state for e in page] == [State.COMPLETED] * len(page)


def test_live_evaluations_end_in_any_order_without_a_snapshot_for_each(
    long_run: LongRun, monkeypatch: pytest.MonkeyPatch
) -> None:
    names = long_run.ask(PAGE_ROWS + 500)
    long_run.submit(names)
    written: list[int] = []

    def counted(path: Path, data: bytes) -> None:
        written.append(len(data))
        write_atomically(path, data)

    monkeypatch.setattr(snapshot, "write_atomically", counted)
    before_bytes = long_run.path.stat().st_size
    # Every third one; more than half of the first of them are no longer on the page.
    for name in random.Random(1).sample(names, len(names) // 3):
        long_run.finish(name, 1)
    grown = (long_run.path.stat().st_size - before_bytes) // EVERY_BYTES
    assert 3 < len(written) <= grown + 1 and max(written) < LIMIT_BYTES
    loaded = load_summary(long_run.folder)
    assert loaded.from_snapshot
    assert loaded.summary == summarize(load_run(long_run.folder).state)


def test_page_has_a_limit_of_rows(long_run: LongRun) -> None:
    long_run.ask(PAGE_ROWS + 5)
    long_run.record("note", text="x")
    summary = load_summary(long_run.folder).summary
    assert summary.count("evaluations") == PAGE_ROWS + 5
    assert [e.id for e in summary.page] == list(long_run.state.evaluations)[5:]
    assert (long_run.folder / SNAPSHOT_FILE).stat().st_size < LIMIT_BYTES


def test_damaged_snapshot_is_passed_over(long_run: LongRun) -> None:
    long_run.grow(EVERY_BYTES + 1)
    long_run.keeper.close()
    path = long_run.folder / SNAPSHOT_FILE
    good = path.read_bytes()
    for bad in (b"", good[:-1], good[: len(good) // 2], good.replace(b"0", b"1", 1), b"{}\n"):
        path.write_bytes(bad)
        loaded = load_summary(long_run.folder)
        assert not loaded.from_snapshot
        assert loaded.summary == summarize(long_run.state)


def test_snapshot_of_other_code_is_passed_over(
    long_run: LongRun, monkeypatch: pytest.MonkeyPatch
) -> None:
    long_run.grow(EVERY_BYTES + 1)
    assert load_summary(long_run.folder).from_snapshot
    monkeypatch.setattr(snapshot, "_fingerprint", lambda: "other code")
    assert not load_summary(long_run.folder).from_snapshot


def test_snapshot_of_another_ledger_is_passed_over(long_run: LongRun, tmp_path: Path) -> None:
    """As when the ledger was copied from a backup and went on."""
    long_run.grow(EVERY_BYTES + 1)
    backup = long_run.path.read_bytes()
    long_run.train(long_run.ask())
    long_run.record("note", text="after the backup")
    long_run.keeper.close()
    long_run.path.write_bytes(backup)
    loaded = load_summary(long_run.folder)
    assert not loaded.from_snapshot
    assert loaded.summary == summarize(load_run(tmp_path).state)


def test_snapshot_that_cannot_be_written_is_logged_and_does_no_harm(
    long_run: LongRun, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def full(path: Path, data: bytes) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(snapshot, "write_atomically", full)
    with caplog.at_level(logging.WARNING):
        long_run.grow(2 * EVERY_BYTES)
    assert "No space left on device" in caplog.text
    assert not (long_run.folder / SNAPSHOT_FILE).exists()
    assert load_summary(long_run.folder).summary == summarize(long_run.state)


def test_states_come_back_whole_from_their_short_form(long_run: LongRun) -> None:
    long_run.train(long_run.ask())
    long_run.ask()
    short = json.loads(json.dumps(encode(long_run.state, named=False)))
    assert decode(RunState, short, "state", LedgerCorrupt, named=False) == long_run.state
