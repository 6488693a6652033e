"""`ledger verify`, `repair` and `export`, and what a search makes of a ledger that was repaired."""

import csv
import io
import json
import os
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from elmanctl.ledger.events import decode_line, encode_event
from elmanctl.ledger.lease import LEASE_FILE, Lease
from elmanctl.ledger.records import RunStatus, State
from elmanctl.ledger.run_state import RunState
from elmanctl.ledger.state import load_run
from tests.cli.conftest import Snapshot
from tests.command_line import CommandLine, QuickCommandLine
from tests.search.scripted import Run, Runs

AGAINST = {"evaluation": "g000-e00", "attempt": 1}


@pytest.fixture
def ended(
    quick: QuickCommandLine, elmanctl: CommandLine, corpus: Path, monkeypatch: pytest.MonkeyPatch
) -> Run:
    """A finished search of two generations in the folder of the command line."""
    monkeypatch.setattr(os, "fsync", lambda descriptor: None)
    (elmanctl.folder / "templates").mkdir()
    run = Runs(elmanctl.folder / "runs", corpus, elmanctl.folder / "templates").new(name="ended")
    assert run.drive().status is RunStatus.FINISHED
    return run


def lines(run: Run) -> list[bytes]:
    return run.paths.ledger.read_bytes().splitlines(keepends=True)


def number_of(run: Run, kind: str, **data: Any) -> int:
    """Return the line of the first event of a kind with these data."""
    for number, line in enumerate(lines(run), start=1):
        event = decode_line(line.rstrip(b"\n"))
        if event.kind == kind and all(event.data.get(key) == data[key] for key in data):
            return number
    raise AssertionError(f"no {kind} in the ledger")


