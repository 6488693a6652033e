"""Diagnosis of this machine: the parts that elmanctl may need, and the fix for each missing one."""

import importlib.util
import os
import shutil
import tempfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path

from elmanctl.constants import INSTALL_TRAIN
from elmanctl.ledger.disk import free_bytes
from elmanctl.ledger.files import NoHardLinks, link
from elmanctl.models.backends import BACKENDS, unavailable_on_all_devices
from elmanctl.models.registry import FAMILIES
from elmanctl.schedulers.slurm import AccountingOff, Slurm, SlurmSilent

_SLURM_COMMANDS = ("sbatch", "squeue", "sacct", "scancel")
_GB = 10**9


@dataclass(frozen=True, slots=True, kw_only=True)
class Finding:
    """One thing that was looked at: whether it is in order, what was seen, and what would help."""

    part: str
    name: str
    is_fine: bool
    detail: str
    fix: str | None = None


def _all_digits(size_bytes: float) -> str:
    return f"{size_bytes:.0f} bytes"


def examine(
    runs: Path, floor_gb: float, write_bytes: Callable[[float], str] = _all_digits
) -> list[Finding]:
    """Look at packages, model backends, Slurm's commands and the folder of the runs.

    `write_bytes` says how a size is written in what is told of the disk.
    """
    return [*_packages(), *_backends(), *_slurm(), *_folder(runs, floor_gb, write_bytes)]


def _packages() -> Iterator[Finding]:
    for name, fix in (
        ("submitit", "reinstall"),
        ("cma", "reinstall"),
        ("torch", INSTALL_TRAIN),
        ("schedulefree", INSTALL_TRAIN),
    ):
        is_there = importlib.util.find_spec(name) is not None
        yield Finding(
            part="package",
            name=name,
            is_fine=is_there,
            detail=metadata.version(name) if is_there else "not installed",
            fix=None if is_there else fix,
        )


def _backends() -> Iterator[Finding]:
    for backend in BACKENDS.values():
        names = [family.name for family in FAMILIES.values() if backend.name in family.backends]
        models = "every model" if len(names) == len(FAMILIES) else ", ".join(names)
        fault = unavailable_on_all_devices(backend)
        yield Finding(
            part="backend",
            name=backend.name,
            is_fine=fault is None,
            detail=f"{fault}; for {models}" if fault else f"usable, for {models}",
            fix=backend.fix if fault else None,
        )


def _slurm() -> Iterator[Finding]:
    for command in _SLURM_COMMANDS:
        path = shutil.which(command)
        yield Finding(
            part="slurm",
            name=command,
            is_fine=path is not None,
            detail=path or "not on PATH",
            fix=None if path else "run on a login node of the cluster, or search with `--local`",
        )
    if shutil.which("sbatch"):
        yield _accounting()
        yield _arrays()


def _accounting() -> Finding:
    try:
        Slurm().check_accounting()
    except AccountingOff as exc:
        told, fix = f"none: {exc.message}", "not needed: squeue and files show how jobs end"
    except SlurmSilent as exc:
        told, fix = exc.message, "is slurmdbd down? jobs are judged by squeue and files meanwhile"
    else:
        return Finding(part="slurm", name="accounting", is_fine=True, detail="sacct answers")
    return Finding(part="slurm", name="accounting", is_fine=False, detail=told, fix=fix)


def _arrays() -> Finding:
    try:
        limit = Slurm().array_limit()
    except SlurmSilent as exc:
        return Finding(
            part="slurm", name="arrays", is_fine=False, detail=exc.message, fix="is slurmctld down?"
        )
    if limit is None:
        detail = "array limit unknown"
    elif limit == 0:
        detail = "none on this cluster: each attempt is a separate job"
    else:
        detail = f"at most {limit} jobs each; larger ones are split"
    return Finding(part="slurm", name="arrays", is_fine=True, detail=detail)


def _folder(runs: Path, floor_gb: float, write_bytes: Callable[[float], str]) -> Iterator[Finding]:
    there = next(folder for folder in (runs, *runs.parents) if folder.exists())
    may_write = os.access(there, os.W_OK | os.X_OK)
    yield Finding(
        part="runs",
        name="folder",
        is_fine=may_write,
        detail=f"{runs}" if may_write else f"{there} cannot be written",
        fix=None if may_write else "set `paths.runs` to a folder of yours on a shared disk",
    )
    if may_write:
        yield _links(there)
    free, floor = free_bytes(there), floor_gb * _GB
    yield Finding(
        part="runs",
        name="disk",
        is_fine=free > floor,
        detail=f"{write_bytes(free)} free, {write_bytes(floor)} are kept free",
        fix=None if free > floor else "make room: `elmanctl clean --dry-run`",
    )


def _links(folder: Path) -> Finding:
    """Try what a run's lease needs, in two files that are removed again."""
    try:
        with tempfile.NamedTemporaryFile(prefix=".elmanctl-", dir=folder) as file:
            other = Path(f"{file.name}.link")
            link(other, Path(file.name))
            other.unlink()
    except OSError as exc:
        fix = "mend what the system says, then look again"
        if isinstance(exc, NoHardLinks):
            fix = "set `paths.runs` to a folder elsewhere: the lease of a run is a hard link"
        return Finding(
            part="runs",
            name="hard links",
            is_fine=False,
            detail=f"{folder}: {exc.strerror}",
            fix=fix,
        )
    return Finding(part="runs", name="hard links", is_fine=True, detail="can be made")
