"""Processes of this machine, from /proc."""

import os
from collections.abc import Iterator
from pathlib import Path


def command_lines() -> Iterator[tuple[int, str]]:
    """Yield the process id and command line of every process of this user.

    Other users' processes are left out: they may have any name.
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
    """Return when a process started, in clock ticks since boot; None if there is none.

    A process id may have been reused; together with the start it identifies one process.  A zombie
    does not count.
    """
    try:
        stat = Path(f"/proc/{pid}/stat").read_text(encoding="utf-8", errors="replace")
    except OSError:
        return None
    fields = stat.rpartition(")")[2].split()
    return None if fields[0] == "Z" else int(fields[19])
