"""The command line, run as a user runs it."""

import io
import os
import re
import subprocess
import sys
from collections.abc import Mapping, Sequence
from contextlib import redirect_stderr, redirect_stdout
from dataclasses import dataclass
from pathlib import Path

import pytest

from elmanctl.__main__ import main
from tests.patience import PATIENCE_S


@dataclass(frozen=True)
class CommandLine:
    """Runs elmanctl in a folder of its own."""

    folder: Path
    environment: Mapping[str, str]

    def __call__(
        self, *arguments: str, timeout_s: float = PATIENCE_S
    ) -> subprocess.CompletedProcess[str]:
        """Run one command to its end."""
        return subprocess.run(
            [sys.executable, "-m", "elmanctl", *arguments],
            cwd=self.folder,
            env=self.environment,
            capture_output=True,
            text=True,
            timeout=timeout_s,
            stdin=subprocess.DEVNULL,
            check=False,
        )

    def start(
        self, arguments: Sequence[str], *, program: Sequence[str] = ("-m", "elmanctl")
    ) -> subprocess.Popen[str]:
        """Start a command, or another program of Python, in a session of its own."""
        return subprocess.Popen(
            [sys.executable, *program, *arguments],
            cwd=self.folder,
            env=self.environment,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            stdin=subprocess.DEVNULL,
            start_new_session=True,
        )


class QuickCommandLine:
    """The command line in this process: what a child would print, without the child's start."""

    def __init__(self, user: CommandLine, monkeypatch: pytest.MonkeyPatch) -> None:
        self.folder = user.folder
        self._patch = monkeypatch
        monkeypatch.chdir(user.folder)
        # Triton reads this when it is imported, once for the whole process.
        for name in set(os.environ) - set(user.environment) - {"TRITON_INTERPRET"}:
            monkeypatch.delenv(name)
        for name, value in user.environment.items():
            monkeypatch.setenv(name, value)

    def __call__(self, *arguments: str, **variables: str) -> subprocess.CompletedProcess[str]:
        """Run one command to its end, with these variables beside those of the environment."""
        out, err = io.StringIO(), io.StringIO()
        with (
            self._patch.context() as patch,
            Path(os.devnull).open(encoding="utf-8") as nothing,
            redirect_stdout(out),
            redirect_stderr(err),
            pytest.raises(SystemExit) as ended,
        ):
            for name, value in variables.items():
                patch.setenv(name, value)
            patch.setattr(sys, "argv", ["elmanctl", *arguments])
            patch.setattr(sys, "stdin", nothing)
            main()
        code = ended.value.code
        assert isinstance(code, int)
        return subprocess.CompletedProcess(arguments, code, out.getvalue(), err.getvalue())


def rows_of(text: str) -> dict[str, list[dict[str, str]]]:
    """Return the tables of a pipe by the first word of their heads."""
    tables: dict[str, list[dict[str, str]]] = {}
    head: list[str] = []
    for line in text.splitlines():
        cells = line.split("\t")
        if re.fullmatch(r"[A-Z]+", cells[0]):
            head = cells
            tables[head[0]] = []
        else:
            tables[head[0]].append(dict(zip(head, cells, strict=True)))
    return tables
