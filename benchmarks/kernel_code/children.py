"""Child processes that compile cases, one per version of Triton, and their answers."""

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
# Triton's compilation cache, keyed by the source of kernel and compiler.
CACHE = ROOT / ".cache" / "kernel-code"
POLL_S = 0.05
MAX_ERROR_CHARACTERS = 8000
# An allowlist, since Triton reads dozens of environment variables with various prefixes.
PASSED_VARIABLES = ("HOME", "LANG", "LC_ALL", "LD_LIBRARY_PATH", "PATH", "TMPDIR")


class NotCompiled(Exception):
    """A case did not compile, or its process ended early."""


@dataclass(frozen=True, slots=True)
class Answer:
    """One compiled case; machine code and listing are next to the file `ptx`.

    `processor_s` is small if the code was cached.
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
    """A process that compiles with one version of Triton, started by the constructor.

    `triton` is a folder with another Triton than the installed one; the empty `folder` receives the
    request, answers, stderr and compiled files.
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
            # -P, or the working folder would precede the selected Triton on the path.
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

        Raises NotCompiled with the output of the process if there is no result.
        """
        while True:
            ended = self._process.poll() is not None  # polled before reading the last output
            self._read()
            found = self._answers.get((case, architecture))
            if found is not None:
                break
            if ended:
                stderr = (self._folder / "stderr.txt").read_text(errors="replace")
                raise NotCompiled(
                    f"{case} for sm_{architecture}: the process ended with "
                    f"{self._process.returncode}\n{stderr[-MAX_ERROR_CHARACTERS:]}"
                )
            time.sleep(POLL_S)
        if "error" in found:
            error = found["error"][-MAX_ERROR_CHARACTERS:]
            raise NotCompiled(f"{case} for sm_{architecture}\n{error}")
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
        """Kill the process."""
        self._process.kill()
        self._process.wait()

    def _read(self) -> None:
        with (self._folder / "answers.jsonl").open("rb") as file:
            file.seek(self._read_bytes)
            text = file.read()
        complete = text[: text.rfind(b"\n") + 1]
        self._read_bytes += len(complete)
        for line in complete.splitlines():
            answer = json.loads(line)
            self._answers[answer["case"], answer["architecture"]] = answer


def _environment(triton: Path | None) -> dict[str, str]:
    """Return an environment in which no variable of this process affects the compilation."""
    path = [str(folder) for folder in (triton, ROOT) if folder is not None]
    passed = {name: os.environ[name] for name in PASSED_VARIABLES if name in os.environ}
    return passed | {"PYTHONPATH": os.pathsep.join(path), "TRITON_CACHE_DIR": str(CACHE)}
