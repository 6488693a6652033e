"""A worker on a disk without room leaves a result all the same."""

import errno
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from elmanctl.jobs import attempt_training
from elmanctl.jobs.evaluation import evaluate_attempt
from elmanctl.ledger.reserve import hold
from elmanctl.run.paths import AttemptPaths
from tests.jobs.attempts import read
from tests.jobs.workers import LONG, Start, verdict, wait_for_steps
from tests.patience import PATIENCE_S


def test_a_disk_that_fills_up_during_the_training_is_a_full_disk(write_spec: Any) -> None:
    paths = write_spec()
    paths.metrics.symlink_to("/dev/full")
    with pytest.raises(OSError, match="No space left") as caught:
        evaluate_attempt(str(paths.folder))
    assert caught.value.errno == errno.ENOSPC
    assert verdict(paths)[0] == "disk_full"
    assert read(paths.result)["steps"] == 0


def fill(folder: Path, *, leave: int = 0) -> None:
    """Take every byte of a small disk, but for so many pages."""
    pages = [folder / f"page-{index}" for index in range(leave)]
    for page in pages:
        page.write_bytes(b"x" * 4096)
    with (folder / "ballast").open("ab", buffering=0) as ballast:
        for size in (4096, 1):
            with pytest.raises(OSError, match="No space left"):
                while True:
                    ballast.write(b"x" * size)
    for page in pages:
        page.unlink()


def on_a_small_disk(write_spec: Any, folder: Path, **changes: Any) -> AttemptPaths:
    """Write a spec into an attempt on a disk of its own."""
    known = write_spec(**changes)
    paths = AttemptPaths(folder / "evaluations" / "g000-e00" / "attempt-1")
    paths.folder.mkdir(parents=True)
    paths.spec.write_bytes(known.spec.read_bytes())
    return paths


def test_disk_that_fills_up_during_the_training_leaves_room_for_the_result(
    write_spec: Any, start: Start, tmpfs: Callable[..., Path]
) -> None:
    disk = tmpfs(256)
    paths = on_a_small_disk(write_spec, disk, steps=LONG, heartbeat_s=0.05)
    worker = start(paths)
    wait_for_steps(paths, 1)
    fill(disk)
    _, log = worker.communicate(timeout=PATIENCE_S)
    assert worker.returncode == 1
    assert "OSError: [Errno 28] No space left on device" in log
    kind, text = verdict(paths)
    assert (kind, "No space left" in text) == ("disk_full", True)
    assert read(paths.result)["steps"] > 0
    assert not paths.reserve.exists()


def test_disk_without_a_free_inode_leaves_room_for_the_result(
    write_spec: Any, tmpfs: Callable[..., Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    disk = tmpfs(512, inodes=40)
    paths = on_a_small_disk(write_spec, disk)

    def use_up(*_: object) -> str:
        with pytest.raises(OSError, match="No space left"):
            for index in range(100):
                (disk / f"file-{index}").touch()
        return "size and digest"

    monkeypatch.setattr(attempt_training, "verify", use_up)
    assert evaluate_attempt(str(paths.folder))["verdict"]["kind"] == "completed"
    assert verdict(paths)[0] == "completed"


def test_disk_that_is_full_before_the_worker_starts_is_told_by_the_controllers_reserve(
    write_spec: Any, tmpfs: Callable[..., Path]
) -> None:
    disk = tmpfs(256)
    paths = on_a_small_disk(write_spec, disk)
    hold(paths.reserve)
    fill(disk)
    with pytest.raises(OSError, match="No space left"):
        evaluate_attempt(str(paths.folder))
    assert verdict(paths)[0] == "disk_full"
    assert evaluate_attempt(str(paths.folder)) == {"already_finished": True}


def test_duplicate_on_a_full_disk_does_not_speak_for_the_job_that_holds_the_attempt(
    write_spec: Any, tmpfs: Callable[..., Path]
) -> None:
    disk = tmpfs(256)
    paths = on_a_small_disk(write_spec, disk)
    hold(paths.reserve)
    paths.claim.write_text("{}")
    fill(disk)
    with pytest.raises(OSError, match="No space left"):
        evaluate_attempt(str(paths.folder))
    assert not paths.result.exists() and paths.reserve.exists()
