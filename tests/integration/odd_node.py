"""A node of the cluster that sees other folders than this machine, in a mount namespace."""

import os
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

SLURMBOX = Path(__file__).parents[2] / "scripts" / "slurmbox"

# $1 node, $2 folder.  Below `apart` the node has nothing of ours but folders of its own; `home` is
# a link here and a mount there, as where the login node is the one that holds the homes.
_START = """\
set -e
mount --make-rprivate /
mkdir -p "$2/kept"
mount --bind "$2/export/home" "$2/kept"
mount -t tmpfs none "$2/apart"
mkdir -p "$2/apart/own/submissions/s0001"
mount -t tmpfs none "$2/front"
mkdir "$2/front/home"
mount --move "$2/kept" "$2/front/home"
mount -t tmpfs none "$2/export"
mount -t tmpfs -o size=64k none "$2/small"
exec slurmd -N "$1"
"""


@dataclass(frozen=True, slots=True)
class OddNode:
    """The node's name, and the folder in which it differs."""

    name: str
    folder: Path


def slurmbox(*arguments: str) -> None:
    """Call the script that runs this cluster."""
    folder = Path(os.environ["SLURM_CONF"]).parents[1]
    subprocess.run(
        [SLURMBOX, *arguments],
        check=True,
        capture_output=True,
        env={**os.environ, "SLURMBOX": str(folder)},
    )


@contextmanager
def odd_node(name: str, folder: Path) -> Iterator[OddNode]:
    """Let one node be odd for a while; `folder` is made."""
    for part in ("apart", "front", "export/home", "small"):
        (folder / part).mkdir(parents=True)
    (folder / "front" / "home").symlink_to(folder / "export" / "home")
    slurmbox("stop", f"slurmd.{name}")
    try:
        command = ["unshare", "-m", "sh", "-c", _START, "sh", name, str(folder)]
        subprocess.run(command, check=True, stdin=subprocess.DEVNULL)
        slurmbox("start-node", name)
        yield OddNode(name, folder)
    finally:
        slurmbox("stop", f"slurmd.{name}")
        slurmbox("start-node", name)
