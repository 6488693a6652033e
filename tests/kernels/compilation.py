"""The kernels' machine code, compiled in the background from the first test of this folder on."""

from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path

import pytest

from benchmarks.kernel_code.children import Answer, Child
from tests.kernels.sample_cases import wanted_of
from tests.kernels.tritons import ASIDE, PINNED, folder_of


class Compilation:
    """One process for each Triton, all at work on what is wanted of it, in its order."""

    def __init__(self, folder: Path, stack: ExitStack) -> None:
        self._children: dict[str, Child] = {}
        self._refusals: dict[str, RuntimeError] = {}
        self._start(PINNED, None, folder, stack)
        for version in ASIDE:
            try:
                triton = folder_of(version)
            except RuntimeError as exc:
                # For those who ask for it, and not for the other tests here.
                self._refusals[version] = exc
            else:
                self._start(version, triton, folder, stack)

    def _start(self, version: str, triton: Path | None, folder: Path, stack: ExitStack) -> None:
        (folder / version).mkdir()
        self._children[version] = stack.enter_context(
            Child(
                wanted_of(version),
                folder / version,
                triton=triton,
                registry="tests.kernels.sample_cases",
            )
        )

    def answer(self, version: str, case: str, architecture: int) -> Answer:
        """Wait for a case and return it."""
        if version not in self._children:
            raise RuntimeError(f"there is no Triton {version}") from self._refusals[version]
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
