"""GPU clocks, power and driver version, queried from nvidia-smi."""

import os
import shutil
from collections.abc import Mapping

from elmanctl.command import NoAnswer, run_command

TOOL = "nvidia-smi"

CLOCKS = ("clocks.sm", "clocks.mem", "power.draw", "temperature.gpu")
IDENTITY = ("driver_version", "power.limit", "clocks.max.sm", "clocks.max.mem")
_TIMEOUT_S = 20


def query(names: tuple[str, ...], card: str) -> Mapping[str, str]:
    """Return the current values of a GPU with units; empty if nvidia-smi fails.

    `card` is its index or its name, `GPU-` and its UUID.
    """
    if shutil.which(TOOL) is None:
        return {}
    command = [TOOL, f"--id={card}", f"--query-gpu={','.join(names)}", "--format=csv,noheader"]
    try:
        done = run_command(command, os.environ, timeout_s=_TIMEOUT_S)
    except (OSError, NoAnswer):
        return {}
    return parse(names, done.stdout) if done.code == 0 else {}


def parse(names: tuple[str, ...], line: str) -> Mapping[str, str]:
    """Parse a line of comma-separated values, omitting those that the GPU does not report."""
    values = [value.strip() for value in line.strip().split(",")]
    if len(values) != len(names):
        return {}
    return {
        name: value
        for name, value in zip(names, values, strict=True)
        if value and not value.startswith("[")
    }
