"""The disassemblers that Triton carries, called on one cubin."""

import subprocess
import tempfile
from pathlib import Path

import triton

TOOLS = Path(triton.__file__).parent / "backends" / "nvidia" / "bin"


def disassemble(cubin: bytes) -> str:
    """Return what nvdisasm says of a cubin: every instruction, with labels where branches lead.

    `cuobjdump -sass` starts the same program and prints addresses in place of the labels.
    """
    return _run("nvdisasm", "-c", cubin)


def resource_usage(cubin: bytes) -> str:
    """Return what cuobjdump says of a cubin: registers and memory of a thread."""
    return _run("cuobjdump", "-res-usage", cubin)


def _run(tool: str, option: str, cubin: bytes) -> str:
    with tempfile.NamedTemporaryFile(suffix=".cubin") as file:
        file.write(cubin)
        file.flush()
        done = subprocess.run(
            [TOOLS / tool, option, file.name], capture_output=True, text=True, check=False
        )
    if done.returncode:
        raise RuntimeError(f"{tool} {option} failed: {done.stderr.strip()}")
    return done.stdout
