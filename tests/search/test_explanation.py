"""Explanations of evaluations, for every way in which one may go."""

import pytest

from elmanctl.ledger.contents import read_events
from elmanctl.ledger.records import Evaluation
from elmanctl.ledger.run_state import RunState
from elmanctl.search.explanation import Step, explain
from tests.search.scripted import Run, Runs

pytestmark = pytest.mark.usefixtures("no_power_failures")


def steps_of(run: Run, state: RunState, name: str) -> list[Step]:
    return explain(state, read_events(run.paths.ledger).events, state.evaluations[name])


def told(steps: list[Step]) -> list[str]:
    return [step.what for step in steps]


def whys(steps: list[Step]) -> str:
    return "\n".join(why for step in steps for why in step.why)


def assert_sound(steps: list[Step], evaluation: Evaluation) -> None:
    """Assert what holds of every explanation."""
    assert steps[0].what.startswith("asked ")
    assert [step.at for step in steps] == sorted(step.at for step in steps)
    for attempt in evaluation.attempts:
        begins = [what for what in told(steps) if what.startswith(f"attempt {attempt.number} ")]
        assert "submitted" in begins[0]
        assert attempt.verdict is not None and attempt.verdict.kind in begins[-1]
        for quote in attempt.verdict.evidence:
            assert quote.text in whys(steps)
    assert any(what.startswith(("decided: ", "answered by ")) for what in told(steps))


@pytest.mark.parametrize(
    ("verdicts", "setting", "learned"),
    [
        (("completed",), "policy: final; the optimizer learns its loss", "learned "),
        (("diverged",), "`retry.diverged` allows no retry", "learned "),
        (("invalid",), "`retry.invalid` allows no retry", "learned nothing"),
        (("python_error",), "`retry.python_error` allows no retry", "learned nothing"),
        (("preempted", "completed"), "`retry.preempted` allows 10 retries", "learned "),
        (("killed", "completed"), "`retry.killed` allows 1 retry, from the checkp", "learned "),
        (("node_failure", "completed"), "each with another node, from the check", "learned "),
        (("timeout",), "`retry.timeout` allows no retry", "learned nothing"),
        (("undetermined", "completed"), "`retry.undetermined` allows 1 retry", "learned "),
        (("lost", "completed"), "`retry.lost` allows 2 retries", "learned "),
        (("cancelled",), "policy: final; the optimizer learns nothing", "learned nothing"),
    ],
)
@pytest.mark.parametrize("mode", ["generational", "asynchronous"])
def test_every_verdict_is_told_with_what_followed(
    runs: Runs, mode: str, verdicts: tuple[str, ...], setting: str, learned: str
) -> None:
    run = runs.new(generations=2, population=4, mode=mode, slurm={"partition": "gpu"})
    run.world.script = {"g000-e01": verdicts}
    state = run.drive()
    steps, own = steps_of(run, state, "g000-e01"), state.evaluations["g000-e01"]
    assert_sound(steps, own)
    assert setting in whys(steps)
    said = [what for what in told(steps) if what.startswith("the optimizer ")]
    if mode == "asynchronous" and learned == "learned nothing":
        # Nothing is reported of it at any time.
        assert said == []
    else:
        assert len(said) == 1 and said[0].startswith(f"the optimizer {learned}")
    if verdicts == ("diverged",):
        assert "a rank behind the worst loss" in whys(steps)
    for name, evaluation in state.evaluations.items():
        assert_sound(steps_of(run, state, name), evaluation)
    for replacement in (e for e in state.evaluations.values() if e.replaces == "g000-e01"):
        assert "in place of g000-e01" in whys(steps_of(run, state, replacement.id))


def test_request_and_point_are_told(runs: Runs) -> None:
    asked = {"partition": "gpu", "gres": "gpu:a100:1", "mem_gb": 20.0, "cpus": 8}
    run = runs.new(generations=1, population=4, slurm=asked)
    state = run.drive()
    own = state.evaluations["g000-e02"]
    words = whys(steps_of(run, state, own.id))
    assert "it asks for gpu:a100:1, 8 CPUs, 20 GB, 60 min, partition gpu" in words
    assert f"lr={own.lr!r}" in words and f"{own.parameters:,} parameters" in words
    assert "3rd point of generation 0" in told(steps_of(run, state, own.id))[0]


def test_repeats_and_confirmations_name_their_original(runs: Runs) -> None:
    run = runs.new(generations=3, population=6, confirm_top=2, confirm_seeds=2, seed=5)
    state = run.drive()
    confirming = [e for e in state.evaluations.values() if e.confirms is not None]
    assert confirming
    for evaluation in confirming:
        steps = steps_of(run, state, evaluation.id)
        assert_sound(steps, evaluation)
        assert steps[0].what.startswith(f"asked to confirm {evaluation.confirms} on the fresh seed")
    repeats = [e for e in state.evaluations.values() if e.answer is not None]
    for evaluation in repeats:
        assert evaluation.answer is not None
        words = told(steps_of(run, state, evaluation.id))
        assert any(what.startswith(f"answered by {evaluation.answer.by} ") for what in words)
