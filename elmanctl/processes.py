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
    """Return when a process started, in clock ticks since boot; 0 for one that has ended.

    None where there is none, or this user may not know.  A process id may have been reused;
    together with the start it identifies one process.  A process that was killed and not yet
    waited for has ended.
    """
    try:
        stat = Path(f"/proc/{pid}/stat").read_text(encoding="utf-8", errors="replace")
    except OSError:
        return None
    # The second field, the command's name in brackets, may itself hold brackets and blanks.
    fields = stat.rpartition(")")[2].split()
    return 0 if fields[0] in ("Z", "X") else int(fields[19])
