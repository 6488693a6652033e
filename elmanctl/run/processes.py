"""Processes of this machine, as /proc tells of them."""

import os
from collections.abc import Iterator
from pathlib import Path


def command_lines() -> Iterator[tuple[int, str]]:
    """Yield the process id and command line of every process of this user.

    What others call their processes says nothing: it may be a trap for whoever waits for one.
    """
    for folder in Path("/proc").iterdir():
        if folder.name.isdigit():
            try:
                if folder.stat().st_uid != os.geteuid():
                    continue
                raw = (folder / "cmdline").read_bytes()
            except OSError:
                continue
            if raw:
                yield int(folder.name), raw.replace(b"\0", b" ").decode(errors="replace")


def start_ticks(pid: int) -> int | None:
    """Return when a process started, in clock ticks since boot; None when there is none.

    A process id alone may be somebody else's by now; with its start it names one process.
    A zombie counts as gone.
    """
    try:
        stat = Path(f"/proc/{pid}/stat").read_text(encoding="utf-8", errors="replace")
    except OSError:
        return None
    fields = stat.rpartition(")")[2].split()
    return None if fields[0] == "Z" else int(fields[19])
