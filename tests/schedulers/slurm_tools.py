"""Slurm's commands as small programs on PATH: each answers what a test wrote for it.

A command that a test gave no answer does not exist, as on a machine without Slurm.
"""

import os
import shlex
from pathlib import Path

import pytest


class SlurmTools:
    """A folder of commands in front of PATH; every call is written down."""

    def __init__(self, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        self.folder = folder
        self._calls = folder / "calls"
        folder.mkdir()
        # Only what the small programs themselves need, so that no real Slurm is ever asked.
        for name in ("cat", "sleep", "sh"):
            (folder / name).symlink_to(f"/bin/{name}")
        monkeypatch.setenv("PATH", str(folder))

    def answer(
        self, command: str, stdout: str = "", *, stderr: str = "", code: int = 0, does: str = ""
    ) -> None:
        """Let a command print these texts and end with this code, after doing some shell."""
        for name, text in (("out", stdout), ("err", stderr)):
            (self.folder / f"{command}.{name}").write_text(text, encoding="utf-8")
        lines = [
            "#!/bin/sh",
            f"cd {shlex.quote(str(self.folder))}",
            f'for word in {command} "$@"; do printf "%s\\037" "$word"; done >> calls',
            "printf '\\n' >> calls",
            does,
            f"cat {command}.out",
            f"cat {command}.err >&2",
            f"exit {code}",
        ]
        program = self.folder / command
        program.write_text("\n".join(lines) + "\n", encoding="utf-8")
        program.chmod(0o755)

    @property
    def calls(self) -> list[list[str]]:
        """Every call in order, as the words of its command line."""
        if not self._calls.exists():
            return []
        lines = self._calls.read_text(encoding="utf-8").splitlines()
        return [line.split("\037")[:-1] for line in lines]

    def called(self, command: str) -> int:
        """Return how often a command was called."""
        return sum(call[0] == command for call in self.calls)

    @property
    def path(self) -> str:
        """PATH as it is with these commands."""
        return os.environ["PATH"]
