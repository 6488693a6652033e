"""One command: its time, the size of its answer, and that it has no terminal."""

import errno
import os
import pty
import subprocess
import sys
import time
from pathlib import Path
from types import SimpleNamespace

import pytest

from elmanctl import command
from elmanctl.command import NoAnswer, run_command
from elmanctl.schedulers.slurm import Slurm, SlurmSilent
from tests.schedulers.slurm_tools import SlurmTools

# Far more than any of these commands takes, on any machine.
LONG_S = 120.0


def run_shell(text: str, timeout_s: float = LONG_S) -> command.Answer:
    return run_command(["sh", "-c", text], os.environ, timeout_s=timeout_s)


def is_alive(process: int) -> bool:
    """Whether a process still runs; a zombie that nobody has waited for does not."""
    try:
        state = Path(f"/proc/{process}/stat").read_text(encoding="utf-8").rpartition(")")[2].split()
    except FileNotFoundError:
        return False
    return state[0] not in "ZX"


def wait_until_gone(process: int) -> None:
    deadline = time.monotonic() + LONG_S
    while is_alive(process):
        assert time.monotonic() < deadline
        time.sleep(0.02)


def test_input_longer_than_a_pipe_is_read_to_its_end() -> None:
    text = "one line of many\n" * 20_000
    done = run_command(["cat"], os.environ, timeout_s=LONG_S, text=text)
    assert (done.code, done.stdout) == (0, text)


def test_answer_is_what_was_written_and_how_it_ended() -> None:
    answer = run_shell("echo out; echo err >&2; exit 3")
    assert (answer.code, answer.stdout, answer.stderr) == (3, "out\n", "err\n")
    assert run_shell("kill -9 $$").code == -9
    assert run_shell("printf '\\377'").stdout == "\ufffd"


def test_command_that_closes_its_output_is_waited_for() -> None:
    assert run_shell("exec >&- 2>&-; sleep 0.3; exit 4").code == 4


def test_what_a_wrapper_leaves_behind_is_not_waited_for() -> None:
    answer = run_shell("sleep 600 & echo $!")
    process = int(answer.stdout)
    assert answer.code == 0
    assert is_alive(process)
    os.kill(process, 9)


def test_command_that_is_late_is_killed_with_all_it_started(tmp_path: Path) -> None:
    children = tmp_path / "children"
    with pytest.raises(NoAnswer, match=r"`sh` did not answer within 3 s"):
        run_shell(f"sleep 600 & echo $! > {children}; wait", timeout_s=3.0)
    wait_until_gone(int(children.read_text(encoding="utf-8")))


def test_answer_that_came_in_time_is_heard_by_who_was_suspended(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As after Ctrl-Z and `fg`: the clock went on, and the command has long ended."""
    told = tmp_path / "process"

    def clock() -> float:
        if not told.exists() or not told.read_text(encoding="utf-8"):
            return 0.0
        wait_until_gone(int(told.read_text(encoding="utf-8")))
        return 1000.0

    monkeypatch.setattr(command, "time", SimpleNamespace(monotonic=clock))
    assert run_shell(f"echo 4711; echo $$ > {told}").stdout == "4711\n"


def test_answer_that_cannot_be_read_is_not_taken_for_a_command_that_never_began(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def read(number: int, size: int) -> bytes:
        raise OSError(errno.EIO, "Input/output error")

    monkeypatch.setattr(command, "os", SimpleNamespace(killpg=os.killpg, read=read))
    with pytest.raises(NoAnswer, match="the answer of `sh` cannot be read: Input/output error"):
        run_shell("echo 4711")


@pytest.mark.parametrize("stream", ["1", "2"])
def test_command_that_talks_without_end_is_killed(
    stream: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(command, "ANSWER_LIMIT_BYTES", 1 << 20)
    with pytest.raises(NoAnswer, match="said more than 1 MiB"):
        run_shell(f"yes 'Cancel job? [y/n]' >&{stream}")


def test_twenty_thousand_jobs_are_no_answer_too_long(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As wide as squeue writes them: each field is filled up to its width."""
    tools = SlurmTools(tmp_path / "bin", monkeypatch)
    widths = (64, 32, 160, 256, 32, 24, 24, 512)
    rows = (
        "|".join(f"{cell:{width}}" for cell, width in zip(cells, widths, strict=True))
        for cells in (
            (f"7_{i}", "PENDING", "Priority", "", "7", "0", "0", f"job-{i}") for i in range(20_000)
        )
    )
    tools.answer("squeue", "".join(f"{row}|\n" for row in rows))
    assert [row.name for row in Slurm().queue()] == [f"job-{i}" for i in range(20_000)]


def test_command_has_no_terminal_to_ask_on() -> None:
    """The process that runs it has one, as a user's shell has."""
    program = """
import os
from elmanctl.command import run_command
os.close(os.open("/dev/tty", os.O_RDWR))
shell = "if (: < /dev/tty) 2>/dev/null; then echo terminal; fi; read -r line && echo read"
print(run_command(["sh", "-c", shell], os.environ, timeout_s=60))
"""
    leader, follower = pty.openpty()
    # A session of its own, whose terminal the pseudo-terminal becomes by being opened first.
    start = f"import os; os.setsid(); os.close(os.open({os.ttyname(follower)!r}, os.O_RDWR))"
    done = subprocess.run(
        [sys.executable, "-c", f"{start}\n{program}"],
        capture_output=True,
        text=True,
        stdin=subprocess.DEVNULL,
        check=False,
        timeout=LONG_S,
    )
    os.close(leader)
    os.close(follower)
    assert done.stdout == "Answer(code=1, stdout='', stderr='')\n", done.stderr


def test_slurm_that_talks_without_end_is_silent(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(command, "ANSWER_LIMIT_BYTES", 1 << 20)
    tools = SlurmTools(tmp_path / "bin", monkeypatch)
    tools.answer("scancel", does="while :; do echo 'Cancel job? [y/n]'; done")
    with pytest.raises(SlurmSilent, match="`scancel` said more than 1 MiB"):
        Slurm().cancel(["7_0"])
