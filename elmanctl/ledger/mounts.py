"""The mount table of this process, and the file system of a path."""

import os
import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True, slots=True, kw_only=True)
class Mount:
    """The file system of a path: where it is mounted, and of which type it is."""

    point: str
    kind: str

    @property
    def is_shared(self) -> bool:
        """Whether other machines see the same files, judged by the type of the file system."""
        if self.kind in _OF_ONE_MACHINE:
            return False
        return self.kind in _SHARED or self.kind.startswith("fuse")


# Of a line of mountinfo; blanks and the like stand there as three octal digits.
_POINT = 4
_ESCAPED = re.compile(rb"\\([0-7]{3})")

_SHARED = {
    *("9p", "afs", "beegfs", "ceph", "cifs", "gfs2", "gpfs", "lustre", "ncpfs", "nfs", "nfs4"),
    *("ocfs2", "orangefs", "panfs", "pvfs2", "smb3", "smbfs", "virtiofs", "wekafs"),
}

# FUSE is a program, most often one that talks to a server.
_OF_ONE_MACHINE = {"fusectl", "fuseblk", "fuse.fuse-overlayfs", "fuse.lxcfs", "fuse.mergerfs"}


def find_mount(path: Path) -> Mount:
    """Return the mount that holds `path`, by the longest mount point above it."""
    wanted = Path(os.path.realpath(path))
    best = Mount(point="/", kind="")
    for mount in mounts():
        # A later mount on the same point hides the earlier one.
        if wanted.is_relative_to(mount.point) and len(mount.point) >= len(best.point):
            best = mount
    return best


def mounts() -> Iterator[Mount]:
    """Yield the mounts, in order; any user may have mounted something under any name."""
    for line in Path("/proc/self/mountinfo").read_bytes().split(b"\n"):
        before, _, after = line.partition(b" - ")
        fields = before.split(b" ")
        if len(fields) > _POINT:
            point = _ESCAPED.sub(lambda octal: bytes([int(octal[1], 8) & 0xFF]), fields[_POINT])
            yield Mount(point=os.fsdecode(point), kind=os.fsdecode(after.split(b" ")[0]))
