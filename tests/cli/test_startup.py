"""How much the command line imports before it has anything to do."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

HEAVY = (
    *("torch", "cma", "numpy", "submitit", "rich", "triton", "transformers", "schedulefree"),
    # Not slow by themselves, and yet no business of a command that reads a file.
    *("matplotlib", "cloudpickle", "asyncio", "elmanctl.jobs.train"),
)

# Runs a command as `elmanctl` does, then writes which of the named modules it imported.
PROGRAM = """
import json, pathlib, sys
told, names = pathlib.Path(sys.argv[1]), json.loads(sys.argv[2])
sys.argv = ["elmanctl", *sys.argv[3:]]
from elmanctl.__main__ import main
try:
    main()
finally:
    told.write_text(json.dumps([name for name in names if name in sys.modules]))
"""


@pytest.mark.parametrize(
    "arguments",
    [["--help"], ["status"], ["search", "--help"], ["models"], ["config"], ["--version"]],
    ids=" ".join,
)
def test_quick_command_imports_nothing_heavy(
    arguments: list[str], tmp_path: Path, environment: dict[str, str]
) -> None:
    told = tmp_path / "imported.json"
    folder = tmp_path / "empty"
    folder.mkdir()
    done = subprocess.run(
        [sys.executable, "-c", PROGRAM, str(told), json.dumps(HEAVY), *arguments],
        cwd=folder,
        env=environment,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert json.loads(told.read_bytes()) == []
    assert list(folder.iterdir()) == []


def test_importing_the_package_imports_nothing_at_all(environment: dict[str, str]) -> None:
    program = "import sys; before = set(sys.modules); import elmanctl; " + (
        "print(*sorted(set(sys.modules) - before))"
    )
    done = subprocess.run(
        [sys.executable, "-c", program], env=environment, capture_output=True, text=True, check=True
    )
    assert done.stdout.split() == ["elmanctl"]
