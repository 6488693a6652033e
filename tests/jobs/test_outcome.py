from typing import Any

from elmanctl.jobs.convergence import Convergence
from elmanctl.jobs.outcome import Divergence, TrainOutcome
from elmanctl.ledger.records import VerdictKind


def outcome(**changes: Any) -> TrainOutcome:
    values: dict[str, Any] = {
        "divergence": None,
        "objective": "last100",
        "loss": 2.34567,
        "loss_window_steps": 100,
        "last_loss": 2.3,
        "last100_loss": 2.34567,
        "mean_loss": 3.1,
        "flops": 1e12,
        "steps": 300,
        "tokens": 153600,
        "tokens_per_s": 20000.0,
        "elapsed_s": 8.0,
        "parameters": 100000,
        "tokens_per_step": 512,
        "micro_batch": 8,
        "backend": "torch",
        "device": "cpu",
        "device_name": "a CPU",
        "precision": "fp32",
        "peak_memory_bytes": 10**8,
    }
    return TrainOutcome(**(values | changes))


def test_a_training_that_reached_its_budget_is_completed() -> None:
    verdict = outcome().verdict("metrics.jsonl")
    assert verdict.kind is VerdictKind.COMPLETED
    assert verdict.summary == "loss 2.3457 after 300 steps and 153600 bytes"


def test_divergence_names_step_quantity_and_where_to_look() -> None:
    found = Divergence(step=7, quantity="gradient norm", value="inf", last_finite_loss=3.21)
    verdict = outcome(divergence=found, loss=None).verdict("x/metrics.jsonl")
    assert verdict.kind is VerdictKind.DIVERGED
    assert verdict.summary == (
        "the gradient norm of step 7 is inf; the last finite loss was 3.2100"
    )
    assert (verdict.evidence[0].file, verdict.evidence[0].line) == ("x/metrics.jsonl", 7)


def test_held_out_loss_is_named_with_its_error_and_a_loss_that_did_not_converge_too() -> None:
    found = outcome(objective="val", loss=2.5, val_loss=2.5, val_loss_se=0.0123)
    assert found.verdict("m").summary == (
        "held-out loss 2.5000 ± 0.0123 after 300 steps and 153600 bytes"
    )
    capped = Convergence(
        is_converged=False,
        step=300,
        tokens=153600,
        elapsed_s=8.0,
        flops=1e12,
        loss=2.3,
        improvement=0.2,
        improvement_se=0.01,
    )
    assert outcome(convergence=capped).verdict("m").summary.endswith("bytes, not converged")
