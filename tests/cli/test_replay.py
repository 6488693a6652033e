"""What `replay` prints, and how it refuses what it cannot do; without scikit-learn."""

import json
from pathlib import Path

import pytest

from elmanctl.constants import MEASURED_BEST
from tests.command_line import QuickCommandLine

SMALL = ("--optimizer", "cma", "--budget", "8,16", "--seeds", "3", "--processes", "1")


def test_table_has_a_row_for_each_objective_and_budget_and_one_for_all(
    quick: QuickCommandLine,
) -> None:
    done = quick("replay", "--function", "cliff", "--function", "steps", *SMALL)
    assert done.returncode == 0, done.stderr
    first, second = done.stdout.split("\n\n")
    lines = [line.split("\t") for line in first.splitlines()]
    assert lines[0][:4] == ["OBJECTIVE", "OPTIMIZER", "BUDGET", "SEARCHES"]
    assert [line[:4] for line in lines[1:]] == [
        [name, "cma", budget, "3"] for name in ("cliff", "steps") for budget in ("8", "16")
    ]
    values = dict(zip(lines[0], map(str, lines[2]), strict=True))
    assert 0 <= float(values["Q1"]) <= float(values["MEDIAN"]) <= float(values["Q3"])
    assert values["WASTED"] == "0.0"
    assert [line.split("\t")[:3] for line in second.splitlines()[1:]] == [
        ["cma", "8", "6"],
        ["cma", "16", "6"],
    ]


@pytest.mark.torch  # an environment with it has the packages of optimizers, too
def test_best_optimizer_has_its_own_name_in_the_table(quick: QuickCommandLine) -> None:
    options = ("--budget", "8", "--seeds", "1", "--processes", "1")
    done = quick("replay", "--function", "cliff", "--optimizer", "best", *options)
    assert done.returncode == 0, done.stderr
    assert done.stdout.splitlines()[1].split("\t")[1] == MEASURED_BEST


def test_json_is_the_same_with_a_cache_and_from_it(quick: QuickCommandLine) -> None:
    command = ("replay", "--function", "rugged", *SMALL, "--json")
    documents = []
    for options in ((), ("--cache", "c.jsonl"), ("--cache", "c.jsonl")):
        done = quick(*command, *options)
        assert done.returncode == 0, done.stderr
        found = json.loads(done.stdout)
        for row in found["rows"]:
            assert row.pop("cpu_ms") > 0
        documents.append(found)
    assert documents[0] == documents[1] == documents[2]
    assert len((quick.folder / "c.jsonl").read_text(encoding="utf-8").splitlines()) == 6
    (overall, _) = documents[0]["overall"]
    assert overall["ratio"] is None and overall["pairs"] == 3


def test_what_cannot_be_done_is_refused_in_one_line_with_a_hint(quick: QuickCommandLine) -> None:
    for arguments, code, message in (
        ((), 2, "error: nothing to search"),
        (("--function", "clif"), 3, "error: no function named `clif`"),
        (("--function", "cliff", "--optimizer", "cna"), 3, "error: no optimizer named `cna`"),
        (("--function", "cliff", "--budget", "30;60"), 2, "error: `--budget` takes numbers"),
        (("--function", "cliff", "--budget", "0"), 2, "error: `--budget` takes numbers"),
        (("--function", "cliff", "--surrogate", "forest"), 2, "error: no surrogate named"),
        (("--file", "none.jsonl"), 3, "error: no such file"),
        (("nowhere",), 3, "error: no run"),
    ):
        done = quick("replay", *arguments)
        assert done.returncode == code, done.stderr
        assert done.stderr.startswith(message), done.stderr
        assert done.stdout == ""


def test_cache_that_is_another_file_is_left_alone(quick: QuickCommandLine) -> None:
    path = Path(quick.folder) / "notes.txt"
    path.write_text("remember the milk\n", encoding="utf-8")
    done = quick("replay", "--function", "cliff", *SMALL, "--cache", "notes.txt")
    assert done.returncode == 2 and "notes.txt line 1 is no trace" in done.stderr
    assert path.read_text(encoding="utf-8") == "remember the milk\n"
