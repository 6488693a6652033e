"""A micro-batch that a worker found on its device is where the next attempts there begin."""

import json
from dataclasses import replace
from typing import Any

import pytest

from elmanctl.ledger.records import Evaluation
from elmanctl.search.workload import found_micro_batches
from tests.search.scripted import Run, Runs

pytestmark = pytest.mark.usefixtures("no_power_failures")

FOUND = {
    "device_name": "A100",
    "micro_batch": 4,
    "halvings": [{"step": 1, "from": 8, "to": 4, "text": "CUDA out of memory"}],
}


def specs(run: Run) -> dict[tuple[str, str], Any]:
    """The micro-batches that each attempt was told, by evaluation and attempt."""
    return {
        (path.parts[-3], path.parts[-2]): json.loads(path.read_text()).get("micro_batches")
        for path in run.paths.evaluations.glob("*/*/spec.json")
    }


def test_retries_and_confirmations_begin_where_the_same_configuration_ended(runs: Runs) -> None:
    run = runs.new(confirm_top=1, confirm_seeds=2, retry={"python_error": 1})
    run.world.told = FOUND
    run.world.script = {"g000-e01": ["python_error"]}
    state = run.drive()
    told = specs(run)
    known = {key for key, value in told.items() if value == {"A100": 4}}
    again = {e.id for e in state.evaluations.values() if e.confirms or e.repeats}
    assert {name for name, attempt in known if attempt == "attempt-1"} == again & {
        name for name, _ in told
    }
    assert len(again) >= 2 and ("g000-e01", "attempt-2") in known
    # No key at all where nothing is known, as in a spec of an earlier version.
    assert {told[key] for key in told.keys() - known} == {None}


@pytest.mark.parametrize(
    "told",
    [
        {"device_name": "A100", "micro_batch": 4},
        {"device_name": "A100", "micro_batch": 4, "halvings": []},
        {"micro_batch": 4, "halvings": FOUND["halvings"]},
    ],
)
def test_without_a_halving_on_a_known_device_nothing_is_remembered(
    runs: Runs, told: dict[str, Any]
) -> None:
    run = runs.new(confirm_top=1, confirm_seeds=1)
    run.world.told = told
    run.drive()
    assert set(specs(run).values()) == {None}


def test_the_smallest_on_a_device_counts(runs: Runs) -> None:
    run = runs.new()
    run.world.told = FOUND
    state = run.drive()
    one: Evaluation = next(iter(state.evaluations.values()))
    (attempt,) = one.attempts
    other = [{**FOUND, "micro_batch": rows, "device_name": name} for name, rows in DEVICES]
    attempts = tuple(replace(attempt, result=result) for result in other)
    state.evaluations[one.id] = replace(one, attempts=attempts)
    assert found_micro_batches(state, state.evaluations[one.id]) == {"A100": 2, "H100": 8}


DEVICES = (("A100", 4), ("H100", 8), ("A100", 2))
