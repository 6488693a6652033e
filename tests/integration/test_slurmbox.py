"""What scripts/slurmbox does about another release of Slurm, beside running it."""

import os
import subprocess
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.integration.runs import wait_for

# Like the box itself it needs root and cgroups, which are there where a cluster is.
pytestmark = pytest.mark.slurm

SLURMBOX = Path(__file__).parents[2] / "scripts" / "slurmbox"


@pytest.fixture
def folder() -> Iterator[Path]:
    """A folder with a path that is short enough for a box."""
    with tempfile.TemporaryDirectory(prefix="sb") as name:
        yield Path(name)


def _up(
    folder: Path, *arguments: str, debootstrap: str = "", **changes: str
) -> subprocess.CompletedProcess[str]:
    """Run `up` of a box that is not there, with a stand-in for debootstrap."""
    commands = folder / "commands"
    commands.mkdir(exist_ok=True)
    if debootstrap:
        (commands / "debootstrap").write_text(f"#!/bin/sh\n{debootstrap}\n", encoding="utf-8")
        (commands / "debootstrap").chmod(0o755)
    return subprocess.run(
        [str(SLURMBOX), "up", *arguments],
        capture_output=True,
        text=True,
        check=False,
        env={
            **{k: v for k, v in os.environ.items() if not k.startswith("SLURM")},
            "PATH": f"{commands}:{os.environ['PATH']}",
            "SLURMBOX": str(folder / "box"),
            "SLURMBOX_ROOTS": str(folder / "roots"),
            **changes,
        },
    )


def test_a_root_that_was_not_finished_is_not_there(folder: Path) -> None:
    done = _up(folder, "--release", "other", debootstrap='mkdir -p "$3/usr"; echo no room; exit 3')
    assert done.returncode == 1
    assert "no room" in done.stderr
    assert "no root of Debian other (hint: the whole log is" in done.stderr
    assert not (folder / "roots" / "other").exists()
    assert not (folder / "box").exists()


@pytest.mark.parametrize("release", ["../other", "Trixie", "a b"])
def test_what_names_no_release_is_refused(folder: Path, release: str) -> None:
    done = _up(folder, "--release", release, debootstrap="exit 0")
    assert done.returncode == 2
    assert "is no release of Debian" in done.stderr
    assert not (folder / "roots").exists()


def test_a_release_has_to_be_named(folder: Path) -> None:
    assert _up(folder, "--release").returncode == 2


def test_a_running_box_keeps_its_release(folder: Path) -> None:
    box = Path(os.environ["SLURM_CONF"]).parents[1]
    (folder / "roots" / "other").mkdir(parents=True)
    done = _up(folder, "--release", "other", SLURMBOX=str(box))
    assert done.returncode == 2
    assert "is up with other options" in done.stderr


def test_daemons_are_known_after_they_were_reconfigured() -> None:
    """From Slurm 24.11 on they start anew, under the name of their file."""
    box = Path(os.environ["SLURM_CONF"]).parents[1]
    subprocess.run(["scontrol", "reconfigure"], check=True)

    def is_up() -> bool:
        status = [str(SLURMBOX), "status"]
        environment = {**os.environ, "SLURMBOX": str(box)}
        done = subprocess.run(status, capture_output=True, check=False, env=environment)
        return done.returncode == 0

    wait_for(is_up, "all daemons to be up", pause_s=1)
