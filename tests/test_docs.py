"""The documents say what the program does: nothing missing, nothing that is not there."""

import ast
import re
import shlex
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import fields
from pathlib import Path
from typing import Any

import pytest
from typer.main import get_command

from elmanctl import errors
from elmanctl.cli.app import app
from elmanctl.constants import ENVIRONMENT_PREFIX
from elmanctl.errors import ConfigError
from elmanctl.ledger.payloads import PAYLOADS
from elmanctl.ledger.records import VerdictKind
from elmanctl.models.config import FamilyConfig
from elmanctl.models.registry import FAMILIES, parse_level
from elmanctl.settings import SECTIONS, RetrySettings, setting_help
from elmanctl.space.axis import Axis
from elmanctl.verdicts.policy import RULES

ROOT = Path(__file__).parents[1]
README_LINES = 200

_SKIPPED = {"__pycache__", "build", "dist", "runs"}
_LINK = re.compile(r"\]\(([^)\s]+)\)")
_CODE_BLOCK = re.compile(r"^```.*?^```", re.MULTILINE | re.DOTALL)
# A command line: after a prompt, or in backticks; up to a comment, a pipe or the end.
_COMMAND = re.compile(r"(?:^\$ (?:\w+=\S+ )*|`)(elmanctl [^`\n#|;&]+)", re.MULTILINE)
# What git leaves where two changes met and nobody decided.
_CONFLICT = re.compile(r"^(?:<{7}|>{7}|\|{7}) |^={7}$", re.MULTILINE)
# Machines' own folders; the brackets keep this file from matching itself.
_MACHINE_PATH = re.compile(r"(?<![\w.])/(?:[w]ork|[r]oot|[h]ome)/\w|/tmp/[w]/|\.\./[s]hared")


def repository_files() -> list[Path]:
    """Return every file of the checkout that is not made by a tool."""

    def below(folder: Path) -> Iterator[Path]:
        for path in sorted(folder.iterdir()):
            hidden = path.name.startswith(".") and path.name not in (".ci", ".gitignore")
            if path.is_symlink() or hidden or path.name in _SKIPPED:
                continue
            if path.is_dir():
                yield from below(path)
            else:
                yield path

    return list(below(ROOT))


def documents() -> list[Path]:
    """Return the Markdown files."""
    return [path for path in repository_files() if path.suffix == ".md"]


def offenders(found: Iterator[tuple[Path, str]]) -> list[str]:
    """Return what is wrong, as `path: what`."""
    return [f"{path.relative_to(ROOT)}: {what}" for path, what in found]


def commands(command: Any = None, words: tuple[str, ...] = ()) -> dict[tuple[str, ...], Any]:
    """Return every command by its words, groups included."""
    command = command or get_command(app)
    found = {words: command}
    for name, below in getattr(command, "commands", {}).items():
        found |= commands(below, (*words, name))
    return found


def leaves() -> dict[tuple[str, ...], Any]:
    """Return the commands that do something."""
    return {w: command for w, command in commands().items() if not hasattr(command, "commands")}


def text_of(path: Path) -> str:
    """Return what a file says."""
    return path.read_text(encoding="utf-8", errors="replace")


def read(name: str) -> str:
    """Return a document by its path in the checkout."""
    return text_of(ROOT / name)


def rows(text: str) -> dict[str, list[str]]:
    """Return the cells of every table row that begins with a name in backticks."""
    found: dict[str, list[str]] = {}
    for line in text.splitlines():
        cells = [cell.strip() for cell in line.strip().strip("|").split("|")]
        name = re.fullmatch(r"`(\w+)`", cells[0])
        if line.startswith("|") and name and name.group(1) not in found:
            found[name.group(1)] = cells[1:]
    return found


def anchors(text: str) -> set[str]:
    """Return the anchors that the headings of a document make, as GitHub names them."""
    headings = re.findall(r"^#+ (.+)$", _CODE_BLOCK.sub("", text), re.MULTILINE)
    plain = [re.sub(r"[^\w\- ]", "", heading.lower()) for heading in headings]
    return {heading.strip().replace(" ", "-") for heading in plain}


