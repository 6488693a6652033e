"""Ranks of attempts, forked from a process that has imported torch: else most of their time."""

import json
import os
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from types import TracebackType
from typing import Any

from elmanctl.run.paths import AttemptPaths
from tests.jobs.attempts import CHECKOUT, read


class ForkedRanks:
    """Client of a `rank_server` of its own; `folder` receives what the ranks print."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._asked = 0
        self._process = subprocess.Popen(
            [sys.executable, "-B", "-m", "tests.jobs.rank_server"],
            cwd=CHECKOUT,
            env={"PYTHONPATH": str(CHECKOUT), "OMP_NUM_THREADS": "1", "PATH": "/usr/bin:/bin"},
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )

    def __enter__(self) -> "ForkedRanks":
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._process.kill()
        self._process.communicate()

    def together(
        self, *attempts: AttemptPaths, count: int = 2, largest: int = 0, before: str = ""
    ) -> list[dict[str, Any]]:
        """Run attempts in `count` processes, one after the other, and return their results.

        The second process can write no file that is larger than `largest` bytes.  Each runs the
        code `before`, which knows its `rank`, before it meets the others.
        """
        codes, errors = self._run([attempts], count=count, largest=largest, before=before)
        assert codes == [0] * count, errors
        return [read(paths.folder / "out.json") for paths in attempts]

    def killed(self, *attempts: AttemptPaths, stop: int, delay_s: float = 0.0) -> None:
        """Run each attempt in two processes, which kill themselves in a step or soon after."""
        codes, errors = self._run([[a] for a in attempts], count=2, stop=stop, delay_s=delay_s)
        assert 0 not in codes, errors

    def _run(
        self, groups: Sequence[Sequence[AttemptPaths]], *, count: int, **asked: Any
    ) -> tuple[list[int], str]:
        """Return the exit codes of the ranks of all groups, side by side, and what they printed."""
        self._asked += 1
        log = self._folder / f"ranks-{self._asked}.log"
        folders = [[str(paths.folder) for paths in group] for group in groups]
        request = {"groups": folders, "count": count, "log": str(log), **asked}
        assert self._process.stdin is not None and self._process.stdout is not None
        self._process.stdin.write(json.dumps(request) + os.linesep)
        self._process.stdin.flush()
        codes = json.loads(self._process.stdout.readline())
        return codes, log.read_text()
