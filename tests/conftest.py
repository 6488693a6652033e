"""Shared parts: a small corpus, and the command line run as a user runs it."""

import hashlib
import importlib.util
import os
import shutil
import subprocess
import sysconfig
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, settings

from elmanctl.run.spec import AttemptSpec, DataSpec
from tests.command_line import CommandLine, QuickCommandLine
from tests.specs import changed, spec_of

# How fast examples are drawn and tried is the machine's affair.
settings.register_profile(
    "any machine", deadline=None, suppress_health_check=[HealthCheck.too_slow]
)
settings.load_profile("any machine")

# Every process that a test starts keeps to one core.
os.environ.setdefault("OMP_NUM_THREADS", "1")


@pytest.fixture(scope="session")
def corpus(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A few hundred kilobytes of text that every machine has."""
    library = Path(sysconfig.get_path("stdlib"))
    texts = [(library / name).read_bytes() for name in ("argparse.py", "ast.py", "turtle.py")]
    # Many short documents, of which the default share holds out some.
    parts = [part for text in texts for part in text.split(b"\n\n")]
    path = tmp_path_factory.mktemp("corpus") / "corpus.bytes"
    path.write_bytes(b"\x1e".join(parts))
    return path


@pytest.fixture
def corpus_file(tmp_path: Path) -> Path:
    path = tmp_path / "corpus.bytes"
    path.write_bytes(b"the quick brown fox jumps over the lazy dog\n\x1e" * 400)
    return path


@pytest.fixture
def make_spec(corpus_file: Path) -> Any:
    """Make the spec of a tiny training run, with changes by keyword."""

    def make(**changes: Any) -> AttemptSpec:
        data = corpus_file.read_bytes()
        values: dict[str, Any] = {
            "run": "tiny",
            "evaluation": "g000-e00",
            "attempt": 1,
            "level": "e88",
            "config": {},
            "parameters_expected": 1,
            "seed": 3,
            "lr": 1e-2,
            "steps": 4,
            "batch": 4,
            "seq_len": 16,
            "objective": "last100",
            "holdout": 0.0,
            "warmup_steps": 1,
            "data": DataSpec(
                path=str(corpus_file),
                sha256=hashlib.sha256(data).hexdigest(),
                size_bytes=len(data),
            ),
            "device": "cpu",
            "threads": 1,
            "heartbeat_s": 0.2,
            "timeout_min": 5.0,
        }
        return spec_of(**changed(values, changes))

    return make


@pytest.fixture(scope="session")
def environment(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    """The environment of child processes: no settings but those that a test writes."""
    # Where there is no GPU, this process may be one whose kernels are interpreted.
    kept = {
        k: v
        for k, v in os.environ.items()
        if not k.startswith("ELMAN_") and k != "TRITON_INTERPRET"
    }
    home = tmp_path_factory.mktemp("home")
    return kept | {
        "HOME": str(home),
        "XDG_CACHE_HOME": str(home / "cache"),
        "XDG_CONFIG_HOME": str(home / "config"),
        "PYTHONPATH": str(Path(__file__).parents[1]),
        "OMP_NUM_THREADS": "1",
        "COLUMNS": "200",
    }


@pytest.fixture
def elmanctl(tmp_path: Path, environment: dict[str, str]) -> CommandLine:
    """The command line in an empty folder."""
    return CommandLine(folder=tmp_path, environment=environment)


@pytest.fixture
def quick(elmanctl: CommandLine, monkeypatch: pytest.MonkeyPatch) -> QuickCommandLine:
    """The command line in an empty folder, in this process."""
    return QuickCommandLine(elmanctl, monkeypatch)


@pytest.fixture
def tmpfs(tmp_path: Path) -> Iterator[Callable[..., Path]]:
    """Mount a file system of so many KiB in memory; needs root, and fails without."""
    mounted: list[Path] = []

    def mount(size_kib: int, *, inodes: int = 0) -> Path:
        folder = tmp_path / f"tmpfs-{len(mounted)}"
        folder.mkdir()
        options = f"size={size_kib}k" + (f",nr_inodes={inodes}" if inodes else "")
        subprocess.run(["mount", "-t", "tmpfs", "-o", options, "elmanctl-test", folder], check=True)
        mounted.append(folder)
        return folder

    yield mount
    for folder in mounted:
        subprocess.run(["umount", "--lazy", folder], check=True)


def _cluster_answers() -> bool:
    return (
        shutil.which("scontrol") is not None
        and subprocess.run(["scontrol", "ping"], capture_output=True, check=False).returncode == 0
    )


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Leave out what needs torch where there is none, and skip what needs a cluster.

    CI fails when anything was skipped, and has torch.
    """
    if importlib.util.find_spec("torch") is None:
        needing = [item for item in items if item.get_closest_marker("torch")]
        config.hook.pytest_deselected(items=needing)
        items[:] = [item for item in items if item not in needing]
    marked = [item for item in items if item.get_closest_marker("slurm")]
    if marked and not _cluster_answers():
        for item in marked:
            item.add_marker(pytest.mark.skip(reason="no Slurm cluster: see scripts/slurmbox"))
