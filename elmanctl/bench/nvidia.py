"""What the driver's own tool says of the card, its clocks above all."""

import os
import shutil
from collections.abc import Mapping

from elmanctl.command import NoAnswer, run_command

TOOL = "nvidia-smi"

CLOCKS = ("clocks.sm", "clocks.mem", "power.draw", "temperature.gpu")
_IDENTITY = ("driver_version", "power.limit", "clocks.max.sm", "clocks.max.mem")
_TIMEOUT_S = 20


def identity(card: str) -> Mapping[str, str]:
    """Return driver, limits of power and clocks; empty where the tool is missing or fails."""
    return query(_IDENTITY, card)


def query(names: tuple[str, ...], card: str) -> Mapping[str, str]:
    """Return what the tool tells of a card now, with units; empty where it cannot be asked.

    `card` is its number or its name, GPU- and its UUID.
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
    """Read one line of values separated by commas; what the card does not tell is left out."""
    values = [value.strip() for value in line.strip().split(",")]
    if len(values) != len(names):
        return {}
    return {
        name: value
        for name, value in zip(names, values, strict=True)
        if value and not value.startswith("[")
    }
