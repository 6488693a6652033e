"""docs/how-to/use-the-model.md, followed with a small run in the place of the one it names."""

import json
import shlex
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from elmanctl.run.saved_file import read_header
from elmanctl.run.spec import DataSpec
from tests.cli.conftest import histories, with_runs
from tests.command_line import CommandLine
from tests.jobs.attempts import Write, run
from tests.jobs.conftest import documents, write
from tests.pages import ROOT, blocks

pytestmark = pytest.mark.torch

__all__ = ["documents", "histories", "with_runs", "write"]

PAGE = ROOT / "docs" / "how-to" / "use-the-model.md"


@pytest.fixture
def kept(with_runs: CommandLine, write: Write, documents: DataSpec) -> Path:
    """The model that the winner of a finished run has left."""
    paths = write(
        data=documents, objective="val", holdout=0.1, val_windows=20, steps=3, keep=("model",)
    )
    run(paths)
    (file,) = (with_runs.folder / "runs" / "finished").rglob("model.safetensors")
    shutil.copy(paths.model, file)
    return file


def labels(text: str) -> list[str]:
    """Return what the lines of `show` are about."""
    lines = text.partition("config\n")[0].splitlines()
    return [line[2:14].strip() for line in lines if line.startswith("  ")]


def test_page_can_be_followed(with_runs: CommandLine, kept: Path) -> None:
    outputs = []
    names = {"e88-tiny": "finished", "g001-e01": kept.parents[1].name}
    for block in blocks(PAGE):
        text = block.text
        for name, other in names.items():
            text = text.replace(name, other)
        if block.language == "python":
            words = ["-c", text]
        elif block.language == "console" and "search" not in text:
            lines = [shlex.split(line.removeprefix("$ ")) for line in text.splitlines()]
            if lines[0][0] == "cp":
                shutil.copy(*(with_runs.folder / name for name in lines.pop(0)[1:]))
            ((program, *words),) = lines
            assert program == "elmanctl"
            words = ["-m", "elmanctl", *words]
        else:
            continue
        done = subprocess.run(
            [sys.executable, *words],
            cwd=with_runs.folder,
            env=with_runs.environment,
            capture_output=True,
            check=False,
        )
        assert done.returncode == 0, done.stderr
        outputs.append((done.stdout.decode("latin-1"), done.stderr.decode()))
    (shown, _), (sampled, said), (scored, _), (printed, _) = outputs
    told = [block.text for block in blocks(PAGE) if block.language == "text"]
    assert labels(told[1]) == labels(shown) != []
    assert len(sampled) == 60 and said.startswith("the model was trained on windows of 16 bytes")
    assert json.loads(scored)["prompt"]["text"] == "import os"
    result = read_header(kept).card.result
    assert printed.split() == [
        *("(1,", "1,", "256)", "torch", str(result["parameters"])),
        *("g000-e00", str(result["val_loss"])),
    ]
    assert told[3].split()[:4] == printed.split()[:4]
