"""Machines for kernels that processes of their own compile, one for each Triton."""

import importlib.metadata
import json
import os
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tests.kernels.old_triton import VERSION as OLD
from tests.kernels.old_triton import old_triton_folder
from tests.kernels.ptx.machine import PtxMachine

NEW = importlib.metadata.version("triton")
VERSIONS = (NEW, OLD)

ROOT = Path(__file__).parents[2]
POLL_S = 0.05


class NotCompiled(Exception):
    """There is no code for a case; the message holds what the compiler said."""


@dataclass(frozen=True, slots=True)
class Compiler:
    """A process under one Triton, and the folder in which its answers appear."""

    process: subprocess.Popen[bytes]
    folder: Path

    def answer(self, case: str, architecture: int) -> dict[str, Any]:
        """Wait for a case and return it."""
        path = self.folder / f"{case}.sm_{architecture}.json"
        while True:
            ended = self.process.poll() is not None  # asked before looking: nothing comes after
            if path.exists():
                break
            if ended:
                said = (self.folder / "stderr.txt").read_text(errors="replace")
                raise NotCompiled(f"{case} for sm_{architecture}: {said[-4000:]}")
            time.sleep(POLL_S)
        answer: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
        if "error" in answer:
            raise NotCompiled(f"{case} for sm_{architecture}: {answer['error']}")
        return answer


class Machines:
    """Makes machines of cases as their code comes from the compilers."""

    def __init__(self, compilers: dict[str, Compiler]) -> None:
        self._compilers = compilers

    def ptx(self, version: str, case: str, architecture: int) -> str:
        return str(self._compilers[version].answer(case, architecture)["ptx"])

    def machine(
        self,
        version: str,
        case: str,
        architecture: int,
        *,
        change: Callable[[str], str] = lambda ptx: ptx,
        **settings: Any,
    ) -> PtxMachine:
        """A machine for a case; `change` may spoil its code first."""
        answer = self._compilers[version].answer(case, architecture)
        return PtxMachine(
            change(answer["ptx"]),
            num_warps=answer["warps"],
            shared_bytes=answer["shared_bytes"],
            **settings,
        )


@contextmanager
def compiling(registry: str, wanted: Sequence[tuple[str, int]], folder: Path) -> Iterator[Machines]:
    """Let the installed Triton and the old one compile what is wanted, in its order.

    `registry` is a module whose CASES are functions that return a `Launch`, by name.
    """
    with ExitStack() as stack:
        compilers = {}
        for version, triton in ((NEW, None), (OLD, old_triton_folder())):
            (folder / version).mkdir()
            compilers[version] = _start(registry, wanted, folder / version, triton)
            stack.callback(_stop, compilers[version].process)
        yield Machines(compilers)


def _start(
    registry: str, wanted: Sequence[tuple[str, int]], folder: Path, triton: Path | None
) -> Compiler:
    request = folder / "request.json"
    request.write_text(
        json.dumps({"registry": registry, "folder": str(folder), "wanted": list(wanted)}),
        encoding="utf-8",
    )
    # Nothing of this process may change what is compiled, such as a wish for the interpreter.
    kept = {name: x for name, x in os.environ.items() if not name.startswith("TRITON_")}
    path = os.pathsep.join(str(one) for one in (triton, ROOT) if one is not None)
    with request.open("rb") as stdin, (folder / "stderr.txt").open("wb") as stderr:
        process = subprocess.Popen(
            # -P: else the working folder would come before the Triton that is meant.
            [sys.executable, "-P", "-m", "tests.kernels.compile_ptx"],
            cwd=ROOT,
            env=kept | {"PYTHONPATH": path, "TRITON_CACHE_DIR": str(folder / "cache")},
            stdin=stdin,
            stdout=subprocess.DEVNULL,
            stderr=stderr,
        )
    return Compiler(process, folder)


def _stop(process: subprocess.Popen[bytes]) -> None:
    process.kill()
    process.wait()
