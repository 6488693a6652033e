"""Pages of docs/how-to that a test follows to the letter, in a copy of the checkout."""

import re
import shlex
import shutil
import subprocess
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from tests.patience import PATIENCE_S

ROOT = Path(__file__).parents[1]

_FENCED = re.compile(r"^```(\w+)\n(.*?)^```$", re.MULTILINE | re.DOTALL)

# What a page says right before a block that belongs into a file.
_WHOLE_FILE = re.compile(r"Create `(\S+)`:\Z")
_BESIDE_LINE = re.compile(r"In `(\S+)`, (above|below) the line `([^`]+)`:\Z")
_AT_END = re.compile(r"At the end of `(\S+)`:\Z")


@dataclass(frozen=True)
class Block:
    """A fenced block: its language, its text, and the paragraph above it."""

    language: str
    text: str
    above: str


def blocks(page: Path) -> list[Block]:
    """Return the blocks of a page in their order."""
    text = page.read_text(encoding="utf-8")
    return [
        Block(match[1], match[2], text[: match.start()].rstrip().rpartition("\n\n")[2])
        for match in _FENCED.finditer(text)
    ]


def put(block: Block, checkout: Path) -> str:
    """Do what the page says of a block, and return the file that it names."""
    above = " ".join(block.above.split())
    if match := _WHOLE_FILE.search(above):
        path = checkout / match[1]
        assert not path.exists()
        path.write_text(block.text, encoding="utf-8")
    elif match := _BESIDE_LINE.search(above):
        path = checkout / match[1]
        lines = path.read_text(encoding="utf-8").splitlines(keepends=True)
        (line,) = (n for n, line in enumerate(lines) if line.strip() == match[3])
        place = line + (match[2] == "below")
        path.write_text("".join((*lines[:place], block.text, *lines[place:])), encoding="utf-8")
    else:
        match = _AT_END.search(above)
        assert match, f"the page does not say where this belongs: {block.text}"
        path = checkout / match[1]
        with path.open("a", encoding="utf-8") as file:
            file.write(f"\n{block.text}")
    return path.relative_to(checkout).as_posix()


def copy_checkout(folder: Path, page: Path, *more: str) -> list[str]:
    """Copy package, tests and `more` to a folder, put the page's code in, and name its files."""
    # What Python compiled comes along: it is valid as long as the sources keep their times.
    for name in ("elmanctl", "tests", *more):
        shutil.copytree(ROOT / name, folder / name)
    shutil.copy(ROOT / "pyproject.toml", folder)
    code = [block for block in blocks(page) if block.language in ("python", "toml")]
    return [put(block, folder) for block in code]


def run(
    words: Sequence[str], checkout: Path, environment: Mapping[str, str]
) -> subprocess.CompletedProcess[str]:
    """Run Python in the copy, which it finds before the package that is installed."""
    return subprocess.run(
        [sys.executable, "-P", *words],
        cwd=checkout,
        env={**environment, "PYTHONPATH": str(checkout)},
        capture_output=True,
        text=True,
        timeout=PATIENCE_S,
        stdin=subprocess.DEVNULL,
        check=False,
    )


def command(text: str) -> tuple[list[str], dict[str, str]]:
    """Return the arguments of Python for a command of a page, and the variables that it sets."""
    words = shlex.split(text.removeprefix("$ "))
    variables: dict[str, str] = {}
    while "=" in words[0]:
        name, _, value = words.pop(0).partition("=")
        variables[name] = value
    program, *rest = words
    if program == "elmanctl":
        return ["-m", "elmanctl", *rest], variables
    assert program == ".venv/bin/python"
    return rest + (["-p", "no:cacheprovider"] if "pytest" in rest else []), variables


def cells(text: str) -> list[list[str]]:
    """Return the cells of each line, as a terminal or a pipe has them."""
    lines = [re.split(r"\t|\s{2,}", line.strip()) for line in text.splitlines()]
    return [[cell for cell in line if cell] for line in lines]
