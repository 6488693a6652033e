"""The pinned versions hold together, as released packages declare it."""

import json
import re
import shlex
import subprocess
import tomllib
from pathlib import Path

from packaging.specifiers import SpecifierSet

from elmanctl.constants import (
    INSTALL_GPU,
    INSTALL_OPTIMIZERS,
    INSTALL_REPLAY,
    INSTALL_TENSORBOARD,
    INSTALL_TRAIN,
    INSTALL_WANDB,
)
from tests.kernels.tritons import NEWEST, OLD

ROOT = Path(__file__).parents[1]
# What each release of torch for Linux asks of Triton: made by scripts/check-constraints --record.
DECLARED: dict[str, str] = json.loads((ROOT / "tests/data/torch-wheels.json").read_text())
PINS = dict(
    line.split("==")
    for line in (ROOT / "constraints.txt").read_text(encoding="utf-8").splitlines()
    if not line.startswith("#")
)
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]


def test_pinned_triton_is_the_one_that_the_pinned_torch_declares() -> None:
    assert PINS["triton"] in SpecifierSet(DECLARED[PINS["torch"]])


def test_tritons_aside_are_those_of_a_torch_that_users_may_have() -> None:
    allowed = SpecifierSet(_requirement("torch"))
    declared = {torch: SpecifierSet(triton) for torch, triton in DECLARED.items()}
    assert all(torch in allowed for torch in declared)
    assert any(OLD in triton for triton in declared.values())
    assert NEWEST in list(declared.values())[-1]


def test_pinned_versions_are_those_that_pyproject_allows() -> None:
    found = {name for name, pin in PINS.items() if pin not in SpecifierSet(_requirement(name))}
    assert found == set()


def test_every_package_that_pyproject_names_is_pinned() -> None:
    assert {_name(line) for line in _requirements()} <= {name.replace("_", "-") for name in PINS}


def _requirements() -> list[str]:
    extras = PROJECT["optional-dependencies"].values()
    lines = [*PROJECT["dependencies"], *(line for extra in extras for line in extra)]
    return [line for line in lines if not line.startswith("elmanctl[")]


def _requirement(package: str) -> str:
    """Return what pyproject asks of a package, all places together; "" where it names it not."""
    wanted = [line.partition(";")[0] for line in _requirements() if _name(line) == package]
    return ",".join(filter(None, (line.removeprefix(package).strip() for line in wanted)))


def _name(line: str) -> str:
    found = re.match(r"[\w.-]+", line)
    assert found
    return found[0]


def test_hints_name_the_packages_of_the_extras() -> None:
    extras = PROJECT["optional-dependencies"]
    for hint, extra in (
        (INSTALL_TRAIN, "train"),
        (INSTALL_GPU, "gpu"),
        (INSTALL_TENSORBOARD, "tensorboard"),
        (INSTALL_WANDB, "wandb"),
        (INSTALL_REPLAY, "replay"),
        (INSTALL_OPTIMIZERS, "optimizers"),
    ):
        packages = [line.partition(";")[0] for line in extras[extra]]
        assert shlex.split(hint) == ["pip", "install", *packages]


def test_nothing_names_an_extra_of_a_package_that_no_index_has() -> None:
    command = ["git", "grep", "-l", "install '[e]lmanctl\\["]
    found = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert found.stdout.splitlines() == []
