"""The help of every command."""

import re
import shlex
from collections.abc import Iterator
from typing import Any

import pytest
import typer
from typer.testing import CliRunner

from elmanctl.cli.app import PANELS, app


def _commands(group: Any, path: tuple[str, ...] = ()) -> Iterator[tuple[tuple[str, ...], Any]]:
    for name, command in group.commands.items():
        yield (*path, name), command
        if hasattr(command, "commands"):
            yield from _commands(command, (*path, name))


COMMANDS = dict(_commands(typer.main.get_command(app)))
LEAVES = {path: command for path, command in COMMANDS.items() if not hasattr(command, "commands")}


def helped(*path: str) -> str:
    done = CliRunner().invoke(app, [*path, "--help"], prog_name="elmanctl", terminal_width=80)
    assert done.exit_code == 0, done.output
    return done.output


def test_help_of_the_program_lists_every_command_once_under_a_heading() -> None:
    text = helped()
    listed = [name for names in PANELS.values() for name in names]
    assert sorted(listed) == sorted(path[0] for path in COMMANDS if len(path) == 1)
    for title in PANELS:
        assert f"\n{title}:\n" in text
    for name in listed:
        assert len(re.findall(rf"^  {name} +\S", text, re.MULTILINE)) == 1


@pytest.mark.parametrize("path", COMMANDS, ids=" ".join)
def test_every_command_is_summed_up_in_one_line_without_a_full_stop(path: tuple[str, ...]) -> None:
    summary = COMMANDS[path].get_short_help_str(80)
    assert summary
    assert not summary.endswith(".")
    assert "..." not in summary


@pytest.mark.parametrize("path", LEAVES, ids=" ".join)
def test_help_of_every_command_has_examples_that_name_commands_and_options_there_are(
    path: tuple[str, ...],
) -> None:
    text = helped(*path)
    _, found, examples = text.partition("Examples:\n")
    assert found, text
    lines = [line.strip() for line in examples.split("\n\n")[0].splitlines() if line.strip()]
    assert lines
    for line in lines:
        # eval "$(elmanctl completion bash)" is a shell's, around one of ours.
        inner = re.search(r"elmanctl [^)|>\"]+", line)
        assert inner, line
        words = shlex.split(inner.group())[1:]
        named = next(tuple(words[:n]) for n in (2, 1) if tuple(words[:n]) in COMMANDS)
        assert named == path, line
        options = {name for param in LEAVES[named].params for name in param.opts}
        used = {word.partition("=")[0] for word in words if word.startswith("-")}
        assert used <= options, line


@pytest.mark.parametrize("path", LEAVES, ids=" ".join)
def test_every_argument_and_option_says_what_it_is(path: tuple[str, ...]) -> None:
    for parameter in LEAVES[path].params:
        meaning = getattr(parameter, "help", None)
        assert meaning, parameter.name
        assert not meaning.endswith("."), parameter.name
