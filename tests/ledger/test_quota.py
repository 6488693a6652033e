import os
import time
from pathlib import Path

import pytest

from elmanctl.ledger import quota
from elmanctl.ledger.disk import Space
from elmanctl.ledger.mounts import Mount, find_mount
from elmanctl.ledger.quota import Quota, ask_quota, read_answer

# As the commands print it; the first is of `quota --no-wrap --raw-grace --show-mntpoint`.
ANSWER = """\
Disk quotas for user ada (uid 1000):
     Filesystem  blocks   quota   limit   grace   files   quota   limit   grace
          /home   {used}   50000  60000  {grace}    120      0     500   0
"""
LUSTRE = (
    "  /lustre/with/a/long/name\n      400*    0     10240       -       7       0       0     -\n"
)


def test_quota_leaves_the_hard_limit_less_what_is_used() -> None:
    found = read_answer(ANSWER.format(used=20_000, grace=0), "/home", "quota")
    assert (found.left_bytes, found.left_inodes) == (40_000 * 1024, 380)


def test_soft_limit_counts_when_the_grace_period_is_over() -> None:
    later, earlier = int(time.time()) + 600, int(time.time()) - 600
    for grace, left in ((later, 5000 * 1024), (earlier, 0)):
        found = read_answer(ANSWER.format(used="55000*", grace=grace), "/home", "quota")
        assert found.left_bytes == left


def test_row_of_lustre_is_read_over_two_lines_and_marks() -> None:
    found = read_answer(LUSTRE, "/lustre/with/a/long/name", "lfs")
    assert (found.left_bytes, found.left_inodes) == (9840 * 1024, None)


def test_answer_without_the_mount_or_with_words_for_numbers_is_no_quota_and_says_so() -> None:
    assert "reports no quota" in read_answer(ANSWER, "/scratch", "quota").note
    said = read_answer("/home none 1 2 3 4 5 6 7", "/home", "quota")
    assert said.left_bytes is None and "said none 1 2" in said.note


@pytest.fixture(autouse=True)
def nothing_remembered(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(quota, "_answers", {})


def install(folder: Path, script: str, monkeypatch: pytest.MonkeyPatch) -> None:
    command = folder / "quota"
    command.write_text(f"#!/bin/sh\n{script}\n", encoding="utf-8")
    command.chmod(0o755)
    monkeypatch.setenv("PATH", f"{folder}{os.pathsep}{os.environ['PATH']}")


def test_command_is_asked_once_a_minute_and_its_answer_counts(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    point = find_mount(tmp_path).point
    script = f"echo x >> {tmp_path}/asked; echo '{point} 100 0 300 0 1 0 0 0'; exit 1"
    install(tmp_path, script, monkeypatch)
    assert ask_quota(tmp_path).left_bytes == 200 * 1024
    assert ask_quota(tmp_path).note == "by `quota`"
    assert (tmp_path / "asked").read_text(encoding="utf-8") == "x\n"


def test_command_that_hangs_or_is_absent_is_no_quota_and_says_so(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    install(tmp_path, "exec sleep 60", monkeypatch)
    monkeypatch.setattr(quota, "_TIMEOUT_S", 0.1)
    assert "`quota` did not answer" in ask_quota(tmp_path).note
    monkeypatch.setattr(quota, "_answers", {})
    monkeypatch.setenv("PATH", str(tmp_path / "none"))
    assert "there is no command `quota` here" in ask_quota(tmp_path).note
    monkeypatch.setattr(quota, "_answers", {})
    monkeypatch.setattr(quota, "find_mount", lambda path: Mount(point="/l", kind="lustre"))
    assert "there is no command `lfs` here" in ask_quota(tmp_path).note


def test_smaller_of_quota_and_free_space_decides() -> None:
    space = Space(
        free_bytes=1000, free_inodes=None, quota=Quota(left_bytes=10, left_inodes=5, note="")
    )
    assert (space.usable_bytes, space.usable_inodes) == (10, 5)
    space = Space(free_bytes=1000, free_inodes=7, quota=Quota(note=""))
    assert (space.usable_bytes, space.usable_inodes) == (1000, 7)
