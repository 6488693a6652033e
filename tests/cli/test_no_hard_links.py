"""A file system without hard links is told by its cause, at the start and by `doctor`."""

import errno
import json
import subprocess
import sys
from pathlib import Path

import pytest

from elmanctl.ledger.files import NoHardLinks, create_atomically
from tests.command_line import CommandLine, QuickCommandLine

WRAPPER = Path(__file__).parents[1] / "no_hard_links.py"


def without_links(user: CommandLine, *arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, str(WRAPPER), sys.executable, "-m", "elmanctl", *arguments],
        cwd=user.folder,
        env=user.environment,
        capture_output=True,
        text=True,
        stdin=subprocess.DEVNULL,
        check=False,
    )


@pytest.mark.torch
def test_search_names_the_cause_and_leaves_nothing(elmanctl: CommandLine, corpus: Path) -> None:
    tiny = ("e88", "--preset", "tiny", "--local", "--yes", "--name", "r", "--data", str(corpus))
    done = without_links(elmanctl, "search", *tiny)
    assert done.returncode == 4
    assert "makes no hard links" in done.stderr
    assert "nothing was started" in done.stderr
    assert "set `paths.runs`" in done.stderr
    assert not (elmanctl.folder / "runs").exists()


def test_run_that_came_to_such_a_file_system_is_not_taken_up(
    quick_with_runs: QuickCommandLine, elmanctl: CommandLine
) -> None:
    assert quick_with_runs("resume", "finished").returncode == 0
    done = without_links(elmanctl, "resume", "finished", "--generations", "3")
    assert done.returncode != 0
    assert "cannot take the lease" in done.stderr
    assert "makes no hard links" in done.stderr
    assert "move the run" in done.stderr


@pytest.mark.parametrize("wrapped", [True, False])
def test_doctor_tries_a_hard_link(
    elmanctl: CommandLine, quick: QuickCommandLine, wrapped: bool
) -> None:
    done = without_links(elmanctl, "doctor", "--json") if wrapped else quick("doctor", "--json")
    findings = {f["name"]: f for f in json.loads(done.stdout)["findings"] if f["part"] == "runs"}
    assert findings["hard links"]["is_fine"] is not wrapped
    assert ("makes no hard links" in findings["hard links"]["detail"]) is wrapped
    assert list(elmanctl.folder.iterdir()) == []


@pytest.mark.parametrize("number", [errno.EPERM, errno.ENOTSUP, errno.ENOSYS])
def test_what_systems_say_of_a_missing_hard_link_becomes_one_error(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, number: int
) -> None:
    def refuse(self: Path, target: Path) -> None:
        raise OSError(number, "whatever", str(target), None, str(self))

    monkeypatch.setattr(Path, "hardlink_to", refuse)
    with pytest.raises(NoHardLinks) as told:
        create_atomically(tmp_path / "lease.json", b"x")
    assert told.value.errno == number
    assert list(tmp_path.iterdir()) == []
