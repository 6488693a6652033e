"""Where the older of the two Tritons lies that users have: the one of torch 2.11."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

VERSION = "3.6.0"
VARIABLE = "ELMAN_OLD_TRITON"

ROOT = Path(__file__).parents[2]


def old_triton_folder() -> Path:
    """Return a folder that holds Triton 3.6.0, installed if need be.

    The variable ELMAN_OLD_TRITON names one that is there; otherwise it is in .cache.
    Raises RuntimeError when it cannot be had or holds another version.
    """
    given = os.environ.get(VARIABLE)
    folder = Path(given) if given else ROOT / ".cache" / f"triton-{VERSION}"
    if not given:
        done = subprocess.run(
            [ROOT / "scripts" / "install-old-triton", sys.executable, folder, "--quiet"],
            capture_output=True,
            text=True,
            check=False,
        )
        if done.returncode:
            raise RuntimeError(f"Triton {VERSION} cannot be installed: {done.stderr.strip()}")
    if not (folder / f"triton-{VERSION}.dist-info").is_dir():
        raise RuntimeError(f"{folder} does not hold Triton {VERSION}")
    return folder


@pytest.fixture(scope="session")
def old_triton() -> Path:
    """The folder of Triton 3.6.0, to be put first on the path of a process; never a skip."""
    return old_triton_folder()
