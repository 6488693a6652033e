"""The holder of a lease, and the check whether that process is alive."""

import json
import os
import socket
from dataclasses import dataclass
from pathlib import Path

from elmanctl import clock
from elmanctl.codec import decode, encode
from elmanctl.errors import LedgerCorrupt, LedgerError
from elmanctl.ledger.files import parse_object
from elmanctl.processes import start_ticks

_VERSION = 1


@dataclass(frozen=True, slots=True, kw_only=True)
class Holder:
    """The process a lease belongs to; `pid_start` is in clock ticks since the machine's boot."""

    host: str
    boot_id: str
    pid_namespace: str
    pid: int
    pid_start: int
    fence: int
    token: str
    since: str

    def __str__(self) -> str:
        return f"process {self.pid} on {self.host} since {self.since}"


def this_process(host: str, fence: int) -> Holder:
    """Return the calling process as the holder of a new lease."""
    pid = os.getpid()
    start = start_ticks(pid)
    if start is None:
        raise LedgerError("cannot read /proc, which shows whether a controller is alive")
    return Holder(
        host=host,
        boot_id=_boot_id(),
        pid_namespace=_pid_namespace(),
        pid=pid,
        pid_start=start,
        fence=fence,
        token=os.urandom(16).hex(),
        since=clock.to_text(clock.now()),
    )


def encode_holder(holder: Holder) -> bytes:
    """Return the contents of a lease file."""
    return json.dumps({"version": _VERSION, **encode(holder)}, indent=1).encode("ascii") + b"\n"


def decode_holder(raw: bytes) -> Holder | None:
    """Read the contents of a lease file; None when they are damaged."""
    try:
        data = parse_object(raw)
        data.pop("version")
        return decode(Holder, data, "lease", LedgerCorrupt)
    except (ValueError, KeyError, LedgerCorrupt):
        return None


def is_gone(holder: Holder, host: str | None = None) -> bool | None:
    """Return whether the holder's process has ended; None when this machine cannot know."""
    if holder.host != (host or socket.gethostname()):
        return None
    if holder.boot_id != _boot_id():
        return True
    if holder.pid_namespace != _pid_namespace():
        return None
    if holder.pid < 1:
        # Zero and less stand for groups of processes, and some of those always live.
        return True
    try:
        os.kill(holder.pid, 0)
    except (ProcessLookupError, OverflowError):
        # No process has a number that the system cannot hold.
        return True
    except PermissionError:
        # It exists and belongs to another user; whether the number was reused is asked below.
        pass
    return start_ticks(holder.pid) not in (None, holder.pid_start)


def _boot_id() -> str:
    return Path("/proc/sys/kernel/random/boot_id").read_text(encoding="ascii").strip()


def _pid_namespace() -> str:
    """Name the space in which process numbers count; two containers may share a host's name."""
    return str(Path("/proc/self/ns/pid").readlink())
