"""A training ends when its budget does: in time, FLOPs, or improvement."""

from collections.abc import Callable
from typing import Any

import pytest

from elmanctl.errors import InvalidConfiguration
from elmanctl.jobs import training_loop
from elmanctl.jobs.checkpoints import Checkpoints
from elmanctl.jobs.metrics import MetricsLog
from elmanctl.jobs.validation import Validator
from elmanctl.models.config import FamilyConfig
from elmanctl.models.configs.e88 import E88Config
from elmanctl.models.params import flops_per_token
from elmanctl.run.spec import DataSpec
from tests.jobs.attempts import EVERY_STEP, MODELS, Write, interrupted, metrics, run

TOKENS_PER_STEP = 4 * 16
FLOPS_PER_STEP = TOKENS_PER_STEP * flops_per_token("e88", MODELS["e88"], seq_len=16, training=True)


@pytest.fixture
def step_takes_a_second(training_time: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    def take(owner: type, name: str, seconds: float) -> None:
        method: Callable[..., Any] = getattr(owner, name)

        def slowly(*arguments: Any) -> Any:
            training_time.now_s += seconds
            return method(*arguments)

        monkeypatch.setattr(owner, name, slowly)

    take(MetricsLog, "append", 1.0)
    take(Validator, "validate", 50.0)
    take(Checkpoints, "write", 70.0)
    monkeypatch.setattr(training_loop, "time", training_time)


@pytest.mark.usefixtures("step_takes_a_second")
@pytest.mark.parametrize("amount_s", [19.0, 19.5])
def test_a_time_budget_holds_within_a_step_whatever_is_measured_and_kept_meanwhile(
    write: Write, documents: DataSpec, amount_s: float
) -> None:
    paths = write(
        minutes=amount_s / 60,
        data=documents,
        objective="val",
        holdout=0.1,
        val_windows=20,
        val_every=4,
        checkpoint_min=EVERY_STEP,
    )
    result = run(paths)
    # One step of warm-up, and as many as it takes to reach the budget.
    assert result["steps"] == (20 if amount_s == 19.0 else 21)
    assert result["elapsed_s"] == result["steps"]
    assert result["tokens_per_s"] == TOKENS_PER_STEP
    assert result["checkpoints_written"] == result["steps"] - 1
    seen = [(each["step"], each["elapsed_s"]) for each in result["validations"]]
    assert seen == [(step, step) for step in sorted({4, 8, 12, 16, 20, result["steps"]})]
    assert result["validation_s"] == 50.0 * len(seen)


@pytest.mark.usefixtures("step_takes_a_second")
def test_the_cost_of_validations_is_summed_up_across_an_interruption(
    write: Write, documents: DataSpec
) -> None:
    asked = {
        **{"minutes": 19 / 60, "data": documents, "objective": "val"},
        **{"holdout": 0.1, "val_windows": 20, "val_every": 4},
    }
    interrupted(write(**asked), before_step=10)
    result = run(write(2, **asked))
    assert result["continued_from"]["step"] == 9
    assert (result["steps"], result["elapsed_s"]) == (20, 20.0)
    assert result["validation_s"] == 50.0 * 5


@pytest.mark.parametrize(("steps_worth", "steps"), [(2.0, 2), (2.001, 3), (0.001, 1)])
def test_a_flop_budget_ends_with_the_step_that_reaches_it(
    write: Write, steps_worth: float, steps: int
) -> None:
    result = run(write(flops=steps_worth * FLOPS_PER_STEP, checkpoint_min=0.0))
    assert result["steps"] == steps
    assert result["flops"] == steps * FLOPS_PER_STEP
    assert result["protocol"]["budget"] == {"flops": steps_worth * FLOPS_PER_STEP}


def test_a_family_without_a_count_trains_under_any_budget_but_one_in_flops(
    write: Write, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(E88Config, "layer_flops", FamilyConfig.layer_flops)
    result = run(write(evaluation="g000-e01", checkpoint_min=0.0))
    assert (result["verdict"]["kind"], result["flops"]) == ("completed", None)
    refused = write(flops=1e12)
    with pytest.raises(InvalidConfiguration, match="E88Config does not define `layer_flops`"):
        run(refused)
    assert not refused.metrics.read_text()


def test_a_training_ends_when_its_loss_has_converged(write: Write) -> None:
    paths = write(converge=0.2, converge_window=40, checkpoint_min=0.0)
    result = run(paths)
    found = result["convergence"]
    assert result["verdict"]["kind"] == "completed"
    assert "not converged" not in result["verdict"]["evidence"][0]["text"]
    assert found["is_converged"]
    assert (found["step"], found["tokens"]) == (result["steps"], result["tokens"])
    assert found["flops"] == result["flops"] == result["steps"] * FLOPS_PER_STEP
    # Looked at twice a window, from the fourth on.
    assert found["step"] >= 160 and found["step"] % 20 == 0
    losses = [record["loss"] for record in metrics(paths)]
    assert found["loss"] == pytest.approx(sum(losses[-40:]) / 40)
    assert found["improvement"] + 3 * found["improvement_se"] < 0.2
    # The fall of the loss over the last windows, in their number.
    fall = sum(losses[-160:-120]) / 40 - sum(losses[-40:]) / 40
    assert found["improvement"] == pytest.approx(fall / 3, rel=0.3)


@pytest.mark.usefixtures("step_takes_a_second")
def test_a_loss_that_improves_until_the_cap_is_completed_and_not_converged(write: Write) -> None:
    result = run(write(converge=1e-9, converge_window=20, converge_cap_min=100 / 60))
    found = result["convergence"]
    assert result["steps"] == found["step"] == 101
    assert not found["is_converged"]
    assert found["improvement"] > 0 and found["elapsed_s"] == 101.0
    assert result["verdict"]["kind"] == "completed"
    assert result["verdict"]["evidence"][0]["text"].endswith(", not converged")
    assert result["loss"] is not None


@pytest.mark.usefixtures("step_takes_a_second")
def test_a_cap_before_there_are_two_windows_says_so_too(write: Write) -> None:
    result = run(write(converge=1.0, converge_window=500, converge_cap_min=9 / 60))
    found = result["convergence"]
    assert (found["step"], found["is_converged"], found["improvement"]) == (10, False, None)


def test_a_held_out_loss_that_is_not_finite_is_divergence(
    write: Write, documents: DataSpec, monkeypatch: pytest.MonkeyPatch
) -> None:
    validate = Validator.validate
    found = iter([2.0, float("inf")])

    def poisoned(self: Validator, step: int) -> tuple[float, float | None]:
        return next(found), validate(self, step)[1]

    monkeypatch.setattr(Validator, "validate", poisoned)
    asked = {"data": documents, "objective": "val", "holdout": 0.1, "val_windows": 20}
    paths = write(**asked, val_every=4, checkpoint_min=0.0)
    result = run(paths)
    assert result["verdict"]["kind"] == "diverged"
    evidence = result["verdict"]["evidence"][0]
    last = metrics(paths)[-1]
    assert evidence["text"] == (
        f"the held-out loss of step 8 is inf; the last finite loss was {last['loss']:.4f}"
    )
    assert (evidence["line"], last["step"]) == (8, 8)
    # It ends there, not at the end of its budget.
    assert result["steps"] == 8
    assert (result["loss"], result["val_loss"], result["bits_per_byte"]) == (None, None, None)
    assert [each["val_loss"] for each in result["validations"]] == [2.0]
