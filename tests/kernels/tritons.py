"""The Tritons that users have: the one of the pinned torch, an older one and the newest."""

import importlib.metadata
import os
import subprocess
import sys
from pathlib import Path

from tests.long import LONG

ROOT = Path(__file__).parents[2]

PINNED = importlib.metadata.version("triton")
OLD = "3.6.0"  # of torch 2.10 and 2.11
NEWEST = "3.9.0"  # of torch 2.15
VARIABLES = {OLD: "ELMAN_OLD_TRITON", NEWEST: "ELMAN_NEWEST_TRITON"}
ASIDE = tuple(version for version in VARIABLES if version != PINNED)
VERSIONS = (PINNED, *ASIDE)

SAMPLED_ARCHITECTURE = 90


def is_compiled(version: str, architecture: int) -> bool:
    """Whether a Triton compiles for an architecture here: others than the pinned do for one."""
    return LONG or version == PINNED or architecture == SAMPLED_ARCHITECTURE


def folder_of(version: str) -> Path:
    """Return a folder that holds a Triton of `ASIDE`, installed if need be.

    A variable of the environment names one that is there; otherwise it is in .cache.
    Raises RuntimeError when it cannot be had or holds another version.
    """
    given = os.environ.get(VARIABLES[version])
    folder = Path(given) if given else ROOT / ".cache" / f"triton-{version}"
    if not given:
        script = ROOT / "scripts" / "install-triton"
        done = subprocess.run(
            [script, version, sys.executable, folder, "--quiet"],
            capture_output=True,
            text=True,
            check=False,
        )
        if done.returncode:
            raise RuntimeError(f"Triton {version} cannot be installed: {done.stderr.strip()}")
    if not (folder / f"triton-{version}.dist-info").is_dir():
        raise RuntimeError(f"{folder} does not hold Triton {version}")
    return folder
