"""Processes that compile cases under one Triton each, and their answers as they come."""

import json
import os
import subprocess
import sys
import time
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Any

from benchmarks.kernel_code.measure import Measured

ROOT = Path(__file__).resolve().parents[2]
REGISTRY = "benchmarks.kernel_code.cases"
# Triton finds here what it compiled before, by the text of kernel and compiler.
CACHE = ROOT / ".cache" / "kernel-code"
POLL_S = 0.05
KEPT_CHARACTERS = 8000
# Triton has dozens of variables of its own, under several beginnings; none of them is among these.
KEPT_VARIABLES = ("HOME", "LANG", "LC_ALL", "LD_LIBRARY_PATH", "PATH", "TMPDIR")


class NotCompiled(Exception):
    """A case has no numbers: it did not compile, or the process that was to do it ended."""


@dataclass(frozen=True, slots=True)
class Answer:
    """One compiled case; `ptx` is a file, beside which machine code and listing stand.

    `processor_s` is little where the code was in the cache.
    """

    case: str
    architecture: int
    triton: str
    kernel: str
    warps: int
    ptx: Path
    torch: bool
    processor_s: float
    measured: Measured


class Child:
    """One process under one Triton, at work from the moment this is made.

    `triton` is a folder that holds another Triton than the installed one; `folder`, an empty one,
    gets the process' request, answers and talk, and what it compiles.
    """

    def __init__(
        self,
        wanted: Iterable[tuple[str, int]],
        folder: Path,
        *,
        triton: Path | None = None,
        registry: str = REGISTRY,
    ) -> None:
        self._folder = folder
        self._answers: dict[tuple[str, int], dict[str, Any]] = {}
        self._read_bytes = 0
        request = {"registry": registry, "folder": str(folder), "wanted": list(wanted)}
        (folder / "request.json").write_text(json.dumps(request), encoding="utf-8")
        with (
            (folder / "request.json").open("rb") as stdin,
            (folder / "answers.jsonl").open("wb") as stdout,
            (folder / "stderr.txt").open("wb") as stderr,
        ):
            # -P: else the working folder would come before the Triton that is meant.
            self._process = subprocess.Popen(
                [sys.executable, "-P", "-m", "benchmarks.kernel_code.child"],
                cwd=ROOT,
                env=_environment(triton),
                stdin=stdin,
                stdout=stdout,
                stderr=stderr,
            )

    def __enter__(self) -> "Child":
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.stop()

    def answer(self, case: str, architecture: int) -> Answer:
        """Wait for a case and return it.

        Raises NotCompiled with the process' own words when there will be no numbers.
        """
        while True:
            ended = self._process.poll() is not None  # asked before reading: nothing comes after
            self._read()
            found = self._answers.get((case, architecture))
            if found is not None:
                break
            if ended:
                said = (self._folder / "stderr.txt").read_text(errors="replace")
                raise NotCompiled(
                    f"{case} for sm_{architecture}: the process ended with "
                    f"{self._process.returncode}\n{said[-KEPT_CHARACTERS:]}"
                )
            time.sleep(POLL_S)
        if "error" in found:
            raise NotCompiled(f"{case} for sm_{architecture}\n{found['error'][-KEPT_CHARACTERS:]}")
        return Answer(
            case=case,
            architecture=architecture,
            triton=found["triton"],
            kernel=found["kernel"],
            warps=found["warps"],
            ptx=Path(found["ptx"]),
            torch=found["torch"],
            processor_s=found["processor_s"],
            measured=Measured.decode(found["measured"]),
        )

    def stop(self) -> None:
        """End the process, whatever it is at."""
        self._process.kill()
        self._process.wait()

    def _read(self) -> None:
        with (self._folder / "answers.jsonl").open("rb") as file:
            file.seek(self._read_bytes)
            text = file.read()
        whole = text[: text.rfind(b"\n") + 1]
        self._read_bytes += len(whole)
        for line in whole.splitlines():
            answer = json.loads(line)
            self._answers[answer["case"], answer["architecture"]] = answer


def _environment(triton: Path | None) -> dict[str, str]:
    """Return an environment in which nothing of this process' own changes a compilation."""
    path = [str(folder) for folder in (triton, ROOT) if folder is not None]
    kept = {name: os.environ[name] for name in KEPT_VARIABLES if name in os.environ}
    return kept | {"PYTHONPATH": os.pathsep.join(path), "TRITON_CACHE_DIR": str(CACHE)}
