"""The remaining disk quota of this user, by the commands of this machine.

`lfs quota` is asked on Lustre, `quota` elsewhere, each at most once a minute and file system.
"""

import os
import shutil
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from elmanctl.command import NoAnswer, run_command
from elmanctl.ledger.mounts import Mount, find_mount

_TIMEOUT_S = 5.0
_ASK_EVERY_S = 60.0

# Both commands count in blocks of this size.
_BLOCK_BYTES = 1024

# What `lfs quota` says of a grace period that is over.
_EXPIRED = ("none", "expired")


@dataclass(frozen=True, slots=True, kw_only=True)
class Quota:
    """The remaining quota of this user; None where it does not limit.

    `note` names the command that reported it, or the reason why none could.
    """

    left_bytes: int | None = None
    left_inodes: int | None = None
    note: str


_answers: dict[str, tuple[float, Quota]] = {}


def ask_quota(path: Path) -> Quota:
    """Return the quota on the file system of `path`; never fails and takes seconds at most."""
    mount = find_mount(path)
    known = _answers.get(mount.point)
    if known is not None and time.monotonic() - known[0] < _ASK_EVERY_S:
        return known[1]
    found = _ask(mount)
    _answers[mount.point] = (time.monotonic(), found)
    return found


def _ask(mount: Mount) -> Quota:
    user = str(os.getuid())
    if mount.kind == "lustre":
        command = ["lfs", "quota", "-q", "-u", user, mount.point]
    else:
        options = ("--no-wrap", "--raw-grace", "--show-mntpoint", "--hide-device", "--user")
        command = ["quota", *options]
    if shutil.which(command[0]) is None:
        return Quota(note=f"no quota known: there is no command `{command[0]}` here")
    try:
        done = run_command(command, {**os.environ, "LC_ALL": "C"}, timeout_s=_TIMEOUT_S)
    except OSError as exc:
        return Quota(note=f"no quota known: `{command[0]}` cannot be run: {exc}")
    except NoAnswer as exc:
        return Quota(note=f"no quota known: {exc}")
    # `quota` exits with 1 for a user who is over a limit, and still prints the table.
    return read_answer(done.stdout, mount.point, command[0])


def read_answer(text: str, mount_point: str, command: str) -> Quota:
    """Read the row of a mount point: used, soft, hard, grace of blocks, then of inodes."""
    words = text.split()
    for index, word in enumerate(words):
        cells = words[index + 1 : index + 9]
        if word.rstrip("/") == mount_point.rstrip("/") and len(cells) == 8:
            try:
                blocks, inodes = _left(cells[:4]), _left(cells[4:])
            except ValueError:
                return Quota(note=f"no quota known: `{command}` said {' '.join(cells)}")
            return Quota(
                left_bytes=None if blocks is None else blocks * _BLOCK_BYTES,
                left_inodes=inodes,
                note=f"by `{command}`",
            )
    return Quota(note=f"`{command}` reports no quota on {mount_point}")


def _left(cells: Sequence[str]) -> int | None:
    """Return what is left of one limit, None where there is none; 0 after the grace period.

    Between the soft and the hard limit writing goes on until the grace period is over.
    """
    # A star marks what is over a limit, brackets what Lustre is not sure of.
    used, soft, hard = (int(cell.strip("*[]")) for cell in cells[:3])
    if soft and used > soft and _is_over(cells[3]):
        return 0
    limit = hard or soft
    return max(0, limit - used) if limit else None


def _is_over(grace: str) -> bool:
    """Whether a grace period has ended: seconds since 1970 by `quota`, a word by `lfs`."""
    return 0 < int(grace) <= time.time() if grace.isdigit() else grace in _EXPIRED
