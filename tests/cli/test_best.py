"""The `best` command as a user runs it."""

import json

import pytest

from tests.command_line import CommandLine


@pytest.mark.torch
def test_command_of_the_best_trains_it_again(elmanctl: CommandLine) -> None:
    words = ["search", "e88", "--local", "--preset", "tiny", "--yes", "--name", "run"]
    small = ["--generations", "1", "--population", "4", "--train-steps", "4"]
    done = elmanctl(*words, *small, "--set", "search.confirm_top=0")
    assert done.returncode == 0, done.stderr
    told = elmanctl("best", "--json")
    best = json.loads(told.stdout)
    shown = elmanctl("best", "run")
    assert shown.returncode == 0 and "not confirmed: loss " in shown.stderr
    command = shown.stdout.split()
    again = elmanctl(*command[1:], "--device", "cpu", "--json")
    assert again.returncode == 0, again.stderr
    # The same bits, digit by digit.
    assert json.loads(again.stdout)["loss"] == best["loss"]


def test_run_without_a_result_and_unknown_forms_are_refused(elmanctl: CommandLine) -> None:
    for words, said in (
        (("best",), "no runs"),
        (("best", "--as", "yaml"), "`--as` is command, toml, python, not `yaml`"),
    ):
        done = elmanctl(*words)
        assert done.returncode != 0
        assert said in done.stderr, done.stderr
