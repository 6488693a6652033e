"""Machines for kernels that processes of their own compile, one for each Triton.

A launch is compiled as it is described: by the names of its kernel and of all that is fixed before
its tensors are known.  So this process needs no kernel that can be compiled, and may have set
Triton's interpreter up.
"""

import hashlib
import json
import os
import subprocess
import sys
import time
from collections.abc import Callable, Collection, Iterable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import fields
from pathlib import Path
from typing import Any

import pytest

from benchmarks.kernel_code.children import CACHE
from elmanctl.kernels.launch import Launch
from tests.kernels.interpreted import without_interpreter
from tests.kernels.ptx.machine import PtxMachine, Report
from tests.kernels.tritons import ASIDE, VERSIONS, folder_of, is_compiled

ROOT = Path(__file__).parents[2]
POLL_S = 0.05


class NotCompiled(Exception):
    """There is no code for a launch; the message holds what the compiler said."""


class Compiler:
    """A process under one Triton, which compiles what it is asked for in that order."""

    def __init__(self, folder: Path, triton: Path | None) -> None:
        self._folder = folder
        self._asked: set[Path] = set()
        path = os.pathsep.join(str(one) for one in (triton, ROOT) if one is not None)
        with (folder / "stderr.txt").open("wb") as stderr:
            self._process = subprocess.Popen(
                # -P: else the working folder would come before the Triton that is meant.
                [sys.executable, "-P", "-m", "tests.kernels.compile_ptx"],
                cwd=ROOT,
                env=without_interpreter()
                # The cache of those who count instructions: many launches are the same.
                | {"PYTHONPATH": path, "TRITON_CACHE_DIR": str(CACHE)},
                stdin=subprocess.PIPE,
                stdout=subprocess.DEVNULL,
                stderr=stderr,
                text=True,
            )

    def ask(self, launch: Launch, architecture: int) -> Path:
        """Have a launch compiled when it is its turn; return the file that the answer will be."""
        described = _describe(launch)
        key = hashlib.sha256(json.dumps([described, architecture]).encode()).hexdigest()
        path = self._folder / f"{key}.json"
        if path not in self._asked:
            self._asked.add(path)
            request = {"launch": described, "architecture": architecture, "file": str(path)}
            assert self._process.stdin is not None
            self._process.stdin.write(json.dumps(request) + "\n")
            self._process.stdin.flush()
        return path

    def answer(self, launch: Launch, architecture: int) -> dict[str, Any]:
        """Wait for a launch and return its code.

        Raises NotCompiled with the process' own words when there is none.
        """
        path = self.ask(launch, architecture)
        while True:
            ended = self._process.poll() is not None  # asked before looking: nothing comes after
            if path.exists():
                break
            if ended:
                said = (self._folder / "stderr.txt").read_text(errors="replace")
                raise NotCompiled(f"{launch} for sm_{architecture}: {said[-4000:]}")
            time.sleep(POLL_S)
        answer: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
        if "error" in answer:
            raise NotCompiled(f"{launch} for sm_{architecture}: {answer['error']}")
        return answer

    def stop(self) -> None:
        """End the process, whatever it is at."""
        self._process.kill()
        self._process.communicate()


def _describe(launch: Launch) -> dict[str, Any]:
    """A launch as plain data; its kernel may be a name already, `module:function`."""
    described = {one.name: getattr(launch, one.name) for one in fields(launch)}
    if not isinstance(launch.kernel, str):
        function = launch.kernel.fn
        described["kernel"] = f"{function.__module__}:{function.__name__}"
    return {name: dict(x) if hasattr(x, "keys") else x for name, x in described.items()}


class Machines:
    """Makes machines of launches as their code comes from the compilers."""

    def __init__(self, compilers: dict[str, Compiler]) -> None:
        self._compilers = compilers

    def expect(
        self, launch: Launch, architecture: int, *, versions: Iterable[str] = VERSIONS
    ) -> None:
        """Have a launch compiled wherever it is, and do not wait for it."""
        for version in versions:
            if is_compiled(version, architecture):
                self._compilers[version].ask(launch, architecture)

    def ptx(self, version: str, launch: Launch, architecture: int) -> str:
        return str(self._compilers[version].answer(launch, architecture)["ptx"])

    def machine(
        self,
        version: str,
        launch: Launch,
        architecture: int,
        *,
        change: Callable[[str], str] = lambda ptx: ptx,
        **settings: Any,
    ) -> PtxMachine:
        """A machine for a launch; `change` may spoil its code first."""
        answer = self._compilers[version].answer(launch, architecture)
        return PtxMachine(
            change(answer["ptx"]),
            num_warps=answer["warps"],
            shared_bytes=answer["shared_bytes"],
            **settings,
        )

    def run(
        self,
        version: str,
        launch: Launch,
        architecture: int,
        grid: tuple[int, ...],
        arguments: dict[str, Any],
        *,
        empty: Collection[str] = (),
        **settings: Any,
    ) -> Report:
        """Do on a machine what the launch would do on a GPU, with arguments by their names.

        `empty` names those that hold nothing yet.
        """
        names = [name for name in launch.kernel.arg_names if name not in launch.constants]
        if sorted(names) != sorted(arguments):
            raise ValueError(f"the arguments {sorted(arguments)} for {sorted(names)}")
        machine = self.machine(version, launch, architecture, **settings)
        poisoned = [i for i, name in enumerate(names) if name in empty]
        return machine.run(grid, [arguments[name] for name in names], poisoned=poisoned)


@contextmanager
def launches_taken_over(function: Callable[..., None]) -> Iterator[None]:
    """Give every launch of this process, with its grid and arguments, to a function instead."""

    def launch(self: Launch, grid: tuple[int, ...], **arguments: Any) -> None:
        function(self, grid, arguments)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Launch, "__call__", launch)
        yield


@contextmanager
def compiling(folder: Path) -> Iterator[Machines]:
    """Start every Triton."""
    with ExitStack() as stack:
        compilers = {}
        for version in VERSIONS:
            triton = folder_of(version) if version in ASIDE else None
            (folder / version).mkdir()
            compilers[version] = Compiler(folder / version, triton)
            stack.callback(compilers[version].stop)
        yield Machines(compilers)
