"""docs/how-to/add-a-model.md, followed to the letter in a copy of the package."""

import re
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from types import ModuleType

import pytest

from elmanctl.constants import INSTALL_TRAIN
from elmanctl.errors import InvalidConfiguration
from elmanctl.models.config import FamilyConfig
from tests.pages import ROOT, blocks, cells, command, copy_checkout, run

PAGE = ROOT / "docs" / "how-to" / "add-a-model.md"

# The same in less time: a search is checked whole, down to its first points, and not started.
SHORTER = {"eval": ("--train-steps", "5"), "search": ("--dry-run",)}

# What the page shows of these is the same on every machine.
SAME_EVERYWHERE = {"models", "params", "calc-dim"}


@pytest.fixture(scope="module")
def checkout(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A copy of package and tests in which every block of code has been put into its place."""
    copy = tmp_path_factory.mktemp("checkout")
    files = copy_checkout(copy, PAGE)
    assert files == [
        "elmanctl/models/toyrnn.py",
        "elmanctl/models/registry.py",
        "elmanctl/space/spaces.toml",
        "tests/models/samples.py",
    ]
    return copy


def arguments(text: str) -> list[str]:
    """Return the arguments of Python for a command of the page, which takes less time so."""
    words, _ = command(text)
    return [*words, *SHORTER.get(words[2], ())]


def first_words(text: str) -> list[str]:
    """Return the first word of each line."""
    return [line.split()[0] for line in text.splitlines()]


@pytest.mark.slow
def test_every_command_of_the_page_does_what_the_page_shows(
    checkout: Path, environment: dict[str, str]
) -> None:
    page = blocks(PAGE)
    commands = {
        block.text: page[place + 1 : place + 2]
        for place, block in enumerate(page)
        if block.language == "console"
    }
    # Nearly all of their time is the import of torch.
    with ThreadPoolExecutor(max_workers=2) as pool:
        results = list(pool.map(lambda text: run(arguments(text), checkout, environment), commands))
    outputs = {}
    for (text, following), result in zip(commands.items(), results, strict=True):
        assert result.returncode == 0, (text, result.stdout + result.stderr)
        name = arguments(text)[2]
        outputs[name] = result.stdout
        if name in SAME_EVERYWHERE:
            shown = cells(following[0].text)
            assert following[0].language == "text" and shown
            assert cells(result.stdout)[-len(shown) :] == shown
        if name == "eval":
            assert first_words(result.stdout) == first_words(following[0].text)
    assert list(outputs) == [
        *("models", "params", "calc-dim", "eval"),
        "tests/models/test_families.py",
        "search",
    ]
    assert "parameters    106560\n" in outputs["eval"]
    assert re.search(r"\b\d\d passed", outputs["tests/models/test_families.py"])
    assert "would run 2 evaluations" in outputs["search"]


def test_without_torch_only_the_one_file_family_cannot_be_counted(
    checkout: Path, environment: dict[str, str]
) -> None:
    program = (
        "import sys\n"
        "sys.modules['torch'] = None\n"
        "from elmanctl.__main__ import main\n"
        "sys.argv[1:] = ['params', *sys.argv[1:], 'dim=64', 'depth=1']\n"
        "main()\n"
    )
    toy = run(["-c", program, "toyrnn"], checkout, environment)
    assert toy.returncode == 4
    assert "`elmanctl.models.toyrnn:ToyRNNConfig` needs torch, which is not" in toy.stderr
    assert INSTALL_TRAIN in toy.stderr
    other = run(["-c", program, "e1"], checkout, environment)
    assert other.returncode == 0, other.stderr


def config_class_with(old: str, new: str, monkeypatch: pytest.MonkeyPatch) -> type[FamilyConfig]:
    """Return the configuration of the page's file, one thing in it changed."""
    text = next(block.text for block in blocks(PAGE) if block.language == "python")
    assert old in text
    module = ModuleType("toyrnn_changed")
    # Dataclasses look up the module of their annotations.
    monkeypatch.setitem(sys.modules, module.__name__, module)
    exec(text.replace(old, new), module.__dict__)
    found: type[FamilyConfig] = module.ToyRNNConfig
    return found


@pytest.mark.parametrize("method", ["layer_parameters", "layer_state_size", "layer_flops"])
def test_forgotten_method_is_named(method: str, monkeypatch: pytest.MonkeyPatch) -> None:
    found = config_class_with(f"def {method}(", "def something_else(", monkeypatch)
    config = found(level="toyrnn", dim=16, depth=1)
    # A family without a count of FLOPs can be trained.
    kind = InvalidConfiguration if method == "layer_flops" else NotImplementedError
    with pytest.raises(kind, match=f"ToyRNNConfig does not define `{method}`"):
        getattr(config, method)(*(() if method == "layer_parameters" else (64,)))


def test_annotation_that_checks_nothing_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    annotation = "Annotated[float, Between(1.0, 8.0)] = 1.0"
    found = config_class_with(annotation, "str | None = None", monkeypatch)
    with pytest.raises(TypeError, match="ToyRNNConfig: `expansion` has the unsupported type str"):
        found(level="toyrnn", dim=16, depth=1)
