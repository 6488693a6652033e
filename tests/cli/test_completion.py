"""Completion, asked for as bash, zsh and fish ask for it."""

import re
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import typer

from elmanctl.cli.app import app
from tests.command_line import CommandLine, QuickCommandLine

Shell = Callable[[str], dict[str, str]]


def bash(line: str) -> dict[str, str]:
    words = line.split(" ")
    return {
        "_ELMANCTL_COMPLETE": "complete_bash",
        "COMP_WORDS": "\n".join(words),
        "COMP_CWORD": str(len(words) - 1),
    }


def zsh(line: str) -> dict[str, str]:
    return {"_ELMANCTL_COMPLETE": "complete_zsh", "_TYPER_COMPLETE_ARGS": line}


def fish(line: str) -> dict[str, str]:
    return {
        "_ELMANCTL_COMPLETE": "complete_fish",
        "_TYPER_COMPLETE_ARGS": line,
        "_TYPER_COMPLETE_FISH_ACTION": "get-args",
    }


@pytest.fixture
def completed(quick: QuickCommandLine, monkeypatch: pytest.MonkeyPatch) -> Callable[..., list[str]]:
    """Completes a line, up to its end, as a shell does."""

    def complete(line: str, shell: Shell = bash) -> list[str]:
        with monkeypatch.context() as patch:
            for name, value in shell(line).items():
                patch.setenv(name, value)
            done = quick()
        assert (done.returncode, done.stderr) == (0, ""), line
        quoted = re.findall(r'"([^"]+)"', done.stdout)
        return quoted if shell is zsh else done.stdout.split()

    return complete


@pytest.mark.parametrize("shell", [bash, zsh, fish])
@pytest.mark.parametrize(
    ("line", "expected"),
    [
        ("elmanctl search e88 --preset t", ["tiny"]),
        ("elmanctl search e88 --space t", ["tiny"]),
        ("elmanctl search E88n32 --space s", ["sweep"]),
        ("elmanctl search e75 --backend ", ["auto", "triton", "torch"]),
        ("elmanctl search e88 --template h", ["h100"]),
        ("elmanctl requeue --failed --kind o", ["oom"]),
        ("elmanctl requeue --failed --kind oom,ti", ["oom,timeout"]),
        ("elmanctl clean --kind metrics,l", ["metrics,logs"]),
        ("elmanctl status r --state w", ["waiting"]),
        ("elmanctl eval e88 --device cu", ["cuda"]),
        ("elmanctl params e8", ["e88", "e87"]),
        ("elmanctl resume --set slurm.pa", ["slurm.partition="]),
        ("elmanctl --color al", ["always"]),
        ("elmanctl completion z", ["zsh"]),
        ("elmanctl search e88 --preset nothing", []),
        ("elmanctl search nothing --space 3", ["3d"]),
    ],
)
def test_value_of_a_closed_set_is_finished(
    line: str, expected: list[str], shell: Shell, completed: Callable[..., list[str]]
) -> None:
    assert completed(line, shell) == expected


def test_template_of_the_user_is_among_them_and_a_broken_file_is_silent(
    quick: QuickCommandLine, completed: Callable[..., list[str]]
) -> None:
    (quick.folder / "elman.toml").write_text("[paths]\ntemplates = 'mine'\n", encoding="utf-8")
    (quick.folder / "mine").mkdir()
    (quick.folder / "mine" / "half-node.toml").write_text("", encoding="utf-8")
    assert completed("elmanctl search e88 --template ha") == ["half-node"]
    (quick.folder / "elman.toml").write_text("[paths\n", encoding="utf-8")
    assert completed("elmanctl search e88 --template ha") == []


def options(group: Any, path: tuple[str, ...] = ()) -> Iterator[tuple[str, Any]]:
    for parameter in group.params:
        yield " ".join((*path, parameter.name)), parameter
    for name, command in getattr(group, "commands", {}).items():
        yield from options(command, (*path, name))


CLOSED = ("preset", "space", "kind", "template", "state", "backend", "device", "variant", "shell")
ALL = dict(options(typer.main.get_command(app)))


@pytest.mark.parametrize(
    "name", [name for name in ALL if name.split()[-1] in (*CLOSED, "model", "level", "color")]
)
def test_parameter_with_a_closed_set_finishes_its_values_everywhere(name: str) -> None:
    command = typer.main.get_command(app)
    context = command.make_context("elmanctl", [], resilient_parsing=True)
    assert ALL[name].shell_complete(context, ""), name


def test_bash_itself_finishes_a_value(elmanctl: CommandLine, tmp_path: Path) -> None:
    program = tmp_path / "bin" / "elmanctl"
    program.parent.mkdir()
    program.write_text(f'#!/bin/sh\nexec {sys.executable} -m elmanctl "$@"\n', encoding="utf-8")
    program.chmod(0o755)
    script = """
        eval "$(elmanctl completion bash)"
        function_of=$(complete -p elmanctl | sed 's/.*-F \\([^ ]*\\).*/\\1/')
        COMP_WORDS=(elmanctl search e88 --preset ti); COMP_CWORD=4
        $function_of elmanctl ti --preset
        echo "${COMPREPLY[@]}"
        COMP_WORDS=(elmanctl search e88 --preset = ti); COMP_CWORD=5
        $function_of elmanctl ti =
        echo "${COMPREPLY[@]}"
        COMP_WORDS=(elmanctl clean --kind = met --dry-run); COMP_CWORD=4
        $function_of elmanctl met =
        echo "${COMPREPLY[@]}"
        COMP_WORDS=(elmanctl status r --state =); COMP_CWORD=4
        $function_of elmanctl = --state
        echo "${COMPREPLY[0]}"
    """
    done = subprocess.run(
        ["bash", "--norc", "-c", script],
        env={**elmanctl.environment, "PATH": f"{program.parent}:{elmanctl.environment['PATH']}"},
        cwd=tmp_path,
        capture_output=True,
        text=True,
        check=False,
    )
    assert (done.stdout.split(), done.stderr) == (["tiny", "tiny", "metrics", "created"], "")
