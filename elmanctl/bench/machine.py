"""Which machine and which code numbers come from; torch is imported only when it is there."""

import importlib.util
import os
import platform
from collections.abc import Mapping
from importlib import metadata
from pathlib import Path
from typing import TYPE_CHECKING, Any

import elmanctl
from elmanctl import clock
from elmanctl.bench import nvidia
from elmanctl.command import NoAnswer, run_command
from elmanctl.constants import COMMIT_VARIABLE, INSTALL_TRAIN, LAUNCHES_VARIABLE
from elmanctl.errors import EnvironmentNotReady

if TYPE_CHECKING:
    import torch

CPU_LABEL = "cpu, tiny shapes: no measure of a GPU"

_PACKAGES = ("triton", "flash-linear-attention", "mamba-ssm", "schedulefree", "numpy")
_GIT_TIMEOUT_S = 10


def require_device(name: str) -> "torch.device":
    """Return the device called cuda or cpu; raise EnvironmentNotReady where it is not to be had."""
    if importlib.util.find_spec("torch") is None:
        raise EnvironmentNotReady("torch is not installed here", hint=INSTALL_TRAIN)
    import torch

    if name == "cuda" and not torch.cuda.is_available():
        raise EnvironmentNotReady(
            "torch sees no GPU on this machine, and there is nothing else to measure",
            hint="run it where `nvidia-smi` lists a GPU and torch was built for CUDA; on a CPU "
            "`elmanctl bench` with `--device cpu` tries itself on tiny shapes, and "
            "`TRITON_INTERPRET=1 elmanctl doctor --gpu` checks formulas",
        )
    return torch.device(name, torch.cuda.current_device()) if name == "cuda" else torch.device(name)


def describe(device: "torch.device") -> dict[str, Any]:
    """Return name, sizes, clocks, driver, versions, commit and time, for the head of a report."""
    import torch

    from elmanctl.bench.device import driver_name

    told: dict[str, Any] = {
        "device": device.type,
        "name": platform.processor() or platform.machine(),
        "date": f"{clock.now():%Y-%m-%dT%H:%M:%SZ}",
        "commit": commit(),
        # Another table of launches makes other kernels.
        "launches": os.environ.get(LAUNCHES_VARIABLE),
        "elmanctl": elmanctl.__version__,
        "python": platform.python_version(),
        "torch": torch.__version__,
        "cuda": torch.version.cuda,
        **{name: _version(name) for name in _PACKAGES},
    }
    if device.type != "cuda":
        return told | {"label": CPU_LABEL}
    card = torch.cuda.get_device_properties(device)
    return told | {
        "name": card.name,
        "capability": f"{card.major}.{card.minor}",
        "multiprocessors": card.multi_processor_count,
        "l2_bytes": cache_bytes(device),
        "memory_bytes": card.total_memory,
        "driver": dict(nvidia.identity(driver_name(device))),
    }


def cache_bytes(device: "torch.device") -> int:
    """Return the size of the card's second cache, 0 on a CPU, whose tiny shapes fit any."""
    if device.type != "cuda":
        return 0
    import torch

    return int(torch.cuda.get_device_properties(device).L2_cache_size)


def commit(environ: Mapping[str, str] = os.environ) -> str | None:
    """Return which commit the code is: as the environment says, or git; None where nobody knows."""
    told = environ.get(COMMIT_VARIABLE, "").strip()
    if told:
        return told
    # Through the link by which an editable installation comes here.
    root = Path(elmanctl.__file__).resolve().parents[1]
    if not (root / ".git").exists():
        return None
    head = _git(root, "rev-parse", "HEAD")
    if head is None:
        return None
    changed = _git(root, "status", "--porcelain", "--", "elmanctl")
    return f"{head[:12]} with changes" if changed else head[:12]


def _git(root: Path, *words: str) -> str | None:
    try:
        done = run_command(
            # Whoever owns the checkout: nothing of it is run.
            ["git", "-c", f"safe.directory={root}", "-C", str(root), *words],
            os.environ,
            timeout_s=_GIT_TIMEOUT_S,
        )
    except (OSError, NoAnswer):
        return None
    return done.stdout.strip() if done.code == 0 else None


def _version(name: str) -> str | None:
    try:
        return metadata.version(name)
    except metadata.PackageNotFoundError:
        return None
