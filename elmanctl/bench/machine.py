"""Machine and code that measurements come from; torch is imported lazily."""

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

CPU_LABEL = "cpu, tiny shapes: says nothing about a GPU"

_PACKAGES = ("triton", "flash-linear-attention", "mamba-ssm", "schedulefree", "numpy")
_GIT_TIMEOUT_S = 10


def require_device(name: str) -> "torch.device":
    """Return the device `name`, cuda or cpu; raise EnvironmentNotReady if it is unavailable."""
    if importlib.util.find_spec("torch") is None:
        raise EnvironmentNotReady("torch is not installed here", hint=INSTALL_TRAIN)
    import torch

    if name == "cuda" and not torch.cuda.is_available():
        raise EnvironmentNotReady(
            "torch sees no GPU on this machine, so there is nothing to measure",
            hint="run it where `nvidia-smi` lists a GPU and torch was built for CUDA; on a CPU "
            "`elmanctl bench` with `--device cpu` is a dry run on tiny shapes, and "
            "`TRITON_INTERPRET=1 elmanctl doctor --gpu` checks the formulas",
        )
    return torch.device(name, torch.cuda.current_device()) if name == "cuda" else torch.device(name)


def describe(device: "torch.device") -> dict[str, Any]:
    """Return the header of a report: device, driver, versions, commit and time."""
    import torch

    info: dict[str, Any] = {
        "device": device.type,
        "name": platform.processor() or platform.machine(),
        "date": f"{clock.now():%Y-%m-%dT%H:%M:%SZ}",
        "commit": commit(),
        # A custom launch table changes the kernels.
        "launches": os.environ.get(LAUNCHES_VARIABLE),
        "elmanctl": elmanctl.__version__,
        "python": platform.python_version(),
        "torch": torch.__version__,
        "cuda": torch.version.cuda,
        **{name: _version(name) for name in _PACKAGES},
    }
    if device.type != "cuda":
        return info | {"label": CPU_LABEL}
    card = torch.cuda.get_device_properties(device)
    return info | {
        "name": card.name,
        "capability": f"{card.major}.{card.minor}",
        "multiprocessors": card.multi_processor_count,
        "l2_bytes": cache_bytes(device),
        "memory_bytes": card.total_memory,
        "driver": dict(nvidia.query(nvidia.IDENTITY, driver_name(device))),
    }


def driver_name(device: "torch.device") -> str:
    """Return the device's name for nvidia-smi, which may number devices differently than CUDA."""
    import torch

    return f"GPU-{torch.cuda.get_device_properties(device).uuid}"


def cache_bytes(device: "torch.device") -> int:
    """Return the size of the GPU's L2 cache; 0 on a CPU, where shapes are tiny."""
    if device.type != "cuda":
        return 0
    import torch

    return int(torch.cuda.get_device_properties(device).L2_cache_size)


def commit(environ: Mapping[str, str] = os.environ) -> str | None:
    """Return the commit of the code, from the environment or git; None if unknown."""
    from_environment = environ.get(COMMIT_VARIABLE, "").strip()
    if from_environment:
        return from_environment
    # An editable installation reaches the package through a symlink.
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
            # Any owner of the checkout is safe, since nothing in it is executed.
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
