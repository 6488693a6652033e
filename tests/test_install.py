"""What an installation holds: a wheel in an environment of its own, and a checkout put in with -e.

pip takes elmanctl's dependencies, those of a login node, from the package index.
"""

import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.long import LONG

pytestmark = pytest.mark.timeout(900)  # for the index, from a machine that has other work

ROOT = Path(__file__).parents[1]
ROOMS = ("models", "kernels", "jobs", "ledger", "sbatch_templates")
# Beside the Python of these tests, those that the classifiers name, where there are any.
OTHERS = ("python3.11", "python3.12", "python3.13", "python3.14")


def run(*words: str | Path, folder: Path, **environment: str) -> str:
    """Run a program with a bare environment and return what it printed."""
    kept = {name: os.environ[name] for name in ("HOME", "PATH") if name in os.environ}
    done = subprocess.run(
        words, cwd=folder, env=kept | environment, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, f"{words}\n{done.stdout}\n{done.stderr}"
    return done.stdout


def install(python: Path, *what: str | Path) -> None:
    """Install into an environment with the pip of these tests."""
    pip: list[str | Path] = [sys.executable, "-m", "pip", "--python", python, "install", "--quiet"]
    subprocess.run([*pip, "-c", ROOT / "constraints.txt", *what], check=True)


def make_environment(folder: Path, python: str = sys.executable) -> Path:
    """Make an empty environment and return its Python."""
    subprocess.run([python, "-m", "venv", "--without-pip", folder], check=True)
    return folder / "bin" / "python"


@pytest.fixture(scope="module")
def checkout(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A copy of what git knows, without git, in a folder with a space in its name."""
    copy = tmp_path_factory.mktemp("a place") / "elmanctl"
    listed = subprocess.run(["git", "ls-files", "-z"], cwd=ROOT, capture_output=True, check=True)
    for name in filter(None, listed.stdout.decode().split("\0")):
        if (ROOT / name).is_symlink() or (ROOT / name).is_file():
            (copy / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy2(ROOT / name, copy / name, follow_symlinks=False)
    return copy


@pytest.fixture(scope="module")
def wheel(checkout: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("wheel")
    pip: list[str | Path] = [
        sys.executable,
        "-m",
        "pip",
        "wheel",
        "--quiet",
        "--no-deps",
        "--wheel-dir",
        folder,
    ]
    subprocess.run([*pip, "."], cwd=checkout, check=True)
    (path,) = folder.iterdir()
    return path


def pythons() -> Iterator[str]:
    yield sys.executable
    for name in OTHERS if LONG else ():
        found = shutil.which(name)
        works = found and subprocess.run([found, "-c", ""], capture_output=True, check=False)
        if found and works and works.returncode == 0:
            yield found


@pytest.mark.parametrize("python", [*pythons()])
def test_wheel_for_a_login_node_has_all_that_a_search_asks_for(
    python: str, wheel: Path, tmp_path: Path
) -> None:
    install(make_environment(tmp_path / "environment", python), wheel)
    empty = tmp_path / "empty"
    empty.mkdir()
    program = tmp_path / "environment" / "bin" / "elmanctl"

    def elmanctl(*words: str) -> str:
        # No Slurm on the path, and no settings of anybody's.
        return run(program, *words, folder=empty, PATH=str(program.parent), HOME=str(tmp_path))

    search = ("search", "e88", "--params", "480M", "--train-minutes", "10", "--dry-run")
    assert "#SBATCH --gres=gpu:h100:1" in elmanctl(*search, "--template", "h100")
    tiny = elmanctl("search", "e88", "--preset", "tiny", "--dry-run")
    assert "#SBATCH --array=0-3%4" in tiny
    elmanctl("status")
    assert list(empty.iterdir()) == []
    there = "import sys; from elmanctl.kernels.matrix_recurrence import splits; print(splits.TABLE)"
    table = Path(run(program.parent / "python", "-c", there, folder=empty).strip())
    assert table.is_file()
    assert table.is_relative_to(tmp_path / "environment")
    torch = "import importlib.util; print(importlib.util.find_spec('torch'))"
    assert run(program.parent / "python", "-c", torch, folder=empty) == "None\n"


@pytest.fixture(scope="module")
def editable(checkout: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The Python of an environment into which a checkout was put with -e."""
    python = make_environment(tmp_path_factory.mktemp("editable"))
    install(python, "--no-deps", "-e", checkout)
    return python


@pytest.mark.parametrize("room", [*ROOMS, "tests", "benchmarks", "scripts", "docs", "src"])
def test_editable_installation_makes_nothing_else_importable(
    editable: Path, room: str, tmp_path: Path
) -> None:
    program = "import importlib.util, sys; print(importlib.util.find_spec(sys.argv[1]))"
    assert run(editable, "-c", program, room, folder=tmp_path) == "None\n"


def test_editable_installation_is_the_checkout(
    editable: Path, checkout: Path, tmp_path: Path
) -> None:
    program = "import elmanctl; print(elmanctl.__file__)"
    # From the folder in which a clone of the usual name lies, too: it is no package by itself.
    for folder in (tmp_path, checkout.parent, checkout):
        found = Path(run(editable, "-c", program, folder=folder).strip())
        assert found.samefile(checkout / "elmanctl" / "__init__.py")


@pytest.mark.parametrize("left", ["nothing", "a text file"])
def test_link_that_a_copy_has_lost_is_made_again(checkout: Path, tmp_path: Path, left: str) -> None:
    copy = shutil.copytree(checkout, tmp_path / "copy", symlinks=True)
    shutil.rmtree(copy / "src")
    if left == "a text file":
        (copy / "src").mkdir()
        (copy / "src" / "elmanctl").write_text("../elmanctl")
    python = make_environment(tmp_path / "environment")
    install(python, "--no-deps", "-e", copy)
    found = run(python, "-c", "import elmanctl; print(elmanctl.__file__)", folder=tmp_path)
    assert Path(found.strip()).samefile(copy / "elmanctl" / "__init__.py")


def test_code_of_an_editable_installation_is_frozen_whole(
    editable: Path, checkout: Path, tmp_path: Path
) -> None:
    program = (
        "import sys; from pathlib import Path; from elmanctl.run.frozen_code import *\n"
        "assert freeze_code(Path(sys.argv[1])) == hash_code(Path(sys.argv[2]))\n"
    )
    package = checkout / "elmanctl"
    run(editable, "-c", program, tmp_path / "code", package, folder=tmp_path)
    assert not any(path.is_symlink() for path in (tmp_path / "code").rglob("*"))
