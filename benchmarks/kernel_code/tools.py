"""Disassembly of a cubin with the tools bundled with Triton."""

import subprocess
import tempfile
from pathlib import Path

import triton

TOOLS = Path(triton.__file__).parent / "backends" / "nvidia" / "bin"


def disassemble(cubin: bytes) -> str:
    """Return the instructions of a cubin with labels, from nvdisasm.

    `cuobjdump -sass` runs the same program but prints addresses instead of labels.
    """
    return _run("nvdisasm", "-c", cubin)


def resource_usage(cubin: bytes) -> str:
    """Return the registers and memory of a thread, from cuobjdump."""
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