def damage(run: Run, number: int) -> None:
    """Change one bit in the middle of a line."""
    found = lines(run)
    line = bytearray(found[number - 1])
    line[len(line) // 2] ^= 1
    found[number - 1] = bytes(line)
    run.paths.ledger.write_bytes(b"".join(found))


def test_intact_run_is_called_so(quick: QuickCommandLine, ended: Run, snapshot: Snapshot) -> None:
    before = snapshot()
    done = quick("ledger", "verify")
    assert (done.returncode, done.stdout.split(",")[0]) == (0, "ended: intact")
    told = json.loads(quick("ledger", "verify", "ended", "--json").stdout)
    assert (told["intact"], told["findings"]) == (True, [])
    assert told["evaluations"] == 8 and told["events"] == len(lines(ended))
    assert quick("ledger", "repair").stdout == "ended: nothing to repair\n"
    assert snapshot() == before


def test_every_fault_is_named_with_its_place(
    quick: QuickCommandLine, ended: Run, snapshot: Snapshot
) -> None:
    damage(ended, 7)
    damage(ended, 11)
    (ended.paths.attempt("g000-e00", 1).spec).unlink()
    (ended.folder / LEASE_FILE).write_text("{", encoding="utf-8")
    before = snapshot()
    done = quick("ledger", "verify", "--json")
    assert done.returncode == 1
    found = {(each["file"], each["line"]) for each in json.loads(done.stdout)["findings"]}
    assert {("ledger.jsonl", 7), ("ledger.jsonl", 11), ("lease.json", None)} <= found
    assert ("evaluations/g000-e00/attempt-1/spec.json", None) in found
    table = quick("ledger", "verify")
    assert table.returncode == 1
    assert "ledger.jsonl\t7\tthe checksum does not match" in table.stdout.splitlines()
    assert snapshot() == before


def test_result_that_is_not_the_one_on_record_is_found(quick: QuickCommandLine, ended: Run) -> None:
    path = ended.paths.attempt("g001-e02", 1).result
    other = {**json.loads(path.read_text(encoding="utf-8")), "loss": 1.5}
    path.write_text(json.dumps(other), encoding="utf-8")
    ended.paths.attempt("g001-e03", 1).result.unlink()
    done = quick("ledger", "verify", "--json")
    texts = {each["file"]: each["text"] for each in json.loads(done.stdout)["findings"]}
    assert set(texts) == {f"evaluations/g001-e0{i}/attempt-1/result.json" for i in (2, 3)}
    assert "its loss is 1.5" in texts["evaluations/g001-e02/attempt-1/result.json"]


def test_gap_and_impossible_event_are_faults(quick: QuickCommandLine, ended: Run) -> None:
    found = lines(ended)
    number = number_of(ended, "generation_told")
    ended.paths.ledger.write_bytes(b"".join([*found[: number - 1], *found[number:]]))
    done = quick("ledger", "verify")
    assert f"ledger.jsonl\t{number}\tevent {number + 1} stands where event {number} belongs" in (
        done.stdout.splitlines()
    )
    event = decode_line(found[number - 1].rstrip(b"\n"))
    impossible = encode_event(replace(event, data={**event.data, "generation": 9}))
    ended.paths.ledger.write_bytes(b"".join([*found[: number - 1], impossible, *found[number:]]))
    done = quick("ledger", "verify")
    assert done.returncode == 1 and f"ledger.jsonl\t{number}\tevent {number} " in done.stdout


@pytest.mark.parametrize("kind", ["points_asked", "submission_accepted", "generation_told"])
def test_search_goes_on_after_a_repair_to_the_same_end(
    quick: QuickCommandLine, ended: Run, kind: str
) -> None:
    whole = ended.paths.ledger.read_bytes()
    undisturbed = load_run(ended.folder).state
    damage(ended, number_of(ended, kind, **({"generation": 1} if kind == "points_asked" else {})))
    broken = ended.paths.ledger.read_bytes()
    assert quick("resume", "ended").returncode == 1
    planned = quick("ledger", "repair", "--dry-run")
    assert planned.returncode == 0
    assert ended.paths.ledger.read_bytes() == broken != whole
    done = quick("ledger", "repair", "--yes")
    assert done.returncode == 0, done.stderr
    assert [path.read_bytes() for path in ended.folder.glob("ledger.damaged-*")] == [broken]
    trained = dict(ended.world.trained)
    state = ended.drive()
    assert state.status is RunStatus.FINISHED
    assert points(state) == points(undisturbed) and state.told == undisturbed.told
    assert {e.state for e in state.evaluations.values()} == {State.COMPLETED}
    first = [name for name, _ in trained if name.startswith("g000")]
    # Their intents are before the damage, so their results are found and not paid again.
    assert all(ended.world.trained[name, 1] == 1 for name in first)
    assert quick("ledger", "verify").returncode == 0


def points(state: RunState) -> dict[str, tuple[float, ...]]:
    return {e.id: e.point for e in state.evaluations.values()}


def test_repair_says_what_is_no_longer_known(quick: QuickCommandLine, ended: Run) -> None:
    damage(ended, number_of(ended, "generation_told"))
    told = json.loads(quick("ledger", "repair", "--dry-run", "--json").stdout)
    assert told["repaired"] is False and told["damage"]["text"] == "the checksum does not match"
    assert told["lost_evaluations"] == [f"g001-e0{i}" for i in range(4)]
    assert told["lost_submissions"] == ["s0002"]
    assert len(told["unknown_jobs"]) == 1 and told["unknown_jobs"][0].endswith("-s0002")
    folders = [f"evaluations/g001-e0{i}/attempt-1" for i in range(4)]
    assert told["unknown_attempts"] == told["unknown_results"] == folders
    assert "scancel --name=elman-ended-" in quick("ledger", "repair", "--dry-run").stderr
    assert quick("ledger", "repair", "--yes").returncode == 0
    for folder in folders:
        (moved,) = (ended.folder / folder).parent.glob("lost-attempt-1-*")
        assert (moved / "result.json").is_file()
    assert "s0003" in ended.drive().submissions


def test_submission_intended_after_the_damage_is_looked_up(
    quick: QuickCommandLine, ended: Run
) -> None:
    """Only a remark before it is damaged: its jobs are found by name and not paid again."""
    number = number_of(ended, "submission_intended")
    found = lines(ended)
    events = [decode_line(line.rstrip(b"\n")) for line in found[number - 1 :]]
    kept = replace(events[0], kind="note", data={"text": "a remark"})
    moved = [encode_event(replace(event, seq=event.seq + 1)) for event in events]
    ended.paths.ledger.write_bytes(b"".join([*found[: number - 1], encode_event(kept), *moved]))
    assert quick("ledger", "verify").returncode == 0
    damage(ended, number)
    told = json.loads(quick("ledger", "repair", "--yes", "--json").stdout)
    assert told["looked_up_later"] == ["s0001"]
    assert ended.drive().status is RunStatus.FINISHED
    assert all(ended.world.trained[f"g000-e0{i}", 1] == 1 for i in range(4))


def test_torn_tail_is_saved_and_cut(quick: QuickCommandLine, ended: Run) -> None:
    raw = ended.paths.ledger.read_bytes()
    ended.paths.ledger.write_bytes(raw + b'{"v":1,"seq":')
    assert quick("ledger", "verify").returncode == 0
    assert quick("ledger", "repair", "--yes").returncode == 0
    assert ended.paths.ledger.read_bytes() == raw
    assert [p.read_bytes() for p in ended.folder.glob("ledger.torn-*")] == [b'{"v":1,"seq":']


def test_repair_is_refused_while_a_controller_is_alive(
    quick: QuickCommandLine, ended: Run, snapshot: Snapshot
) -> None:
    damage(ended, 5)
    with Lease.acquire(ended.folder):
        before = snapshot()
        done = quick("ledger", "repair", "--yes")
        assert done.returncode == 1 and "the run is held by process" in done.stderr
        assert snapshot() == before


def test_damaged_lease_is_named_with_what_to_do_and_hides_no_run(
    quick: QuickCommandLine, ended: Run
) -> None:
    (ended.folder / LEASE_FILE).write_text("{", encoding="utf-8")
    damage(ended, 5)
    done = quick("ledger", "repair", "--yes")
    assert done.returncode == 1
    assert "lease.json is damaged" in done.stderr and "remove the file" in done.stderr
    damage(ended, 5)
    for words in (("status",), ("status", "ended")):
        shown = quick(*words)
        assert shown.returncode == 0 and "lease.json is damaged" in shown.stderr
        assert "g001-e03" in shown.stdout or "ended\tfinished" in shown.stdout


def test_nothing_can_be_kept_without_the_first_event(quick: QuickCommandLine, ended: Run) -> None:
    damage(ended, 1)
    done = quick("ledger", "repair", "--yes")
    assert done.returncode == 1 and "backup" in done.stderr
    assert not list(ended.folder.glob("ledger.damaged-*"))


def test_repair_asks_first(quick: QuickCommandLine, ended: Run, snapshot: Snapshot) -> None:
    damage(ended, 5)
    before = snapshot()
    assert quick("ledger", "repair").returncode == 2
    assert snapshot() == before


def test_export_holds_every_evaluation(quick: QuickCommandLine, ended: Run) -> None:
    state = load_run(ended.folder).state
    told = json.loads(quick("ledger", "export").stdout)
    assert (told["version"], told["run"]["name"], told["status"]) == (1, "ended", "finished")
    by_name = {item["evaluation"]: item for item in told["evaluations"]}
    assert list(by_name) == list(state.evaluations)
    for evaluation in state.evaluations.values():
        item = by_name[evaluation.id]
        assert item["loss"] == evaluation.loss and item["point"] == list(evaluation.point)
        assert item["attempts"][0]["verdict"]["kind"] == "completed"
    out = quick.folder / "out.csv"
    assert quick("ledger", "export", "--csv", "--out", str(out)).returncode == 0
    rows = list(csv.DictReader(io.StringIO(out.read_text(encoding="utf-8"))))
    assert [row["evaluation"] for row in rows] == list(state.evaluations)
    assert [float(row["loss"]) for row in rows] == [e.loss for e in state.evaluations.values()]
    assert quick("ledger", "export", "--csv", "--out", str(out)).returncode == 2
