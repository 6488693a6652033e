"""A training that is killed goes on to the same losses bit for bit, whatever they are."""

from typing import Any

import pytest

from elmanctl.jobs.training_loop import MOST_VALIDATIONS
from elmanctl.run.spec import DataSpec
from tests.jobs.attempts import EVERY_STEP, Write, interrupted, killed, metrics, run, steps

# What a result may not owe to having been interrupted.
LOSSES = (
    *("objective", "loss", "last_loss", "last100_loss", "mean_loss", "val_loss", "val_loss_se"),
    *("bits_per_byte", "val_documents", "val_bytes", "skipped_updates", "steps", "tokens"),
    *("flops", "convergence", "fingerprint"),
)


def untimed(record: dict[str, Any]) -> dict[str, Any]:
    return {key: value for key, value in record.items() if key != "elapsed_s"}


def equal(result: dict[str, Any], other: dict[str, Any]) -> None:
    assert {key: result[key] for key in LOSSES} == {key: other[key] for key in LOSSES}
    assert [*map(untimed, result["validations"])] == [*map(untimed, other["validations"])]


@pytest.mark.parametrize(
    ("level", "sampler", "objective"),
    [
        ("e88", "windows", "val"),
        ("transformer", "documents", "mean"),
        ("e88", "stream", "last100"),
    ],
)
def test_a_killed_training_goes_on_to_the_same_losses_to_the_last_bit(
    write: Write, documents: DataSpec, level: str, sampler: str, objective: str
) -> None:
    asked = {
        **{"level": level, "steps": 100, "data": documents},
        **{"sampler": sampler, "objective": objective, "decay": "matrices"},
        **{"holdout": 0.1, "val_windows": 20, "val_every": 7},
    }
    first = write(**asked)
    killed(first)
    made = len(steps(first))

    second = write(2, **asked)
    result = run(second)
    # It was killed before, while or after it wrote the checkpoint of its last step.
    step = result["continued_from"]["step"]
    assert result["continued_from"]["attempt"] == 1 and made - 1 <= step <= made
    other = write(evaluation="g000-e99", **(asked | {"checkpoint_min": 0.0}))
    left_alone = run(other)
    assert "continued_from" not in left_alone
    whole = [*map(untimed, metrics(other))]
    assert [*map(untimed, metrics(first))] == whole[:made]
    assert [*map(untimed, metrics(second))] == whole[step:]
    assert [each["step"] for each in result["validations"]] == [*range(7, 99, 7), 100]
    equal(result, left_alone)
    assert result["mean_loss"] == sum(record["loss"] for record in whole) / 100
    assert not list(first.folder.glob("checkpoint*")) + list(second.folder.glob("checkpoint*"))


def test_convergence_is_judged_the_same_after_an_interruption(write: Write) -> None:
    asked = {"converge": 0.5, "converge_window": 20, "checkpoint_min": EVERY_STEP}
    interrupted(write(**asked), before_step=31)
    result = run(write(2, **asked))
    assert result["continued_from"] == {"attempt": 1, "step": 30}
    left_alone = run(write(evaluation="g000-e99", **(asked | {"checkpoint_min": 0.0})))
    for each in (result, left_alone):
        del each["convergence"]["elapsed_s"]
    equal(result, left_alone)
    assert result["convergence"]["is_converged"]


def test_a_result_keeps_some_of_very_many_validations(write: Write, documents: DataSpec) -> None:
    asked = {"data": documents, "objective": "val", "holdout": 0.1, "val_windows": 1}
    result = run(write(**asked, val_every=1, steps=130, checkpoint_min=0.0))
    kept = [each["step"] for each in result["validations"]]
    assert len(kept) <= MOST_VALIDATIONS
    assert kept == list(range(1, 131, 3))
    assert result["validations"][-1]["val_loss"] == result["val_loss"]
