"""Environment checks of this machine: packages, model backends, Slurm, the run folder."""

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
    """Result of one check, with what was found and how to fix it."""

    part: str
    name: str
    is_fine: bool
    detail: str
    fix: str | None = None


def _exact_bytes(size_bytes: float) -> str:
    return f"{size_bytes:.0f} bytes"


def examine(
    runs: Path, floor_gb: float, format_bytes: Callable[[float], str] = _exact_bytes
) -> list[Finding]:
    """Check packages, model backends, Slurm's commands and the folder of the runs.

    `format_bytes` formats the sizes in the findings on disk space.
    """
    return [*_packages(), *_backends(), *_slurm(), *_folder(runs, floor_gb, format_bytes)]


def _packages() -> Iterator[Finding]:
    for name, fix in (
        ("submitit", "reinstall"),
        ("cma", "reinstall"),
        ("torch", INSTALL_TRAIN),
        ("schedulefree", INSTALL_TRAIN),
    ):
        is_installed = importlib.util.find_spec(name) is not None
        yield Finding(
            part="package",
            name=name,
            is_fine=is_installed,
            detail=metadata.version(name) if is_installed else "not installed",
            fix=None if is_installed else fix,
        )


def _backends() -> Iterator[Finding]:
    for backend in BACKENDS.values():
        names = [family.name for family in FAMILIES.values() if backend.name in family.backends]
        models = "all models" if len(names) == len(FAMILIES) else ", ".join(names)
        reason = unavailable_on_all_devices(backend)
        yield Finding(
            part="backend",
            name=backend.name,
            is_fine=reason is None,
            detail=f"{reason}; for {models}" if reason else f"usable, for {models}",
            fix=backend.fix if reason else None,
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
        detail, fix = f"none: {exc.message}", "not needed: squeue and files show how jobs end"
    except SlurmSilent as exc:
        detail, fix = exc.message, "is slurmdbd down? squeue and files show how jobs end meanwhile"
    else:
        return Finding(part="slurm", name="accounting", is_fine=True, detail="sacct answers")
    return Finding(part="slurm", name="accounting", is_fine=False, detail=detail, fix=fix)


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


def _folder(runs: Path, floor_gb: float, format_bytes: Callable[[float], str]) -> Iterator[Finding]:
    existing = next(folder for folder in (runs, *runs.parents) if folder.exists())
    is_writable = os.access(existing, os.W_OK | os.X_OK)
    yield Finding(
        part="runs",
        name="folder",
        is_fine=is_writable,
        detail=f"{runs}" if is_writable else f"{existing} is not writable",
        fix=None if is_writable else "set `paths.runs` to a writable folder on a shared disk",
    )
    if is_writable:
        yield _hard_links(existing)
    free, floor = free_bytes(existing), floor_gb * _GB
    yield Finding(
        part="runs",
        name="disk",
        is_fine=free > floor,
        detail=f"{format_bytes(free)} free, {format_bytes(floor)} reserved",
        fix=None if free > floor else "free disk space: see `elmanctl clean --dry-run`",
    )


def _hard_links(folder: Path) -> Finding:
    """Check that hard links, which a run's lease needs, work; the test files are removed."""
    try:
        with tempfile.NamedTemporaryFile(prefix=".elmanctl-", dir=folder) as file:
            other = Path(f"{file.name}.link")
            link(other, Path(file.name))
            other.unlink()
    except OSError as exc:
        fix = "resolve this error, then run `elmanctl doctor` again"
        if isinstance(exc, NoHardLinks):
            fix = "set `paths.runs` to another file system: the lease of a run is a hard link"
        return Finding(
            part="runs",
            name="hard links",
            is_fine=False,
            detail=f"{folder}: {exc.strerror}",
            fix=fix,
        )
    return Finding(part="runs", name="hard links", is_fine=True, detail="supported")
