"""A node of the cluster that sees other folders than this machine, in a mount namespace."""

import os
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

SLURMBOX = Path(__file__).parents[2] / "scripts" / "slurmbox"

# $1 node, $2 folder, $3 the script that starts it, of whatever release.  Below `apart` the node can
# write to `own` alone, which is its own; `home` is a link here and a mount there, as where the
# login node is the one that holds the homes.
_START = """\
set -e
mount --make-rprivate /
mkdir -p "$2/kept"
mount --bind "$2/export/home" "$2/kept"
mount -t tmpfs none "$2/apart"
mkdir "$2/apart/own"
mount -t tmpfs none "$2/apart/own"
mkdir -p "$2/apart/own/submissions/s0001"
mount -o remount,ro "$2/apart"
mount -t tmpfs none "$2/front"
mkdir "$2/front/home"
mount --move "$2/kept" "$2/front/home"
mount -t tmpfs none "$2/export"
mount -t tmpfs -o size=64k none "$2/small"
exec "$3" start "slurmd.$1"
"""


@dataclass(frozen=True, slots=True)
class OddNode:
    """The node's name, and the folder in which it differs."""

    name: str
    folder: Path


def _run(*command: str) -> None:
    folder = Path(os.environ["SLURM_CONF"]).parents[1]
    subprocess.run(
        command,
        check=True,
        capture_output=True,
        stdin=subprocess.DEVNULL,
        env={**os.environ, "SLURMBOX": str(folder)},
    )


@contextmanager
def odd_node(name: str, folder: Path) -> Iterator[OddNode]:
    """Let one node be odd for a while; `folder` is made."""
    for part in ("apart", "front", "export/home", "small"):
        (folder / part).mkdir(parents=True)
    (folder / "front" / "home").symlink_to(folder / "export" / "home")
    script = str(SLURMBOX)
    _run(script, "stop", f"slurmd.{name}")
    try:
        _run("unshare", "-m", "sh", "-c", _START, "sh", name, str(folder), script)
        _run(script, "start-node", name)
        yield OddNode(name, folder)
    finally:
        _run(script, "stop", f"slurmd.{name}")
        _run(script, "start-node", name)
