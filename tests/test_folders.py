"""Paths as the user writes them, through links that lead elsewhere on other machines."""

import os
from collections.abc import Iterator
from pathlib import Path

import pytest

from elmanctl.folders import as_nodes_see, as_written, enter, working_folder


@pytest.fixture
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A home that is reached through a link, in which the user stands."""
    (tmp_path / "export" / "home" / "ann" / "work").mkdir(parents=True)
    (tmp_path / "home").symlink_to(tmp_path / "export" / "home")
    home = tmp_path / "home" / "ann"
    before = Path.cwd()
    monkeypatch.setenv("HOME", str(home))
    monkeypatch.setenv("PWD", str(before))
    enter(home)
    yield home
    os.chdir(before)


def test_working_folder_has_the_name_under_which_it_was_entered(home: Path) -> None:
    assert working_folder() == home
    assert Path.cwd() != home
    enter(Path("work"))
    assert working_folder() == home / "work"
    enter(Path(".."))
    assert working_folder() == home


@pytest.mark.parametrize(
    "told", ["", "work", "/nowhere", "{home}/work", "{home}/../ann", "{home}x"]
)
def test_variable_that_does_not_name_the_working_folder_is_not_believed(
    home: Path, monkeypatch: pytest.MonkeyPatch, told: str
) -> None:
    monkeypatch.setenv("PWD", told.format(home=home))
    assert working_folder() == Path.cwd()


def test_path_keeps_its_links(home: Path, tmp_path: Path) -> None:
    assert as_written(Path("runs")) == home / "runs"
    assert as_written(Path("~/runs")) == home / "runs"
    assert as_written(Path("/x/./y")) == Path("/x/y")
    assert as_written(home / "work" / ".." / "runs") == home / "runs"
    assert as_written(Path("absent/../runs")) == home / "runs"
    # Going back from a link leads to where the kernel says.
    assert as_written(Path("../../runs")) == tmp_path / "export" / "runs"
    (home / "far").symlink_to(tmp_path / "export")
    assert as_written(Path("far/../runs")) == tmp_path / "runs"


def test_path_of_the_kernel_gets_the_name_that_nodes_see(home: Path, tmp_path: Path) -> None:
    python = tmp_path / "export" / "home" / "ann" / ".venv" / "bin" / "python"
    python.parent.mkdir(parents=True)
    python.touch()
    assert as_nodes_see(python) == home / ".venv" / "bin" / "python"
    shared = tmp_path / "export" / "home" / "shared"
    shared.touch()
    assert as_nodes_see(shared) == tmp_path / "home" / "shared"
    # Nothing else is renamed: not what is no file there, and not what has a name already.
    for path in (home / "work", Path("/usr/bin/env"), tmp_path / "export" / "other"):
        assert as_nodes_see(path) == path


def test_link_of_an_interpreter_is_kept(home: Path, tmp_path: Path) -> None:
    """An environment is known by its own name for Python, which is a link to another."""
    python = tmp_path / "export" / "home" / "ann" / "python"
    python.symlink_to("/usr/bin/env")
    assert as_nodes_see(python) == home / "python"
