"""Checkpoints that are offered to the next attempt."""

import json
from typing import Any

import pytest

from tests.search.scripted import Run, Runs

pytestmark = pytest.mark.usefixtures("no_power_failures")


def spec(run: Run, attempt: int, evaluation: str = "g000-e01") -> dict[str, Any]:
    content = json.loads(run.paths.attempt(evaluation, attempt).spec.read_text())
    assert isinstance(content, dict)
    return content


def test_interrupted_evaluation_is_offered_the_checkpoints_it_left(runs: Runs) -> None:
    run = runs.new(generations=1, train={"checkpoint_min": 5.0})
    run.world.script = {"g000-e01": ["node_failure", "killed"]}
    run.drive()
    assert "continues_from" not in spec(run, 1)
    assert spec(run, 2)["continues_from"] == ["attempt-1"]
    assert spec(run, 3)["continues_from"] == ["attempt-2", "attempt-1"]
    assert {spec(run, number)["checkpoint_min"] for number in (1, 2, 3)} == {5.0}


def test_without_checkpoints_specs_are_what_they_were(runs: Runs) -> None:
    run = runs.new(generations=1)
    run.world.script = {"g000-e01": ["node_failure"]}
    run.drive()
    assert {"checkpoint_min", "continues_from"}.isdisjoint(spec(run, 2))
