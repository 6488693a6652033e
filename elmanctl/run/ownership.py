"""Ownership checks: files that are unpickled, imported or executed must be the user's own.

A run folder holds pickles, the code that workers import, and shell lines for the nodes: whoever can
write there can act as the user who resumes it.  Its group is trusted, since the umask of the owner
let it in; reading JSON is never refused.
"""

import os
import pwd
import stat
from collections.abc import Iterable, Iterator, Mapping
from itertools import chain
from pathlib import Path

from elmanctl.constants import TRUST_VARIABLE
from elmanctl.errors import ConfigError, ForeignFolder
from elmanctl.folders import as_written
from elmanctl.run.paths import RunPaths

_ROOT = 0
# Like the kernel: more links in one path are a loop.
_MOST_LINKS = 40

_TRUST_HINT = f"if you trust whoever can write there, set {TRUST_VARIABLE}=1 for this command"


def refuse_foreign_run(paths: RunPaths) -> None:
    """Raise ForeignFolder unless a run folder is this user's, and nobody else can write to it."""
    own = (paths.submissions, paths.evaluations, paths.requests)
    # The folder itself comes first: another user's may not even be readable.
    listed = chain((paths.folder, paths.ledger, *own), _tree(paths.optimizer), _tree(paths.code))
    refuse_foreign_files(listed, why="what lies in a run's folder is run as you")
    refuse_open_parents(paths.folder)


def refuse_foreign_files(files: Iterable[Path], *, why: str) -> None:
    """Raise ForeignFolder for the first file or folder that another user may have written.

    A link and its target must both be the user's own; a missing file is skipped.
    """
    if _trusts_everybody(os.environ):
        return
    for path in files:
        fault = _fault(path)
        if fault is not None:
            raise ForeignFolder(f"{path} {fault[0]}, and {why}", hint=fault[1])


def refuse_open_parents(folder: Path) -> None:
    """Raise ForeignFolder when another user could replace this folder by another one."""
    if _trusts_everybody(os.environ):
        return
    for path in list(_names_of(folder)):
        _refuse_open(path.parents, folder)


def _refuse_open(parents: Iterable[Path], folder: Path) -> None:
    for parent in parents:
        try:
            mode = parent.stat().st_mode
        except FileNotFoundError:
            continue
        if mode & stat.S_IWOTH and not mode & stat.S_ISVTX:
            raise ForeignFolder(
                f"everybody may replace what lies in {parent}, {folder.name} too",
                hint=f"`chmod o-w {parent}`, or use another folder; {_TRUST_HINT}",
            )


def _names_of(folder: Path) -> Iterator[Path]:
    """Yield a folder's path, and that path again after each of its links is resolved.

    Raises ForeignFolder for a link of another user, who may change its target.
    """
    path = as_written(folder)
    yield path
    for _ in range(_MOST_LINKS):
        link = next((name for name in (*reversed(path.parents), path) if name.is_symlink()), None)
        if link is None:
            return
        owner = link.lstat().st_uid
        if owner not in (os.geteuid(), _ROOT):
            raise ForeignFolder(
                f"{link} is a link that belongs to {_user(owner)}, and leads to {folder.name}",
                hint=f"use another folder; {_TRUST_HINT}",
            )
        path = _without_dots(link.parent / link.readlink()) / path.relative_to(link)
        yield path
    raise ForeignFolder(f"{folder} is a link that leads to itself", hint="use another folder")


def _without_dots(path: Path) -> Path:
    """Return a path with each `..` resolved like the kernel does, after the links before it."""
    # There is no link above the folder of the link that was followed; its target may hold some.
    built = Path(path.anchor)
    for part in path.parts[1:]:
        built = built.resolve().parent if part == ".." else built / part
    return built


def _fault(path: Path) -> tuple[str, str] | None:
    """Return what is wrong with a file and a hint, None if it is safe or missing."""
    try:
        found = [path.lstat()]
        if stat.S_ISLNK(found[0].st_mode):
            found.append(path.stat())
    except FileNotFoundError:
        return None
    foreign = [status.st_uid for status in found if status.st_uid not in (os.geteuid(), _ROOT)]
    if foreign:
        return f"belongs to {_user(foreign[0])}", _TRUST_HINT
    if found[-1].st_mode & stat.S_IWOTH:
        return "can be written by everybody", f"`chmod o-w {path}`, or {_TRUST_HINT}"
    return None


def _tree(folder: Path) -> Iterator[Path]:
    yield folder
    yield from folder.rglob("*")


def _user(number: int) -> str:
    try:
        return f"`{pwd.getpwuid(number).pw_name}`"
    except KeyError:
        return f"user {number}"


def _trusts_everybody(environ: Mapping[str, str]) -> bool:
    value = environ.get(TRUST_VARIABLE, "")
    if value not in ("", "0", "1"):
        raise ConfigError(f"{TRUST_VARIABLE} is 1 or not set, not `{value}`")
    return value == "1"
