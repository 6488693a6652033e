"""What can be carried to sbatch and a shell as it stands; the rest is refused by its key.

submitit writes each option as one line, `#SBATCH --key='value'`.  Slurm reads quotes there much
as a shell does, but takes a backslash for an escape inside single quotes too, and ends the option
with the line; what follows a newline would then be run by the shell.  PYTHONPATH cannot hold a
colon, and Slurm and submitit replace `%j` and the like in paths.
"""

import math
import os
import re
import shlex
import unicodedata
from collections.abc import Iterable
from pathlib import Path

from elmanctl.command import NoAnswer, run_command
from elmanctl.errors import UsageError

# sbatch reads its options down to the first command, hence among the setup lines too.
_OPTION_LINE = re.compile(r"#(SBATCH|SLURM|BSUB|PBS)\b")

_IN_PATHS = {
    "%": "Slurm puts job numbers in place of it",
    "\\": "Slurm takes it for an escape",
    ":": "it parts the folders of PYTHONPATH",
}

_SHELL_TIMEOUT_S = 10


def check_value(key: str, value: object) -> None:
    """Raise UsageError unless an sbatch option can have this value."""
    if isinstance(value, bool | int) or (isinstance(value, float) and math.isfinite(value)):
        return
    if not isinstance(value, str):
        raise UsageError(
            f"`{key}` cannot be `{value}`", hint="use text, a number, or true and false"
        )
    fault = _fault_of_text(value)
    if fault is None and "\\" in value:
        fault = "a backslash, which Slurm takes for an escape"
    if fault is not None:
        raise UsageError(f"`{key}` holds {fault}", hint="sbatch cannot be given it; leave it out")


def check_command(key: str, command: str) -> None:
    """Raise UsageError unless the text is one command of a shell, with all quotes closed."""
    fault = _fault_of_text(command)
    if fault is not None:
        raise UsageError(f"`{key}` holds {fault}", hint="it is one command, on one line")
    try:
        words = shlex.split(command)
    except ValueError as exc:
        raise UsageError(f"`{key}` is no command: {exc}", hint="close the quote") from exc
    if not words:
        raise UsageError(f"`{key}` is empty", hint="leave it out to use this Python")


def check_setup(key: str, lines: Iterable[str]) -> None:
    """Raise UsageError for lines that no shell can run, or that sbatch would take for options.

    They are shell by intention; what is refused would change lines that follow, or options that
    elmanctl itself decides.
    """
    text = "\n".join(lines)
    for line in text.split("\n"):
        fault = _fault_of_text(line.replace("\t", " "))
        if fault is not None:
            raise UsageError(f"`{key}` holds {fault}: {line!r}")
        if _OPTION_LINE.match(line):
            raise UsageError(
                f"`{key}` holds an option of sbatch: `{line}`",
                hint="set it in `slurm.extra`, or in its own setting",
            )
    fault = _shell_fault(text)
    if fault is not None:
        raise UsageError(
            f"`{key}` is not complete as shell: {fault}",
            hint="close quotes and here-documents; the worker is started by the lines after",
        )


def check_path(path: Path) -> None:
    """Raise UsageError for a folder whose name cannot reach the workers as it is."""
    text = str(path)
    fault = _fault_of_text(text)
    if fault is not None:
        raise UsageError(f"the path {text!r} holds {fault}", hint="use another folder")
    for mark, reason in _IN_PATHS.items():
        if mark in text:
            raise UsageError(
                f"the path `{text}` holds `{mark}`: {reason}",
                hint="use a folder without %, \\, : and line breaks",
            )


def _fault_of_text(text: str) -> str | None:
    """Name the first character that no option, command or path may hold; None for none."""
    for mark in text:
        if mark in "\n\r":
            return "a line break"
        kind = unicodedata.category(mark)
        if kind == "Cc":
            return f"the control character {mark!r}"
        if kind == "Cs":
            return "bytes that are not UTF-8"
    return None


def _shell_fault(text: str) -> str | None:
    """Return what bash says against these lines, None for nothing; nothing is run."""
    if text.endswith("\\"):
        return "the last line goes on with a backslash"
    if not text.strip():
        return None
    try:
        done = run_command(["bash", "-n"], os.environ, timeout_s=_SHELL_TIMEOUT_S, text=f"{text}\n")
    except (OSError, NoAnswer):
        # No bash here says nothing of the nodes, where the script runs.
        return None
    words = done.stderr.strip().splitlines()
    return words[0].removeprefix("bash: ") if words else None