def test_reference_is_what_the_generator_makes_now() -> None:
    done = subprocess.run(
        [sys.executable, str(ROOT / "scripts" / "make-reference"), "--check"],
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr


@pytest.mark.parametrize("words", leaves(), ids=" ".join)
def test_command_has_help_with_an_example(words: tuple[str, ...]) -> None:
    text = leaves()[words].help or ""
    assert f"elmanctl {' '.join(words)}" in text.partition("Examples:")[2]


@pytest.mark.parametrize("words", leaves(), ids=" ".join)
def test_command_occurs_in_a_guide_or_concept(words: tuple[str, ...]) -> None:
    written = [path for path in documents() if "reference" not in path.parts]
    name = f"elmanctl {' '.join(words)}"
    listed = f"`{' '.join(words)}`"
    assert any(name in text or listed in text for text in map(text_of, written))


@pytest.mark.parametrize("section", SECTIONS)
def test_section_and_its_keys_are_in_the_reference(section: str) -> None:
    _, _, text = read("docs/reference/config.md").partition(f"\n## `[{section}]`\n")
    table = rows(text.partition("\n## ")[0])
    assert {item.name for item in fields(SECTIONS[section])} <= set(table)


def test_kind_of_an_axis_that_a_hint_names_is_in_the_documents() -> None:
    with pytest.raises(ConfigError) as told:
        Axis.decode("a", {"kind": "?"})
    kinds = (told.value.hint or "").removeprefix("kinds: ").split(", ")
    reference = (ROOT / "docs" / "reference" / "config.md").read_text(encoding="utf-8")
    table = reference.partition("| `kind` | Other keys")[2].partition("\n\n")[0]
    listed = re.findall(r"^\| `(\w+)` \|", table, re.MULTILINE)
    assert "pow2" in kinds and kinds == listed
    shipped = (ROOT / "elmanctl" / "space" / "spaces.toml").read_text(encoding="utf-8")
    assert set(re.findall(r"^#   (\w+) ", shipped, re.MULTILINE)) == set(kinds)


def test_every_variable_occurs_in_the_documents() -> None:
    written = "\n".join(map(text_of, documents()))
    program = [p for p in repository_files() if p.suffix != ".md" and "tests" not in p.parts]
    used = re.findall(r"\bELMAN_[A-Z_]*[A-Z]\b", "\n".join(map(text_of, program)))
    settings = [f"{ENVIRONMENT_PREFIX}{key.replace('.', '_')}".upper() for key in setting_help()]
    assert {name for name in (*used, *settings) if name not in written} == set()


def test_every_error_is_in_the_documents_with_its_exit_code() -> None:
    table = rows(read("docs/errors.md"))
    classes = [
        item
        for item in vars(errors).values()
        if isinstance(item, type) and issubclass(item, errors.ElmanError)
    ]
    assert {item.__name__: str(item.exit_code) for item in classes} == {
        item.__name__: table.get(item.__name__, ["missing"])[0] for item in classes
    }


def test_every_verdict_is_in_the_documents_with_its_default_retries() -> None:
    table = rows(read("docs/concepts/verdicts.md").partition("\n## Slurm states")[0])
    retries = {item.name: str(item.default) for item in fields(RetrySettings)}
    expected = {kind.value: retries.get(kind.value, "") for kind in VerdictKind}
    assert {name: cells[-1] for name, cells in table.items()} == expected


def test_policy_table_in_the_documents_is_the_one_that_decides() -> None:
    text = read("docs/concepts/verdicts.md").partition("\n## Policy table")[2].partition("\n- ")[0]
    shown = [
        tuple(cell.strip() for cell in line.strip("|").split("|"))
        for line in text.splitlines()
        if line.startswith("| `")
    ]
    decided = [
        (
            f"`{rule.kind}`, {rule.case}" if rule.case else f"`{rule.kind}`",
            str(rule.feedback),
            f"`retry.{rule.setting}`" if rule.setting else "never",
            str(rule.change) if rule.setting else "",
            str(rule.group),
        )
        for rule in RULES
    ]
    assert shown == decided


@pytest.mark.parametrize("name", FAMILIES)
def test_every_field_and_level_of_a_model_is_in_its_section(name: str) -> None:
    section = read("docs/models.md").partition(f"\n### {name}\n")[2].partition("\n### ")[0]
    own = {item.name for item in fields(FAMILIES[name].load_config())}
    own -= {item.name for item in fields(FamilyConfig)}
    assert {field for field in own if f"`{field}`" not in section} == set()
    levels = re.findall(r"`(\S+)`", section.partition("- Level")[2].partition("\n- ")[0])
    assert {parse_level(level).family for level in levels if level not in own} == {name}
    assert "Differences in the study" in section


@pytest.mark.parametrize("kind", PAYLOADS)
def test_event_is_in_the_document_of_the_ledger(kind: str) -> None:
    assert kind in rows(read("docs/concepts/ledger.md"))


def test_page_on_templates_can_be_followed_in_a_checkout(
    environment: dict[str, str], tmp_path: Path
) -> None:
    page = read("docs/how-to/write-an-sbatch-template.md")
    command = re.search(r"```console\n\$ (mkdir [^\n]*)\n```", page)
    template = re.search(r"in it for example `([^`]*)`:\n\n```toml\n(.*?)```", page, re.DOTALL)
    assert command and template
    bare = {name: value for name, value in environment.items() if name != "XDG_CONFIG_HOME"}
    bare |= {"HOME": str(tmp_path), "ELMAN_SLURM_TEMPLATE": "a100"}
    subprocess.run(["bash", "-c", command[1]], cwd=ROOT, env=bare, check=True)
    folder = Path(command[1].split()[-1].replace("~", str(tmp_path)))
    (folder / template[1]).write_text(template[2], encoding="utf-8")
    program = [sys.executable, "-m", "elmanctl", "config", "--show-origin"]
    shown = subprocess.run(program, cwd=ROOT, env=bare, capture_output=True, text=True, check=True)
    assert re.search(r"slurm.account\s+speech\s+.*a100", shown.stdout)


def functions_of(path: Path) -> set[str]:
    """Return the functions of a module, methods as `Class.method`."""
    kinds = ast.FunctionDef | ast.AsyncFunctionDef
    found = set()
    for node in ast.parse(text_of(path)).body:
        if isinstance(node, kinds):
            found.add(node.name)
        elif isinstance(node, ast.ClassDef):
            found |= {f"{node.name}.{each.name}" for each in node.body if isinstance(each, kinds)}
    return found


def test_places_of_behaviours_in_the_guide_for_contributors_exist() -> None:
    section = read("CONTRIBUTING.md").partition("\n## Where to look\n")[2].partition("\n## ")[0]
    places = re.findall(r"^\| .* \| `(\S+\.py)` \| `(\S+)` \|$", section, re.MULTILINE)
    assert len(places) >= 20
    missing = [
        f"{file}: {name}"
        for file, name in places
        if name not in functions_of(ROOT / "elmanctl" / file)
    ]
    assert missing == []


def test_links_resolve() -> None:
    assert offenders(_broken_links()) == []


def _broken_links() -> Iterator[tuple[Path, str]]:
    for path in documents():
        for link in _LINK.findall(_CODE_BLOCK.sub("", text_of(path))):
            file, _, anchor = link.partition("#")
            target = (path.parent / file).resolve() if file else path
            is_ours = target.is_relative_to(ROOT) and target.exists()
            if re.match(r"[a-z]+:", link):
                continue
            if not is_ours or (anchor and anchor not in anchors(text_of(target))):
                yield path, link


def test_command_lines_in_documents_and_hints_exist() -> None:
    assert offenders(_wrong_command_lines()) == []


def _wrong_command_lines() -> Iterator[tuple[Path, str]]:
    program = [path for path in repository_files() if path.is_relative_to(ROOT / "elmanctl")]
    for path in (*documents(), *program):
        for line in _COMMAND.findall(text_of(path)):
            fault = _fault(line)
            if fault is not None:
                yield path, f"{line.strip()}: {fault}"


def _fault(line: str) -> str | None:
    """Return what is wrong with a command line, None when its command and options exist."""
    known = commands()
    words = shlex.split(line.replace("...", " "))[1:]
    path: tuple[str, ...] = ()
    takes_value = False
    for word in words:
        group = hasattr(known[path], "commands")
        if takes_value or word in ("-h", "--help"):
            takes_value = False
        elif word.startswith("-"):
            option = _option(known[path], word)
            if option is None:
                return f"there is no option {word}"
            takes_value = not option.is_flag and not option.count and "=" not in word
        elif group and (*path, word) in known:
            path = (*path, word)
        elif group and not re.match(r"[A-Z{]", word):
            return f"there is no command {word}"
    return None


def _option(command: Any, word: str) -> Any:
    name = "-v" if re.fullmatch(r"-v+", word) else word.partition("=")[0]
    return next((p for p in command.params if name in p.opts), None)


def test_readme_fits_its_limit() -> None:
    assert len(read("README.md").splitlines()) <= README_LINES


def test_no_file_has_the_marks_of_an_open_conflict() -> None:
    marked = ((p, m[0]) for p in repository_files() for m in _CONFLICT.finditer(text_of(p)))
    assert offenders(marked) == []


def test_no_file_names_a_path_of_a_machine() -> None:
    named = (
        (path, line)
        for path in repository_files()
        for line in text_of(path).splitlines()
        if _MACHINE_PATH.search(line)
    )
    assert offenders(named) == []
