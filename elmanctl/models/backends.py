"""The implementations that models run on: what each needs, and whether it is usable here."""

import importlib.util
import os
import re
import shutil
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

from elmanctl.constants import INSTALL_GPU, INSTALL_TRAIN
from elmanctl.errors import EnvironmentNotReady, InvalidConfiguration, nearest
from elmanctl.models.config import FamilyConfig

AUTO = "auto"

OLDEST_TRITON = (3, 5)
"""The oldest Triton that mamba-ssm works with, and the oldest that our own kernels are tried on."""

OLDEST_GLUON = (3, 6)
"""The oldest Triton on which our kernels in its experimental language are compiled in tests."""

OLDEST_GPU = (8, 0)
"""The lowest compute capability that our own kernels are compiled for in tests."""

FLA_WRONG_ON_HOPPER = ((3, 4, 0), (3, 7, 1))
"""The first Triton that gets the gradients of fla wrong on Hopper, and the first that does not."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Backend:
    """One implementation.

    `find_fault` takes the device, cpu or cuda, and returns why this backend cannot run on it on
    this machine, or None; `fix` is what to install or change then.
    """

    name: str
    summary: str
    fix: str
    find_fault: Callable[[str], str | None]


def _torch_fault(device: str) -> str | None:
    if importlib.util.find_spec("torch") is None:
        return "torch is not installed"
    if device == "cuda":
        import torch

        if not torch.cuda.is_available():
            return "torch sees no CUDA device"
    return None


def _mamba_ssm_fault(device: str) -> str | None:
    if device != "cuda":
        return f"its kernels run on cuda, not on {device}"
    # The last three are what its import needs and its installation without dependencies leaves out.
    for package in ("mamba_ssm", "triton", "einops", "transformers"):
        if importlib.util.find_spec(package) is None:
            return f"{package} is not installed"
    return _triton_version_fault() or _torch_fault(device)


def _triton_version_fault() -> str | None:
    import triton

    version = tuple(int(digits) for digits in re.findall(r"\d+", triton.__version__)[:2])
    if version < OLDEST_TRITON:
        wanted = ".".join(map(str, OLDEST_TRITON))
        return f"triton is {triton.__version__}, but must be {wanted} or newer"
    return None


def _triton_fault(device: str) -> str | None:
    interpreted = "TRITON_INTERPRET" in os.environ
    if device != "cuda" and not interpreted:
        return f"its kernels run on cuda, not on {device}"
    if importlib.util.find_spec("triton") is None:
        return "triton is not installed"
    fault = _triton_version_fault() or _torch_fault(device)
    if fault:
        return fault
    import torch
    import triton

    if device != "cuda":
        # Triton reads more words than 1 as a yes.
        if triton.knobs.runtime.interpret:
            return None
        return f"its kernels run on cuda, not on {device}, unless TRITON_INTERPRET is 1"
    capability = torch.cuda.get_device_capability()
    if capability < OLDEST_GPU:
        found, wanted = (".".join(map(str, pair)) for pair in (capability, OLDEST_GPU))
        return f"this GPU has compute capability {found}, but the kernels need {wanted}"
    return None


def _gluon_fault(device: str) -> str | None:
    if device != "cuda":
        return f"its kernels run on cuda, not on {device}"
    fault = _triton_fault(device)
    if fault:
        return fault
    import triton

    version = tuple(int(digits) for digits in re.findall(r"\d+", triton.__version__)[:2])
    if version < OLDEST_GLUON:
        wanted = ".".join(map(str, OLDEST_GLUON))
        return f"triton is {triton.__version__}, but must be {wanted} or newer"
    return None


def _cudnn_fault(device: str) -> str | None:
    if device != "cuda":
        return "cuDNN needs a CUDA device"
    fault = _torch_fault(device)
    if fault:
        return fault
    import torch

    if not torch.backends.cudnn.is_available():
        return "this build of torch has no cuDNN"
    return None if torch.backends.cudnn.enabled else "torch.backends.cudnn is switched off"


_SHIPPED_AS = {"fla": "flash-linear-attention"}


def fla_absence(device: str) -> str | None:
    """Return why the kernels of fla cannot run at all on cpu or cuda, or None."""
    if device != "cuda":
        return f"its kernels run on cuda, not on {device}"
    for package in ("fla", "triton", "einops"):
        if importlib.util.find_spec(package) is None:
            return f"{_SHIPPED_AS.get(package, package)} is not installed"
    return _torch_fault(device)


def fla_gradient_fault() -> str | None:
    """Return why fla, where its kernels run, computes no gradients of gated rules, or None."""
    import torch
    import triton

    version = tuple(int(digits) for digits in re.findall(r"\d+", triton.__version__)[:3])
    hopper = torch.cuda.get_device_capability()[0] == 9
    if not hopper or not FLA_WRONG_ON_HOPPER[0] <= version < FLA_WRONG_ON_HOPPER[1]:
        return None
    # Triton's gradients would be wrong: fla turns to TileLang, or raises in the backward pass.
    if importlib.util.find_spec("tilelang") is None:
        missing = "is not installed"
    elif not _has_nvcc():
        missing = "finds no nvcc, in PATH, CUDA_HOME or /usr/local/cuda"
    else:
        return None
    first, fixed = (".".join(map(str, bound)) for bound in FLA_WRONG_ON_HOPPER)
    return (
        f"triton is {triton.__version__}, and on a Hopper GPU like this one fla computes gradients "
        f"with a triton before {first} or from {fixed} on, or by tilelang, which {missing}"
    )


def _fla_fault(device: str) -> str | None:
    return fla_absence(device) or fla_gradient_fault()


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
            find_fault=_torch_fault,
        ),
        Backend(
            name="triton",
            summary="our own Triton kernels, on CUDA",
            fix="on a machine with a CUDA device of compute capability 8.0 or higher: "
            + INSTALL_GPU,
            find_fault=_triton_fault,
        ),
        Backend(
            name="gluon",
            summary="our own Triton kernels, the gradient in Gluon, on CUDA; auto leaves it alone",
            fix="on a machine with a CUDA device of compute capability 8.0 or higher and triton "
            "3.6 or newer: " + INSTALL_GPU,
            find_fault=_gluon_fault,
        ),
        Backend(
            name="cudnn",
            summary="the recurrent networks of cuDNN, on CUDA devices",
            fix="choose backend `torch`, or a machine whose torch sees a CUDA device and cuDNN",
            find_fault=_cudnn_fault,
        ),
        Backend(
            name="mamba-ssm",
            summary="the Triton kernels of mamba-ssm, on CUDA",
            fix=f"on a machine with a CUDA device: {INSTALL_GPU}, then scripts/install-mamba-ssm",
            find_fault=_mamba_ssm_fault,
        ),
        Backend(
            name="fla",
            summary="the Triton kernels of flash-linear-attention, on CUDA",
            fix=f"on a machine with a CUDA device: {INSTALL_GPU}; on Hopper also "
            "triton 3.7.1 or newer, which torch 2.12.1 or newer brings, or tilelang 0.1.9 or newer",
            find_fault=_fla_fault,
        ),
    )
}


def fault_here(backend: Backend) -> str | None:
    """Return why a backend cannot run on this machine on any device, or None."""
    if backend.find_fault("cpu") is None:
        return None
    return backend.find_fault("cuda")


def check_backend_name(level: str, known: tuple[str, ...], name: str) -> None:
    """Raise InvalidConfiguration for a backend that the models of a level do not have."""
    if name in (AUTO, *known):
        return
    near = nearest(name, (AUTO, *known))
    raise InvalidConfiguration(
        f"{level} has no backend `{name}`; it has: {', '.join((AUTO, *known))}",
        hint=f"did you mean `{near}`?" if near else None,
    )


def resolve_backend(
    level: str, known: tuple[str, ...], name: str, config: FamilyConfig, device: str
) -> str:
    """Return the backend that runs: the one named, or for `auto` the first that can.

    `known` are the backends of the level, the fastest first; `device` is cpu or cuda.  On a CPU
    `auto` is the last one: Triton can interpret kernels there, for tests, and is slow at it.
    Raises InvalidConfiguration for a backend that does not exist or does not compute this model,
    EnvironmentNotReady for one that cannot run here.
    """
    check_backend_name(level, known, name)
    if name != AUTO:
        config.check_backend(name)
        fault = BACKENDS[name].find_fault(device)
        if fault:
            raise EnvironmentNotReady(
                f"backend `{name}` cannot run here: {fault}", hint=BACKENDS[name].fix
            )
        return name
    for candidate in known[:-1] if device == "cuda" else ():
        if BACKENDS[candidate].find_fault(device) is None and _computes(config, candidate):
            return candidate
    return resolve_backend(level, known, known[-1], config, device)


def _computes(config: FamilyConfig, backend: str) -> bool:
    try:
        config.check_backend(backend)
    except InvalidConfiguration:
        return False
    return True
