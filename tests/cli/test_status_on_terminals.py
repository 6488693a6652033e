"""`status` and other tables on terminals of any width, with colours and without."""

import fcntl
import os
import pty
import re
import struct
import subprocess
import sys
import termios
from collections.abc import Sequence

import pytest

from tests.cli.conftest import EVALUATIONS
from tests.command_line import CommandLine, QuickCommandLine

COLOUR = re.compile(r"\x1b\[[0-9;]*(3[0-7]|9[0-7])[0-9;]*m")
ESCAPE = re.compile(r"\x1b\[[0-9;?]*[A-Za-z]")


def on_terminal(
    user: CommandLine,
    columns: int,
    *arguments: str,
    program: Sequence[str] = ("-m", "elmanctl"),
    **environment: str,
) -> list[str]:
    """Return the lines that a command draws on a terminal of so many columns."""
    ours, theirs = pty.openpty()
    fcntl.ioctl(theirs, termios.TIOCSWINSZ, struct.pack("HHHH", 40, columns, 0, 0))
    known = {k: v for k, v in user.environment.items() if k not in ("COLUMNS", "NO_COLOR")}
    child = subprocess.Popen(
        [sys.executable, *program, *arguments],
        cwd=user.folder,
        env={**known, "TERM": "xterm-256color", **environment},
        stdin=theirs,
        stdout=theirs,
        stderr=subprocess.DEVNULL,
    )
    os.close(theirs)
    drawn = b""
    while True:
        try:
            data = os.read(ours, 65536)
        except OSError:
            # Linux' way to say that the other end of a terminal is closed.
            break
        if not data:
            break
        drawn += data
    os.close(ours)
    assert child.wait() == 0
    return drawn.decode().replace("\r\n", "\n").splitlines()


@pytest.mark.parametrize("columns", [60, 40, 200])
@pytest.mark.parametrize("arguments", [("status",), ("status", "finished", "--all")])
def test_terminal_of_any_width_shows_whole_names_on_one_line_each(
    columns: int, arguments: tuple[str, ...], with_runs: CommandLine
) -> None:
    lines = [ESCAPE.sub("", line) for line in on_terminal(with_runs, columns, *arguments)]
    assert max(map(len, lines)) <= columns
    names = EVALUATIONS if len(arguments) > 1 else ["interrupted-search", "finished"]
    assert [line.split()[0] for line in lines] == ["EVAL" if len(arguments) > 1 else "RUN", *names]
    assert not any("…" in line for line in lines)
    if columns == 200:
        assert "UPDATED" in lines[0] or "NODE" in lines[0]


# One process for all widths: nearly all of its time is the import of torch.
AT_WIDTHS = """
import fcntl, struct, sys, termios
from elmanctl.__main__ import main
widths, sys.argv = sys.argv[1].split(","), ["elmanctl", *sys.argv[2:]]
for columns in map(int, widths):
    fcntl.ioctl(1, termios.TIOCSWINSZ, struct.pack("HHHH", 40, columns, 0, 0))
    try:
        main()
    except SystemExit as ended:
        assert ended.code == 0
    print("end", flush=True)
"""


@pytest.mark.torch
def test_narrow_terminal_keeps_what_an_axis_changes(elmanctl: CommandLine) -> None:
    widths = {50: set(), 64: {"BEST"}, 80: {"BEST", "KIND"}, 100: {"BEST", "KIND"}}
    program = ("-c", AT_WIDTHS, ",".join(map(str, widths)))
    drawn = iter(on_terminal(elmanctl, 200, "models", "mom-e88", program=program))
    for columns, known in widths.items():
        lines = [ESCAPE.sub("", line) for line in iter(drawn.__next__, "end")]
        assert max(map(len, lines)) <= columns
        header = next(line.split() for line in lines if line.startswith("SPACE"))
        assert set(header) == {"SPACE", "PARAMETER", "RANGE", "CHANGES", *known}
        top_k = next(line.split() for line in lines if line.startswith("3d     top_k"))
        assert top_k[-1] == "output"


def test_colour_is_for_terminals_and_only_for_those_who_want_it(with_runs: CommandLine) -> None:
    def has_colour(*options: str, **environment: str) -> bool:
        lines = on_terminal(with_runs, 100, *options, "status", "finished", **environment)
        return any(COLOUR.search(line) for line in lines)

    assert has_colour()
    assert not has_colour(NO_COLOR="1")
    assert not has_colour("--color", "never")
    assert has_colour("--color", "always", NO_COLOR="1")


def test_pipe_gets_no_escapes_even_where_colour_is_forced_on_terminals(
    quick_with_runs: QuickCommandLine,
) -> None:
    assert "\x1b" not in quick_with_runs("status", "finished").stdout


def test_terminal_shows_a_dash_for_what_is_missing(with_runs: CommandLine) -> None:
    lines = on_terminal(with_runs, 200, "status", "interrupted", "--state", "running")
    assert "–" in ESCAPE.sub("", lines[1])
