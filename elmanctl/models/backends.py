"""The implementations that models run on: what each needs, and whether it is usable here."""

import importlib.util
from collections.abc import Callable, Mapping
from dataclasses import dataclass

from elmanctl.errors import EnvironmentNotReady, InvalidConfiguration, nearest
from elmanctl.models.config import FamilyConfig

AUTO = "auto"


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


BACKENDS: Mapping[str, Backend] = {
    backend.name: backend
    for backend in (
        Backend(
            name="torch",
            summary="plain PyTorch, on any device",
            fix="pip install 'elmanctl[train]'",
            find_fault=_torch_fault,
        ),
    )
}


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

    `known` are the backends of the level, the fastest first; `device` is cpu or cuda.
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
    for candidate in known[:-1]:
        if BACKENDS[candidate].find_fault(device) is None and _computes(config, candidate):
            return candidate
    return resolve_backend(level, known, known[-1], config, device)


def _computes(config: FamilyConfig, backend: str) -> bool:
    try:
        config.check_backend(backend)
    except InvalidConfiguration:
        return False
    return True
