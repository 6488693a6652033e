"""What scripts/check-constraints makes of the answers of package clients."""

import importlib.machinery
import importlib.util
import sys
from pathlib import Path
from types import ModuleType

import pytest

ROOT = Path(__file__).parents[1]


@pytest.fixture(scope="module")
def script() -> ModuleType:
    path = str(ROOT / "scripts" / "check-constraints")
    loader = importlib.machinery.SourceFileLoader("check_constraints", path)
    spec = importlib.util.spec_from_loader("check_constraints", loader)
    assert spec is not None
    module = importlib.util.module_from_spec(spec)
    bytecode, sys.dont_write_bytecode = sys.dont_write_bytecode, True
    try:
        loader.exec_module(module)
    finally:
        sys.dont_write_bytecode = bytecode
    return module


def test_each_python_of_the_classifiers_is_asked_for(script: ModuleType) -> None:
    assert script.supported_pythons(ROOT / "pyproject.toml") == ["3.11", "3.12", "3.13", "3.14"]


@pytest.mark.parametrize(
    ("line", "declared"),
    [
        ('triton==3.7.1; platform_system == "Linux" and python_version < "3.15"', "==3.7.1"),
        ('triton~=3.8.0 ; platform_system == "Linux"', "~=3.8.0"),
        ("triton-windows==3.7.1", None),
        ("sympy>=1.13.3", None),
    ],
)
def test_requirement_of_triton_is_found(
    script: ModuleType, line: str, declared: str | None
) -> None:
    assert script.requirement_of_triton(["filelock", line]) == declared


def test_size_of_an_installation_is_that_of_its_wheels(script: ModuleType) -> None:
    lock = (
        '[[packages]]\nname = "a"\nwheels = [{ name = "a.whl", size = 3000000 }]\n'
        '[[packages]]\nname = "b"\nwheels = [{ name = "b.whl", size = 200 }]\n'
    )
    assert script.contents(lock) == (2, 3_000_200)


def test_releases_are_put_on_record_in_their_order(script: ModuleType) -> None:
    text = script.dump({"2.10.0": "==3.6.0", "2.9.1": "==3.5.1"})
    assert list(script.json.loads(text)) == ["2.9.1", "2.10.0"]


def test_pins_that_exclude_each_other_are_told_in_the_clients_words(
    script: ModuleType,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    programs = tmp_path / "bin"
    programs.mkdir()
    (programs / "uv").write_text("#!/bin/sh\necho 'torch depends on triton==3.7.1' >&2; exit 1\n")
    (programs / "python").write_text(
        '#!/bin/sh\necho \'{"install": [{"metadata": {"requires_dist": ["triton==3.7.1"]}}]}\'\n'
    )
    for program in programs.iterdir():
        program.chmod(0o755)
    assert script._check(tmp_path) == 1
    assert "torch depends on triton==3.7.1" in capsys.readouterr().out
