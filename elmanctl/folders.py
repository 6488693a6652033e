"""Absolute paths as the user writes them, with their links, which may lead elsewhere on a node.

A home may be a link on the login node and a mount on the nodes: what a link leads to here is then
no path there.  The kernel knows the working folder without links only; the shell keeps the name
under which it was entered in PWD.
"""

import os
from collections.abc import Iterator
from pathlib import Path


def working_folder() -> Path:
    """Return the working folder under the name by which the user entered it."""
    named = Path(os.environ.get("PWD", ""))
    # A program that changes the folder need not change the variable.
    if named.is_absolute() and ".." not in named.parts and is_same(named, Path()):
        return named
    return Path.cwd()


def shown(path: Path) -> Path:
    """Return a path relative to the working folder, if it is below it."""
    here = working_folder()
    return path.relative_to(here) if path.is_relative_to(here) else path


def enter(folder: Path) -> None:
    """Make a folder the working one, under the name given for it; raises OSError."""
    path = as_written(folder)
    os.chdir(path)
    os.environ["PWD"] = str(path)


def as_written(path: Path) -> Path:
    """Return an absolute path whose links are kept; `~` is the user's home.

    A `..` goes back over the name before it, unless that is a link to somewhere else.
    """
    whole = working_folder() / path.expanduser()
    built = Path(whole.anchor)
    for part in whole.parts[1:]:
        if part != "..":
            built /= part
        elif is_same(built.parent, built / "..") or not (built / "..").exists():
            built = built.parent
        else:
            built = (built / "..").resolve()
    return built


def as_nodes_see(path: Path) -> Path:
    """Return a path without links under a name that the user's home or working folder gives it.

    Tools that ask the kernel where they are write paths that only this machine has: a virtual
    environment made in a linked home does.  A path that needs no other name is returned as it is.
    """
    for named, real in _names():
        if path.is_relative_to(real) and not path.is_relative_to(named):
            other = named / path.relative_to(real)
            if is_same(path, other):
                return other
    return path


def nearest_existing(folder: Path) -> Path:
    """Return a folder that may be missing, or its nearest parent that exists."""
    return next(path for path in (folder, *folder.parents) if path.exists())


def _names() -> Iterator[tuple[Path, Path]]:
    """Yield folders under the user's name for them and under the kernel's, the innermost first."""
    home = Path(os.environ.get("HOME", ""))
    for named in (*([home] if home.is_absolute() else []), working_folder()):
        real = Path(os.path.realpath(named))
        while named.name == real.name and named != real:
            yield named, real
            named, real = named.parent, real.parent
        if named != real:
            yield named, real


def is_same(one: Path, other: Path) -> bool:
    """Whether two paths lead to the same file; not where one of them cannot be looked at."""
    try:
        return one.samefile(other)
    except OSError:
        return False
