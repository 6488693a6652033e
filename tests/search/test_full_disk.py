"""A disk that is really full: the search pauses, commands work, nothing is lost or repeated."""

import errno
import os
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from elmanctl.cli import controller, run_client
from elmanctl.errors import EnvironmentNotReady, LedgerError, SearchPaused
from elmanctl.ledger import files
from elmanctl.ledger.disk import space_of
from elmanctl.ledger.files import encode_json
from elmanctl.ledger.payloads import Payload
from elmanctl.ledger.records import RunStatus, State
from elmanctl.ledger.reserve import PART_BYTES, RESERVE_FOLDER, full_disk, parts_held, write_over
from elmanctl.ledger.run_state import RunState
from elmanctl.ledger.state import load_run
from elmanctl.ledger.submissions import Submission
from elmanctl.run.paths import AttemptPaths
from elmanctl.schedulers.submission import write_pickles
from elmanctl.search import dispatch
from elmanctl.search.cleaning import plan_cleaning, retention
from elmanctl.search.effective_settings import effective_settings
from elmanctl.search.plan import plan_search
from elmanctl.search.request_schema import CleanRequest
from elmanctl.search.run_creation import create_run
from elmanctl.search.session import Session
from tests.integration.runs import losses, points
from tests.search import scripted
from tests.search.scripted import MODEL, Run, Runs, ScriptedExecutor

pytestmark = pytest.mark.usefixtures("no_power_failures")

NO_FLOOR = {"floor_gb": 0.0, "floor_inodes": 0, "keep_models": 0}
Tmpfs = Callable[..., Path]


class WritingExecutor(ScriptedExecutor):
    """Writes what a real one writes before it submits; quick to be asked again."""

    name = "local"

    def submit(self, submission: Submission, folder: Path) -> str:
        folder.mkdir(parents=True, exist_ok=True)
        write_pickles(submission, folder, self.world.paths)
        return super().submit(submission, folder)


def fill(folder: Path) -> None:
    """Take every byte of a small disk."""
    with (folder / "ballast").open("ab", buffering=0) as ballast:
        for size in (65536, 4096, 1):
            with pytest.raises(OSError, match="No space left"):
                while True:
                    ballast.write(b"x" * size)


def use_up_inodes(folder: Path) -> list[Path]:
    """Make files until no more can be made; return them."""
    made: list[Path] = []
    with pytest.raises(OSError, match="No space left"):
        for index in range(10_000):
            made.append(folder / f"empty-{index}")
            made[-1].touch()
    return made[:-1]


@pytest.fixture
def on_small_disk(
    runs: Runs, tmpfs: Tmpfs, monkeypatch: pytest.MonkeyPatch
) -> Iterator[Callable[..., Run]]:
    """Move a new run to a disk of its own; workers write as real ones do."""
    write_result = scripted.write_result

    def on_full_disk_too(paths: AttemptPaths, verdict: str) -> None:
        try:
            write_result(paths, verdict)
        except OSError as exc:
            assert full_disk(exc)
            known: dict[str, Any] = {}
            with monkeypatch.context() as patch:
                patch.setattr(scripted, "write_json", lambda path, data: known.update(data))
                write_result(paths, verdict)
            write_over(paths.reserve, paths.result, encode_json(known))

    monkeypatch.setattr(scripted, "write_result", on_full_disk_too)
    monkeypatch.setattr(controller, "_LOCAL_TICK_S", 0.0)

    def make(size_kib: int = 4096, *, inodes: int = 0, **changes: Any) -> Run:
        disk = {**NO_FLOOR, **changes.pop("disk", {})}
        run = runs.new(disk=disk, **changes).copy(tmpfs(size_kib, inodes=inodes) / "run")
        executor = WritingExecutor(run.world)
        monkeypatch.setattr(controller, "make_executor", lambda *_: executor)
        monkeypatch.setattr(run_client, "make_executor", lambda *_: executor)
        return run

    yield make


