"""Backends of models: their requirements, availability on this machine, and selection."""

import importlib.util
import os
import re
import shutil
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

from elmanctl.constants import INSTALL_GPU, INSTALL_TRAIN
from elmanctl.errors import EnvironmentNotReady, InvalidConfiguration, meant
from elmanctl.models.config import FamilyConfig

AUTO = "auto"

OLDEST_TRITON = (3, 5)
"""Oldest Triton that mamba-ssm supports and that our own kernels are tested on."""

OLDEST_GLUON = (3, 6)
"""Oldest Triton that our Gluon kernels are compiled with in tests."""

OLDEST_GPU = (8, 0)
"""Lowest compute capability that our own kernels are compiled for in tests."""

FLA_WRONG_ON_HOPPER = ((3, 4, 0), (3, 7, 1))
"""First Triton that computes wrong gradients for fla on Hopper, and the first that fixes it."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Backend:
    """A backend.

    `unavailable_reason` takes a device, cpu or cuda, and returns why the backend cannot run on it
    on this machine, or None; `fix` says what to install or change in that case.
    """

    name: str
    summary: str
    fix: str
    unavailable_reason: Callable[[str], str | None]


_DISTRIBUTIONS = {"fla": "flash-linear-attention"}


def _missing_package(*packages: str) -> str | None:
    for package in packages:
        if importlib.util.find_spec(package) is None:
            return f"{_DISTRIBUTIONS.get(package, package)} is not installed"
    return None


def _needs_cuda(device: str) -> str | None:
    return None if device == "cuda" else f"its kernels run on cuda, not on {device}"


def _triton_version() -> tuple[int, ...]:
    import triton

    return tuple(int(digits) for digits in re.findall(r"\d+", triton.__version__)[:3])


def _outdated_triton(oldest: tuple[int, int]) -> str | None:
    import triton

    if _triton_version() >= oldest:
        return None
    return f"triton is {triton.__version__}, but must be {_dotted(oldest)} or newer"


def _dotted(version: tuple[int, ...]) -> str:
    return ".".join(map(str, version))


def _torch_unavailable(device: str) -> str | None:
    missing = _missing_package("torch")
    if missing or device != "cuda":
        return missing
    import torch

    return None if torch.cuda.is_available() else "torch sees no CUDA device"


def _mamba_ssm_unavailable(device: str) -> str | None:
    return (
        _needs_cuda(device)
        # mamba_ssm is installed without its dependencies, of which its import needs these three.
        or _missing_package("mamba_ssm", "triton", "einops", "transformers")
        or _outdated_triton(OLDEST_TRITON)
        or _torch_unavailable(device)
    )


def _triton_unavailable(device: str) -> str | None:
    reason = (
        (None if "TRITON_INTERPRET" in os.environ else _needs_cuda(device))
        or _missing_package("triton")
        or _outdated_triton(OLDEST_TRITON)
        or _torch_unavailable(device)
    )
    if reason:
        return reason
    import torch
    import triton

    if device != "cuda":
        # Triton decides which values of the variable count as true.
        if triton.knobs.runtime.interpret:
            return None
        return f"its kernels run on cuda, not on {device}, unless TRITON_INTERPRET is 1"
    capability = torch.cuda.get_device_capability()
    if capability < OLDEST_GPU:
        return (
            f"this GPU has compute capability {_dotted(capability)}, "
            f"but the kernels need {_dotted(OLDEST_GPU)}"
        )
    return None


def _gluon_unavailable(device: str) -> str | None:
    return _needs_cuda(device) or _triton_unavailable(device) or _outdated_triton(OLDEST_GLUON)


def _cudnn_unavailable(device: str) -> str | None:
    if device != "cuda":
        return "cuDNN needs a CUDA device"
    reason = _torch_unavailable(device)
    if reason:
        return reason
    import torch

    if not torch.backends.cudnn.is_available():
        return "this build of torch has no cuDNN"
    return None if torch.backends.cudnn.enabled else "torch.backends.cudnn is disabled"


def fla_forward_unavailable(device: str) -> str | None:
    """Return why the kernels of fla cannot run on `device`, cpu or cuda, or None."""
    return (
        _needs_cuda(device)
        or _missing_package("fla", "triton", "einops")
        or _torch_unavailable(device)
    )


def fla_gradient_unavailable() -> str | None:
    """Return why fla, where its kernels run, has no gradients of gated rules, or None."""
    import torch
    import triton

    is_hopper = torch.cuda.get_device_capability()[0] == 9
    first, fixed = FLA_WRONG_ON_HOPPER
    if not is_hopper or not first <= _triton_version() < fixed:
        return None
    # Triton's gradients would be wrong: fla uses TileLang instead, or raises in the backward pass.
    if importlib.util.find_spec("tilelang") is None:
        missing = "is not installed"
    elif not _has_nvcc():
        missing = "finds no nvcc in PATH, CUDA_HOME or /usr/local/cuda"
    else:
        return None
    return (
        f"triton is {triton.__version__}; on Hopper GPUs fla computes gradients with triton older "
        f"than {_dotted(first)}, with {_dotted(fixed)} or newer, or with tilelang, which {missing}"
    )


def _fla_unavailable(device: str) -> str | None:
    return fla_forward_unavailable(device) or fla_gradient_unavailable()


def _has_nvcc() -> bool:
    homes = (os.environ.get("CUDA_HOME"), os.environ.get("CUDA_PATH"), "/usr/local/cuda")
    return shutil.which("nvcc") is not None or any(
        (Path(home) / "bin" / "nvcc").exists() for home in homes if home
    )


BACKENDS: Mapping[str, Backend] = {
    backend.name: backend
    for backend in (
        Backend(
            name="torch",
            summary="plain PyTorch, on any device",
            fix=INSTALL_TRAIN,
            unavailable_reason=_torch_unavailable,
        ),
        Backend(
            name="triton",
            summary="our own Triton kernels, on CUDA",
            fix="on a machine with a CUDA device of compute capability 8.0 or higher: "
            + INSTALL_GPU,
            unavailable_reason=_triton_unavailable,
        ),
        Backend(
            name="gluon",
            summary="our own Triton kernels, gradients in Gluon, on CUDA; never selected by auto",
            fix="on a machine with a CUDA device of compute capability 8.0 or higher and triton "
            "3.6 or newer: " + INSTALL_GPU,
            unavailable_reason=_gluon_unavailable,
        ),
        Backend(
            name="cudnn",
            summary="the recurrent networks of cuDNN, on CUDA",
            fix="use backend `torch`, or a machine where torch has a CUDA device and cuDNN",
            unavailable_reason=_cudnn_unavailable,
        ),
        Backend(
            name="mamba-ssm",
            summary="the Triton kernels of mamba-ssm, on CUDA",
            fix=f"on a machine with a CUDA device: {INSTALL_GPU}, then scripts/install-mamba-ssm",
            unavailable_reason=_mamba_ssm_unavailable,
        ),
        Backend(
            name="fla",
            summary="the Triton kernels of flash-linear-attention, on CUDA",
            fix=f"on a machine with a CUDA device: {INSTALL_GPU}; on Hopper also "
            "triton 3.7.1 or newer, which torch 2.12.1 or newer brings, or tilelang 0.1.9 or newer",
            unavailable_reason=_fla_unavailable,
        ),
    )
}


def unavailable_on_all_devices(backend: Backend) -> str | None:
    """Return why a backend cannot run on any device of this machine, or None."""
    if backend.unavailable_reason("cpu") is None:
        return None
    return backend.unavailable_reason("cuda")


def check_backend_name(level: str, known: tuple[str, ...], name: str) -> None:
    """Raise InvalidConfiguration for a backend that the family of a level does not have."""
    if name in (AUTO, *known):
        return
    raise InvalidConfiguration(
        f"{level} has no backend `{name}`; it has: {', '.join((AUTO, *known))}",
        hint=meant(name, (AUTO, *known)),
    )


def resolve_backend(
    level: str, known: tuple[str, ...], name: str, config: FamilyConfig, device: str
) -> str:
    """Return the backend to run on: the one named, or for `auto` the first that is available.

    `known` are the backends of the level, fastest first; `device` is cpu or cuda.  On a CPU `auto`
    is the last one, because Triton's interpreter is slow and meant for tests.
    Raises InvalidConfiguration for an unknown backend or one that does not support this model,
    EnvironmentNotReady for one that is unavailable.
    """
    check_backend_name(level, known, name)
    if name != AUTO:
        config.check_backend(name)
        reason = BACKENDS[name].unavailable_reason(device)
        if reason:
            raise EnvironmentNotReady(
                f"backend `{name}` cannot run here: {reason}", hint=BACKENDS[name].fix
            )
        return name
    for candidate in known[:-1] if device == "cuda" else ():
        is_available = BACKENDS[candidate].unavailable_reason(device) is None
        if is_available and config.is_supported_by(candidate):
            return candidate
    return resolve_backend(level, known, known[-1], config, device)
