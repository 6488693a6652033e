"""Quoting for sbatch and the shell: values that cannot be passed unchanged are refused by key.

The script has one line per option, `#SBATCH --key='value'`.  Slurm reads quotes there much like a
shell, but takes a backslash for an escape even in single quotes, and ends the option at the end of
the line; the shell would then run what follows a newline.  An entry of PYTHONPATH cannot hold a
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

# sbatch reads its options up to the first command, and so among the setup lines, too.
_OPTION_LINE = re.compile(r"#(SBATCH|SLURM|BSUB|PBS)\b")

_IN_PATHS = {
    "%": "Slurm replaces it by job numbers",
    "\\": "Slurm takes it for an escape",
    ":": "it separates the folders of PYTHONPATH",
}

_SHELL_TIMEOUT_S = 10


def check_value(key: str, value: object) -> None:
    """Raise UsageError unless a value can be passed as an sbatch option."""
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
    """Raise UsageError unless a text is one shell command with all quotes closed."""
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

    They may be any shell code that does not change the lines after it, or options that elmanctl
    itself sets.
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
    """Raise UsageError for a folder whose name cannot be passed to the workers unchanged."""
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
    """Return the name of the first character that no value may hold, None if there is none."""
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
    """Return the error of bash for these lines, None for none; they are parsed and not run."""
    if text.endswith("\\"):
        return "the last line ends with a backslash"
    if not text.strip():
        return None
    try:
        done = run_command(["bash", "-n"], os.environ, timeout_s=_SHELL_TIMEOUT_S, text=f"{text}\n")
    except (OSError, NoAnswer):
        # A missing bash here says nothing about the nodes, where the script runs.
        return None
    words = done.stderr.strip().splitlines()
    return words[0].removeprefix("bash: ") if words else None