def state_of(run: Run) -> RunState:
    loaded = load_run(run.folder)
    assert loaded.warning is None
    return loaded.state


FULL = r"the disk is full|do not fit above the floor"

MOMENTS = [
    ("after", "controller_started", "the first points"),
    ("after", "points_asked", "a spec"),
    ("after", "submission_intended", "a pickle"),
    ("before", "submission_accepted", "an event"),
    ("after", "submission_accepted", "an event"),
    ("before", "attempt_finished", "an event"),
    ("before", "generation_told", "an event"),
]


@pytest.mark.parametrize(("moment", "kind", "what"), MOMENTS)
def test_search_that_meets_a_full_disk_pauses_and_goes_on_as_if_it_never_had(
    on_small_disk: Callable[..., Run],
    monkeypatch: pytest.MonkeyPatch,
    runs: Runs,
    moment: str,
    kind: str,
    what: str,
) -> None:
    undisturbed = runs.new(disk=NO_FLOOR).drive()
    run = on_small_disk()
    record = Session.record
    filled: list[str] = []

    def recorded(self: Session, event: Payload) -> None:
        if moment == "before" and event.event_kind() == kind and not filled:
            filled.append(kind)
            fill(run.folder.parent)
        record(self, event)
        if moment == "after" and event.event_kind() == kind and not filled:
            filled.append(kind)
            fill(run.folder.parent)

    monkeypatch.setattr(Session, "record", recorded)
    # A short event may fit on the rest of the disk; the next attempts do not.
    with pytest.raises(SearchPaused, match=FULL) as caught:
        controller.drive(run.paths)
    assert filled and caught.value.exit_code == 6
    assert "elmanctl clean " in (caught.value.hint or "")
    paused = state_of(run)
    assert paused.status is RunStatus.PAUSED
    assert paused.reason is not None and caught.value.message.startswith(paused.reason)
    # Trying again on the full disk changes nothing.
    with pytest.raises(SearchPaused, match=FULL):
        controller.drive(run.paths)
    (run.folder.parent / "ballast").unlink()
    controller.drive(run.paths)
    state = state_of(run)
    assert state.status is RunStatus.FINISHED
    assert (points(state), losses(state)) == (points(undisturbed), losses(undisturbed))
    assert set(run.world.trained.values()) == {1}
    assert len(run.world.trained) == len(state.evaluations)
    assert parts_held(run.folder) == 4


def test_no_point_takes_the_place_of_one_that_failed_while_the_disk_is_still_full(
    on_small_disk: Callable[..., Run], monkeypatch: pytest.MonkeyPatch
) -> None:
    run = on_small_disk()
    run.world.script = {"g000-e01": ["disk_full"]}
    ballast = run.folder.parent / "ballast"
    record = Session.record

    def recorded(self: Session, event: Payload) -> None:
        record(self, event)
        closed = {e.id for e in self.state.evaluations.values() if e.state.is_finished}
        if len(closed) == 4 and not ballast.exists():
            fill(run.folder.parent)
            # Room for some lines of the ledger, and not for an attempt.
            os.truncate(ballast, ballast.stat().st_size - 4096)

    monkeypatch.setattr(Session, "record", recorded)
    with pytest.raises(SearchPaused, match="an attempt met a full disk"):
        controller.drive(run.paths)
    asked = [f"g000-e0{index}" for index in range(4)]
    assert list(state_of(run).evaluations) == asked
    with pytest.raises(SearchPaused, match="do not fit above the floor"):
        controller.drive(run.paths)
    assert list(state_of(run).evaluations) == asked


