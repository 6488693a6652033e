"""The command line, run as a user runs it."""

import subprocess
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

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
