"""The kernels' machine code, compiled in the background from the first test of this folder on."""

import importlib.metadata
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path

import pytest

from benchmarks.kernel_code.children import Answer, Child
from tests.kernels.old_triton import VERSION, old_triton_folder
from tests.kernels.sample_cases import WANTED

NEW = importlib.metadata.version("triton")
OLD = VERSION


class Compilation:
    """One process for each Triton, both at work on all that is wanted, in its order."""

    def __init__(self, folder: Path, stack: ExitStack) -> None:
        self._children: dict[str, Child] = {}
        self._refusal: RuntimeError | None = None
        self._start(NEW, None, folder, stack)
        try:
            old = old_triton_folder()
        except RuntimeError as exc:
            self._refusal = exc  # for those who ask for it, and not for the other tests here
        else:
            self._start(OLD, old, folder, stack)

    def _start(self, version: str, triton: Path | None, folder: Path, stack: ExitStack) -> None:
        (folder / version).mkdir()
        self._children[version] = stack.enter_context(
            Child(
                WANTED,
                folder / version,
                triton=triton,
                registry="tests.kernels.sample_cases",
            )
        )

    def answer(self, version: str, case: str, architecture: int) -> Answer:
        """Wait for a case and return it."""
        if version not in self._children:
            raise RuntimeError(f"there is no Triton {version}") from self._refusal
        return self._children[version].answer(case, architecture)


@pytest.fixture(scope="session", autouse=True)
def compilation_at_work(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Compilation | None]:
    """Start the compilation, if any test of this session waits for it."""
    with ExitStack() as stack:
        wanted = any("compilation" in getattr(i, "fixturenames", ()) for i in request.session.items)
        yield Compilation(tmp_path_factory.mktemp("code"), stack) if wanted else None


@pytest.fixture(scope="session")
def compilation(compilation_at_work: Compilation | None) -> Compilation:
    """What was started with the first test of this folder."""
    assert compilation_at_work is not None
    return compilation_at_work