def test_clean_frees_a_disk_that_is_full_to_the_last_byte_and_the_search_goes_on(
    on_small_disk: Callable[..., Run],
) -> None:
    run = on_small_disk(generations=2)
    controller.drive(run.paths)
    run.leave_files(state_of(run))
    fill(run.folder.parent)
    assert space_of(run.folder, with_quota=False).free_bytes == 0
    with pytest.raises(SearchPaused, match="the disk is full"):
        controller.drive(run.paths, generations=3)
    policy = retention(effective_settings(state_of(run)).disk, CleanRequest(keep_last=0))
    planned = plan_cleaning(run.paths, state_of(run), policy)
    answer = run_client.act_on_run(run.paths, "clean", {"keep_last": 0})
    assert answer["files"] == len(planned) > 0
    assert answer["freed_bytes"] == sum(item.size_bytes for item in planned)
    assert not any((run.folder / item.name).exists() for item in planned)
    # The reserve is made again from what was freed, and the search ends.
    assert parts_held(run.folder) == 4
    controller.drive(run.paths, generations=3)
    assert state_of(run).status is RunStatus.FINISHED


def test_cancel_works_on_a_full_disk(
    on_small_disk: Callable[..., Run], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(run_client, "_COLLECT_POLL_S", 0.01)
    run = on_small_disk()
    run.world.held = {"g000-e01"}
    run.view.every_turn = lambda session: (
        run.stop.set() if session.state.counts()[State.COMPLETED] == 3 else None
    )
    assert run.drive().status is RunStatus.INTERRUPTED
    fill(run.folder.parent)
    answer = run_client.act_on_run(run.paths, "cancel", {"all": True, "evaluations": []})
    assert answer["error"] is None
    state = state_of(run)
    assert state.status is RunStatus.CANCELLED
    assert state.evaluations["g000-e01"].state is State.CANCELLED


def test_command_on_a_full_disk_without_a_reserve_says_so(
    on_small_disk: Callable[..., Run],
) -> None:
    run = on_small_disk()
    controller.drive(run.paths)
    for part in (run.folder / RESERVE_FOLDER).iterdir():
        part.unlink()
    fill(run.folder.parent)
    before = (run.folder / "ledger.jsonl").read_bytes()
    with pytest.raises(SearchPaused, match="the disk is full"):
        run_client.act_on_run(run.paths, "clean", {"keep_last": 0})
    assert (run.folder / "ledger.jsonl").read_bytes() == before


def test_disk_without_a_free_inode_pauses_the_search_and_is_cleaned(
    on_small_disk: Callable[..., Run],
) -> None:
    run = on_small_disk(inodes=400, generations=2)
    controller.drive(run.paths)
    run.leave_files(state_of(run))
    made = use_up_inodes(run.folder.parent)
    assert space_of(run.folder, with_quota=False).free_bytes > 1_000_000
    with pytest.raises(SearchPaused, match="the disk is full"):
        controller.drive(run.paths, generations=3)
    assert run_client.act_on_run(run.paths, "clean", {"keep_last": 0})["files"] > 0
    for path in made:
        path.unlink()
    controller.drive(run.paths, generations=3)
    assert state_of(run).status is RunStatus.FINISHED


def test_too_few_inodes_are_told_of_before_anything_is_submitted(
    on_small_disk: Callable[..., Run],
) -> None:
    run = on_small_disk(inodes=300, disk={"floor_inodes": 500})
    with pytest.raises(SearchPaused, match=r"more files can be made, under the floor of 500"):
        controller.drive(run.paths)
    assert state_of(run).submissions == {}


def test_read_only_file_system_is_named_and_changes_nothing(
    on_small_disk: Callable[..., Run], monkeypatch: pytest.MonkeyPatch
) -> None:
    run = on_small_disk()

    def remount(option: str) -> None:
        subprocess.run(["mount", "-o", f"remount,{option}", run.folder.parent], check=True)

    remount("ro")
    for command in (
        lambda: controller.drive(run.paths),
        lambda: run_client.act_on_run(run.paths, "clean", {}),
    ):
        with pytest.raises(LedgerError, match="Read-only file system"):
            command()
    remount("rw")
    # The error of a disk that turned read-only under a controller.
    spec_writer = files.write_json

    def refuse(path: Path, data: object) -> None:
        raise OSError(errno.EROFS, "Read-only file system", str(path))

    monkeypatch.setattr(dispatch, "write_json", refuse)
    with pytest.raises(EnvironmentNotReady, match=r"spec\.json: Read-only file system"):
        controller.drive(run.paths)
    monkeypatch.setattr(dispatch, "write_json", spec_writer)
    controller.drive(run.paths)
    assert state_of(run).status is RunStatus.FINISHED


def test_folder_that_may_not_be_written_is_named(on_small_disk: Callable[..., Run]) -> None:
    run = on_small_disk()
    with (
        pytest.raises(EnvironmentNotReady, match="Permission denied") as caught,
        AsNobody(),
    ):
        controller.drive(run.paths)
    assert caught.value.exit_code == 4


class AsNobody:
    """Lets this process be a user without rights, who may pass through every folder."""

    def __enter__(self) -> None:
        os.seteuid(65534)

    def __exit__(self, *_: object) -> None:
        os.seteuid(0)


def test_attempts_are_submitted_only_as_far_as_they_will_fit(
    on_small_disk: Callable[..., Run], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Once it is known what an attempt leaves, those in flight are counted too."""
    run = on_small_disk(generations=3)
    free = space_of(run.folder).free_bytes
    controller.drive(run.paths)
    each = state_of(run).disk.attempt_bytes
    assert each is not None and 4096 < each < 100_000
    with Session.open(run.folder) as session:
        session.extend(4)
        room = space_of(run.folder).free_bytes - each * 5 // 2
        session.change_settings({"disk.floor_gb": room / 1e9})
    assert room < free
    seen: list[int] = []
    run.view.every_turn = lambda session: seen.append(len(session.state.live_attempts()))
    with pytest.raises(SearchPaused, match=r"attempts of about .* do not fit above the floor"):
        run.drive(executor=WritingExecutor(run.world))
    assert 1 <= max(seen) <= 2


def test_controller_cleans_by_the_rules_of_the_run_before_it_pauses(
    on_small_disk: Callable[..., Run],
) -> None:
    run = on_small_disk(generations=3, disk={"auto_clean": True, "keep_best": 1, "keep_last": 1})
    controller.drive(run.paths)
    run.leave_files(state_of(run))
    before = space_of(run.folder, with_quota=False).free_bytes
    with Session.open(run.folder) as session:
        session.change_settings({"disk.floor_gb": (before + 30_000) / 1e9})
    controller.drive(run.paths, generations=4)
    assert space_of(run.folder, with_quota=False).free_bytes > before + 30_000
    with Session.open(run.folder) as session:
        session.change_settings({"disk.floor_gb": 1.0})
    with pytest.raises(SearchPaused, match=r"cleaning by the rules of .* freed"):
        controller.drive(run.paths, generations=5)
    state = state_of(run)
    assert "were cleaned by the rules of [disk]" in state.notes[0].text
    assert sum(state.freed_bytes.values()) > 0
    assert run.paths.attempt(state.ranked()[0].id, 1).result.exists()


def test_search_that_cannot_be_made_leaves_nothing_behind(
    tmpfs: Tmpfs, runs: Runs, corpus: Path
) -> None:
    disk = tmpfs(256)
    settings = runs._settings({"model": MODEL})
    for runs_folder in (disk / "new" / "runs", disk):
        plan = plan_search("e88", settings, executor="local", name="big", runs=runs_folder)
        with pytest.raises(EnvironmentNotReady, match=r"No space left.*nothing was started"):
            create_run(plan)
        assert list(disk.iterdir()) == []


def test_reserve_really_takes_its_blocks(on_small_disk: Callable[..., Run]) -> None:
    run = on_small_disk()
    controller.drive(run.paths)
    parts = sorted((run.folder / RESERVE_FOLDER).iterdir())
    assert [part.stat().st_blocks * 512 for part in parts] == [PART_BYTES] * 4
