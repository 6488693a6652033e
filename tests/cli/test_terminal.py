"""Names, logs and errors that hold commands for a terminal: shown, and never obeyed."""

import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from elmanctl.cli import output
from elmanctl.errors import UsageError
from tests.command_line import CommandLine, QuickCommandLine
from tests.patience import PATIENCE_S
from tests.schedulers.slurm_tools import SlurmTools

EVIL = "a\x1b[2Jb\x9b1m\u202ec"


def test_control_characters_reach_no_terminal(capsys: pytest.CaptureFixture[str]) -> None:
    output.print_line(EVIL)
    output.print_table([output.Column(name="NAME")], [[EVIL]])
    output.print_json({"name": EVIL})
    output.say(EVIL)
    output.warn(EVIL)
    output.hint(EVIL)
    output.print_error(UsageError(EVIL, hint=EVIL))
    text = "".join(capsys.readouterr())
    assert not set(text) & set("\x1b\x9b\u202e")
    assert text.count("2Jb") == 8


def test_log_keeps_its_colours_on_a_terminal(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    log = "\x1b[31mred\x1b[0m\r50 %\x1b]0;title\x07\n"
    output.write_raw(log)
    assert capsys.readouterr().out == log
    monkeypatch.setattr(output, "is_terminal", lambda stream=None: True)
    output.write_raw(log)
    assert capsys.readouterr().out == "\x1b[31mred\x1b[0m\r50 %\\x1b]0;title\\x07\n"


def test_log_that_is_a_pipe_or_a_hole_is_no_trap(quick_with_runs: QuickCommandLine) -> None:
    run = quick_with_runs.folder / "runs" / "finished"
    logs = sorted((run / "submissions").rglob("*_log.out"))
    for log in logs:
        log.unlink()
        os.mkfifo(log)
    done = quick_with_runs("logs", "finished", "best")
    assert done.returncode == 4 and "not a regular file" in done.stderr
    for log in logs:
        log.unlink()
        with log.open("wb") as file:
            file.truncate(20 << 30)
            file.seek(0, os.SEEK_END)
            file.write(b"\nlast \x1b[2J\n")
    done = quick_with_runs("logs", "finished", "best", "-n", "1")
    assert done.stdout == "last \\x1b[2J\n"


def test_torn_first_line_is_no_internal_error(quick_with_runs: QuickCommandLine) -> None:
    ledger = quick_with_runs.folder / "runs" / "finished" / "ledger.jsonl"
    ledger.write_bytes(b"\x1b[2J{")
    for words in (("clean", "finished", "--dry-run"), ("cancel", "x", "--run", "finished")):
        done = quick_with_runs(*words)
        assert done.returncode == 3 and "is empty" in done.stderr


@pytest.mark.parametrize(
    ("closing", "code", "stdout"),
    [
        ("models >&-", 0, ""),
        ("config >&- <&-", 0, ""),
        ("show best 2>&-", 3, ""),
        ("status 2>&- >&-", 0, ""),
    ],
)
def test_closed_stream_is_no_fault_and_its_talk_goes_nowhere_else(
    closing: str, code: int, stdout: str, elmanctl: CommandLine
) -> None:
    done = subprocess.run(
        ["bash", "-c", f"{sys.executable} -m elmanctl {closing}"],
        cwd=elmanctl.folder,
        env=elmanctl.environment,
        capture_output=True,
        text=True,
        check=False,
    )
    assert (done.returncode, done.stdout) == (code, stdout)
    assert "internal error" not in done.stderr


@pytest.mark.torch
def test_folder_that_cannot_be_written_is_named_with_the_way_out(
    quick: QuickCommandLine, tmpfs: Callable[..., Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = tmpfs(64)
    subprocess.run(["mount", "-o", "remount,ro", folder], check=True)
    monkeypatch.chdir(folder)
    model = ("dim=32", "depth=1", "n_heads=2", "n_state=8", "--train-steps", "1")
    for words, told, way_out in (
        (("init",), f"cannot write {folder}/elman.toml: Read-only", "elmanctl init FOLDER"),
        (("eval", "e88", *model), f"results cannot be kept in {folder}/runs", "--out FOLDER"),
        (("search", "e88", "--local", "--preset", "tiny"), "runs cannot be kept", "`paths.runs`"),
    ):
        done = quick(*words)
        assert done.returncode == 4 and told in done.stderr and way_out in done.stderr


INTERRUPTED_IMPORT = """
import sys


class Interrupting:
    def find_spec(self, name, path, target=None):
        if name == "elmanctl.cli.app":
            raise KeyboardInterrupt


sys.meta_path.insert(0, Interrupting())
from elmanctl.__main__ import main

main()
"""


def test_ctrl_c_while_the_program_starts_leaves_no_traceback(elmanctl: CommandLine) -> None:
    done = subprocess.run(
        [sys.executable, "-c", INTERRUPTED_IMPORT],
        cwd=elmanctl.folder,
        env=elmanctl.environment,
        capture_output=True,
        text=True,
        check=False,
    )
    assert (done.returncode, done.stdout, done.stderr) == (130, "", "")


def test_command_that_failed_is_no_success_where_the_ends_of_children_are_ignored(
    elmanctl: CommandLine, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Some launchers and daemons start all that they start so."""
    tools = SlurmTools(tmp_path / "bin", monkeypatch)
    tools.answer("sbatch", "4711\n")
    tools.answer("scontrol", stderr="Unable to contact slurm controller\n", code=1)
    program = (
        "import os, signal, sys; signal.signal(signal.SIGCHLD, signal.SIG_IGN); "
        "os.execv(sys.executable, [sys.executable, '-m', 'elmanctl', *sys.argv[1:]])"
    )
    environment = {**elmanctl.environment, "PATH": tools.path}
    words = ("search", "e88", "--preset", "tiny", "--yes")
    with CommandLine(elmanctl.folder, environment).start(words, program=("-c", program)) as child:
        told = child.communicate(timeout=PATIENCE_S)[0]
    assert child.returncode == 4, told
    assert "`scontrol` failed: Unable to contact slurm controller" in told
