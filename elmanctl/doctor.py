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
from elmanctl.folders import nearest_existing
from elmanctl.ledger.disk import space_of
from elmanctl.ledger.files import NoHardLinks, link
from elmanctl.models.backends import BACKENDS, unavailable_on_all_devices
from elmanctl.models.registry import FAMILIES
from elmanctl.schedulers.slurm import AccountingOff, Slurm, SlurmSilent

_SLURM_COMMANDS = ("sbatch", "squeue", "sacct", "scancel")
_GB = 10**9


@dataclass(frozen=True, slots=True)
class Finding:
    """Result of one check: what was found, and how to fix it, None where it is fine."""

    part: str
    name: str
    detail: str
    fix: str | None

    @property
    def is_fine(self) -> bool:
        """Whether there is nothing to fix."""
        return self.fix is None


def examine(runs: Path, floor_gb: float, format_bytes: Callable[[float], str]) -> list[Finding]:
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
        detail = metadata.version(name) if is_installed else "not installed"
        yield Finding("package", name, detail, None if is_installed else fix)


def _backends() -> Iterator[Finding]:
    for backend in BACKENDS.values():
        names = [family.name for family in FAMILIES.values() if backend.name in family.backends]
        models = "all models" if len(names) == len(FAMILIES) else ", ".join(names)
        reason = unavailable_on_all_devices(backend)
        detail = f"{reason}; for {models}" if reason else f"usable, for {models}"
        yield Finding("backend", backend.name, detail, backend.fix if reason else None)


def _slurm() -> Iterator[Finding]:
    for command in _SLURM_COMMANDS:
        path = shutil.which(command)
        fix = None if path else "run on a login node of the cluster, or search with `--local`"
        yield Finding("slurm", command, path or "not on PATH", fix)
    if shutil.which("sbatch"):
        yield _accounting()
        yield _arrays()


def _accounting() -> Finding:
    detail, fix = "sacct answers", None
    try:
        Slurm().check_accounting()
    except AccountingOff as exc:
        detail, fix = f"none: {exc.message}", "not needed: squeue and files show how jobs end"
    except SlurmSilent as exc:
        detail, fix = exc.message, "is slurmdbd down? squeue and files show how jobs end meanwhile"
    return Finding("slurm", "accounting", detail, fix)


def _arrays() -> Finding:
    fix = None
    try:
        limit = Slurm().array_limit()
    except SlurmSilent as exc:
        detail, fix = exc.message, "is slurmctld down?"
    else:
        if limit is None:
            detail = "array limit unknown"
        elif limit == 0:
            detail = "none on this cluster: each attempt is a separate job"
        else:
            detail = f"at most {limit} jobs each; larger ones are split"
    return Finding("slurm", "arrays", detail, fix)


def _folder(runs: Path, floor_gb: float, format_bytes: Callable[[float], str]) -> Iterator[Finding]:
    existing = nearest_existing(runs)
    is_writable = os.access(existing, os.W_OK | os.X_OK)
    detail = f"{runs}" if is_writable else f"{existing} is not writable"
    fix = None if is_writable else "set `paths.runs` to a writable folder on a shared disk"
    yield Finding("runs", "folder", detail, fix)
    if is_writable:
        yield _hard_links(existing)
    free, floor = space_of(existing, with_quota=False).free_bytes, floor_gb * _GB
    detail = f"{format_bytes(free)} free, {format_bytes(floor)} reserved"
    fix = None if free > floor else "free disk space: see `elmanctl clean --dry-run`"
    yield Finding("runs", "disk", detail, fix)


def _hard_links(folder: Path) -> Finding:
    """Check that hard links, which a run's lease needs, work; the test files are removed."""
    detail, fix = "supported", None
    try:
        with tempfile.NamedTemporaryFile(prefix=".elmanctl-", dir=folder) as file:
            other = Path(f"{file.name}.link")
            link(other, Path(file.name))
            other.unlink()
    except OSError as exc:
        detail, fix = (
            f"{folder}: {exc.strerror}",
            "resolve this error, then run `elmanctl doctor` again",
        )
        if isinstance(exc, NoHardLinks):
            fix = "set `paths.runs` to another file system: the lease of a run is a hard link"
    return Finding("runs", "hard links", detail, fix)
