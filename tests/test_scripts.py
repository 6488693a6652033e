"""Scripts that make an environment, on machines where that is not plain sailing.

They run in a copy of their own.  Python, pip included, is a program that takes down what it is
asked.
"""

import os
import shutil
import subprocess
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]

# Answers like a Python of a version, makes environments, and installs what elmanctl needs.
PYTHON = """\
#!/bin/sh
echo "{version}: $*" >> "{calls}"
case "$*" in
*"sys.version_info < (3, 11)"*) [ "{version}" != 3.10.13 ] ;;
*platform*) echo "Python {version}" ;;
*"-m venv"*)
    {venv}
    rm -rf .venv; mkdir -p .venv/bin; cp "$0" .venv/bin/python ;;
*"-m pip --version") [ -e .venv/pip ] ;;
*"-m ensurepip"*) touch .venv/pip ;;
*"-m pip install"*)
    [ "${{PIP_USER:-0}}" = 0 ] || exit 98
    {install}
    printf '#!/bin/sh\\necho "elmanctl $*"\\n' > .venv/bin/elmanctl; chmod +x .venv/bin/elmanctl ;;
"-P -") [ -e .venv/bin/elmanctl ] ;;
*) exit 99 ;;
esac
"""


class Checkout:
    """A folder with scripts, and a machine with the Pythons that a test puts on it."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder / "a checkout"
        self.calls = folder / "calls"
        self._programs = folder / "bin"
        self._programs.mkdir()
        shutil.copytree(ROOT / "scripts", self.folder / "scripts")
        shutil.copy(ROOT / "constraints.txt", self.folder)

    def put(self, name: str, version: str, *, venv: str = "", install: str = "") -> Path:
        program = self._programs / name
        text = PYTHON.format(version=version, calls=self.calls, venv=venv, install=install)
        program.write_text(text, encoding="utf-8")
        program.chmod(0o755)
        return program

    def __call__(self, script: str, **environment: str) -> subprocess.CompletedProcess[str]:
        path = f"{self._programs}{os.pathsep}/usr/bin{os.pathsep}/bin"
        return subprocess.run(
            [self.folder / "scripts" / script],
            env={"PATH": path, **environment},
            capture_output=True,
            text=True,
            check=False,
        )

    def asked(self, text: str) -> list[str]:
        """The lines of what Python was asked that have a text in them."""
        return [line for line in self.calls.read_text().splitlines() if text in line]


@pytest.fixture
def checkout(tmp_path: Path) -> Checkout:
    made = Checkout(tmp_path)
    # Whatever this machine has: no newer Python is found by chance.
    for minor in (11, 12, 13, 14):
        made.put(f"python3.{minor}", "3.10.13")
    return made


def test_demo_says_what_it_installs_and_how_much_that_is(checkout: Checkout) -> None:
    checkout.put("python3", "3.12.1")
    done = checkout("demo")
    assert done.returncode == 0, done.stderr
    assert done.stdout == "elmanctl search e88 --local --preset tiny --yes\n"
    assert "installs elmanctl and torch 2.13.0 into" in done.stderr
    assert "GB" in done.stderr
    (asked,) = checkout.asked("pip install")
    assert "--quiet" not in asked  # so pip shows its progress
    assert asked.endswith("-c constraints.txt -e .[train]")
    again = checkout("demo")
    assert again.stdout == done.stdout
    assert again.stderr == ""


def test_demo_installs_into_its_environment_whatever_a_profile_tells_pip(
    checkout: Checkout,
) -> None:
    checkout.put("python3", "3.12.1")
    assert checkout("demo", PIP_USER="yes").returncode == 0


def test_demo_whose_installation_failed_says_so_and_does_it_again(checkout: Checkout) -> None:
    python = checkout.put("python3", "3.12.1", install="echo 'no network' >&2; exit 1")
    done = checkout("demo")
    assert done.returncode == 1
    assert "no network" in done.stderr
    assert "PIP_INDEX_URL" in done.stderr.splitlines()[-1]
    checkout.put("python3", "3.12.1")
    shutil.copy(python, checkout.folder / ".venv" / "bin" / "python")
    assert checkout("demo").returncode == 0
    assert len(checkout.asked("-m venv")) == 1
    assert len(checkout.asked("pip install")) == 2


@pytest.mark.parametrize("script", ["demo", "test"])
def test_python_that_is_too_old_is_refused_by_its_version(checkout: Checkout, script: str) -> None:
    checkout.put("python3", "3.10.13")
    done = checkout(script)
    assert done.returncode == 1
    assert "needs Python 3.11 or newer; python3 is Python 3.10.13" in done.stderr
    assert not (checkout.folder / ".venv").exists()


def test_newer_python_of_another_name_is_taken(checkout: Checkout) -> None:
    checkout.put("python3", "3.10.13")
    checkout.put("python3.13", "3.13.0")
    assert checkout("make-venv").returncode == 0
    assert checkout.asked("-m venv") == ["3.13.0: -m venv --clear .venv"]


def test_python_that_is_named_is_taken_or_refused(checkout: Checkout) -> None:
    checkout.put("python3", "3.12.1")
    assert "python3.11 is Python 3.10.13" in checkout("make-venv", PYTHON="python3.11").stderr
    assert "nowhere is not there" in checkout("make-venv", PYTHON="nowhere").stderr
    checkout.put("mine", "3.14.0")
    assert checkout("make-venv", PYTHON="mine").returncode == 0
    assert checkout.asked("-m venv") == ["3.14.0: -m venv --clear .venv"]


def test_environment_of_a_python_that_is_too_old_is_left_alone(checkout: Checkout) -> None:
    old = checkout.put("python3", "3.10.13")
    (checkout.folder / ".venv" / "bin").mkdir(parents=True)
    shutil.copy(old, checkout.folder / ".venv" / "bin" / "python")
    done = checkout("make-venv")
    assert done.returncode == 1
    assert ".venv has Python 3.10.13" in done.stderr
    assert (checkout.folder / ".venv").exists()


def test_environment_whose_python_is_gone_is_made_again(checkout: Checkout) -> None:
    checkout.put("python3", "3.12.1")
    (checkout.folder / ".venv" / "bin").mkdir(parents=True)
    (checkout.folder / ".venv" / "bin" / "python").symlink_to("/nowhere/python3.9")
    assert checkout("make-venv").returncode == 0
    assert checkout.asked("-m venv") == ["3.12.1: -m venv --clear .venv"]


def test_python_without_venv_names_the_package_that_has_it(checkout: Checkout) -> None:
    checkout.put("python3", "3.12.1", venv="exit 1")
    done = checkout("make-venv")
    assert done.returncode == 1
    assert "apt install python3-venv" in done.stderr


def test_environment_without_pip_gets_one(checkout: Checkout) -> None:
    python = checkout.put("python3", "3.12.1")
    (checkout.folder / ".venv" / "bin").mkdir(parents=True)
    shutil.copy(python, checkout.folder / ".venv" / "bin" / "python")
    assert checkout("make-venv").returncode == 0
    assert checkout.asked("ensurepip") == ["3.12.1: -m ensurepip --default-pip"]
    assert checkout.asked("-m venv") == []
