"""Steps of tiny models, measured by the trainer of a search."""

import inspect
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch

from elmanctl.bench import step_rows as rows_module
from elmanctl.bench.shapes import E88, GDN, MAMBA2, StepModel, step_shape
from elmanctl.bench.step_rows import (
    TORCH_RECURRENCE,
    PlannedSteps,
    StepRow,
    plan_steps,
    step_rows,
)
from elmanctl.bench.third_party import TIMING_ONLY, fla_gradients_for_timing, suppress_warnings
from elmanctl.jobs import train as train_module
from elmanctl.kernels.gated_delta_rule import gated_delta_rule
from elmanctl.kernels.third_party import import_third_party
from elmanctl.models.params import count_parameters, flops_per_token
from elmanctl.run.training import Training

CPU, CUDA = torch.device("cpu"), torch.device("cuda")
SHAPE = step_shape(CPU)


@pytest.fixture
def measure(corpus: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., list[StepRow]]:
    """Measure rows in a short time."""
    monkeypatch.setitem(rows_module._TIMED_S, "cpu", 0.2)

    def measure(*planned: PlannedSteps, is_over: Any = lambda: False) -> list[StepRow]:
        return list(step_rows(planned, SHAPE, corpus, CPU, 1e9, is_over))

    return measure


def tiny(level: str) -> StepModel:
    return next(model for model in SHAPE.models if model.level == level)


@pytest.mark.parametrize("level", [model.level for model in SHAPE.models])
def test_steps_of_every_family_are_measured(
    measure: Callable[..., list[StepRow]], level: str
) -> None:
    model = tiny(level)
    (row,) = measure(PlannedSteps(model=model, backend="torch"))
    assert row.status == "measured", row.reason
    config = model.config.encode()
    assert row.parameters == count_parameters(level, config)
    assert row.tokens_per_step == SHAPE.tokens and row.precision == "fp32"
    assert row.steps and row.tokens_per_s and row.step_ms and row.step_low_ms and row.step_high_ms
    assert row.step_low_ms <= row.step_ms <= row.step_high_ms
    assert row.tokens_per_s == pytest.approx(SHAPE.tokens / row.step_ms * 1e3, rel=0.9)
    flops = flops_per_token(level, config, seq_len=SHAPE.seq_len, training=True)
    assert row.model_flops_per_s == pytest.approx(flops * row.tokens_per_s)
    assert row.mfu == pytest.approx(flops * row.tokens_per_s / 1e9)
    assert {"matrix products", "norms and pointwise", "optimizer"} <= set(row.parts_ms)
    assert row.idle_ms is None, "a CPU does not idle while it launches"
    # What is told of parts is what ran: all of it, and no more than a profiled step could take.
    assert sum(row.parts_ms.values()) > 0
    assert row.kernels and row.last_loss and row.last_loss < 6
    expected = None if level == "transformer" else TORCH_RECURRENCE
    assert row.note == expected


def test_step_that_is_too_long_is_not_profiled(
    measure: Callable[..., list[StepRow]], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(rows_module, "_MAX_PROFILED_MS", 0.0)
    (row,) = measure(PlannedSteps(model=tiny("transformer"), backend="torch"))
    assert row.status == "measured" and row.parts_ms == {} and row.kernels == []
    assert row.note == "steps are too long to profile"


def test_backend_that_cannot_run_here_has_a_row_that_says_why(
    measure: Callable[..., list[StepRow]],
) -> None:
    rows = measure(
        PlannedSteps(model=tiny("mamba2"), backend="mamba-ssm"),
        PlannedSteps(model=tiny("fla-gdn"), backend="fla"),
    )
    assert [row.status for row in rows] == ["missing", "missing"]
    assert {row.reason for row in rows} == {"its kernels run on cuda, not on cpu"}
    (row,) = measure(PlannedSteps(model=tiny("e88"), backend="triton"))
    assert row.status == "missing" and "interpreter" in (row.reason or "")


def test_model_that_fails_ends_no_other_row(
    measure: Callable[..., list[StepRow]], monkeypatch: pytest.MonkeyPatch
) -> None:
    bad = replace(tiny("transformer"), settings={"dim": 0, "depth": 1})
    with pytest.raises(Exception, match="dim"):
        bad.config  # noqa: B018
    real = train_module.train
    calls = []

    def train(*arguments: Any) -> Any:
        calls.append(1)
        if len(calls) == 1:
            raise torch.OutOfMemoryError("CUDA out of memory")
        return real(*arguments)

    monkeypatch.setattr(rows_module, "train", train)
    planned = PlannedSteps(model=tiny("transformer"), backend="torch")
    failed, ran = measure(planned, planned)
    assert (failed.status, failed.reason) == (
        "failed",
        "OutOfMemoryError: CUDA out of memory",
    )
    assert ran.status == "measured"


def test_models_after_a_lost_device_are_not_measured_and_name_what_lost_it(
    measure: Callable[..., list[StepRow]], monkeypatch: pytest.MonkeyPatch
) -> None:
    def train(*arguments: Any) -> Any:
        raise RuntimeError("CUDA error: an illegal memory access was encountered")

    monkeypatch.setattr(rows_module, "train", train)
    monkeypatch.setattr("elmanctl.bench.rows.loss_of", lambda device, culprit: f"lost to {culprit}")
    planned = PlannedSteps(model=tiny("transformer"), backend="torch")
    failed, rest = measure(planned, planned)
    assert failed.status == "failed"
    assert (rest.status, rest.reason) == ("not measured", "lost to transformer tiny torch")


def test_model_that_a_backend_refuses_is_no_failure(
    measure: Callable[..., list[StepRow]], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(PlannedSteps, "unavailable_reason", lambda row, device: None)
    (row,) = measure(PlannedSteps(model=tiny("e88"), backend="gluon"))
    assert row.status == "missing" and row.reason
    assert row.reason.startswith("refused: n_state=8 is not supported")


def test_model_that_diverges_has_no_speed(
    measure: Callable[..., list[StepRow]], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(rows_module, "Training", partial(Training, lr=1e30))
    (row,) = measure(PlannedSteps(model=tiny("transformer"), backend="torch"))
    assert row.status == "failed" and row.tokens_per_s is None
    assert row.reason and "at step" in row.reason


def test_no_model_is_begun_once_the_time_is_used_up(measure: Callable[..., list[StepRow]]) -> None:
    (row,) = measure(PlannedSteps(model=tiny("e88"), backend="torch"), is_over=lambda: True)
    assert (row.status, row.reason) == ("not measured", "the time limit was reached")


def test_fastest_backends_come_first_and_the_gated_delta_net_on_torch_next() -> None:
    rows = plan_steps(step_shape(CUDA))
    names = [row.label for row in rows]
    assert f"{MAMBA2} mamba-ssm" in names and f"{GDN} fla" in names
    plain = [row.model.name for row in rows if row.backend == "torch"]
    assert f"{GDN} torch" in names and MAMBA2 in plain
    firsts = [row.model.name for row in rows[:5]]
    assert firsts[:2] == [E88, MAMBA2] and len(set(firsts)) == 5
    assert plan_steps(step_shape(CUDA), ["mamba-ssm"])[0].model.name == MAMBA2


def test_model_whose_gradients_the_registry_refuses_is_built_all_the_same() -> None:
    built = rows_module._build(PlannedSteps(model=tiny("fla-gdn"), backend="fla"), CPU)
    assert built.backend == "fla"
    assert [layer.backend for layer in built.layers] == ["fla"]  # type: ignore[union-attr]


def test_steps_that_are_timing_only_are_labelled_and_run_inside_the_guard(
    measure: Callable[..., list[StepRow]], monkeypatch: pytest.MonkeyPatch
) -> None:
    module = guarded_module()
    monkeypatch.setattr(module, "TRITON_ABOVE_3_7_1", False)
    seen = []
    real = train_module.train

    def train(*arguments: Any) -> Any:
        seen.append(module.TRITON_ABOVE_3_7_1)
        return real(*arguments)

    monkeypatch.setattr(rows_module, "train", train)
    monkeypatch.setattr(rows_module, "fla_forward_unavailable", lambda device: None)
    monkeypatch.setattr(rows_module, "fla_gradient_unavailable", lambda: "this Triton")
    # The kernels do not run here: the layers compute on torch under the name of fla.
    model = tiny("fla-gdn")
    monkeypatch.setattr(
        "elmanctl.models.gated_delta_net.gated_delta_rule",
        lambda *a, **k: gated_delta_rule(*a, **{**k, "backend": "torch"}),
    )
    (row,) = measure(PlannedSteps(model=model, backend="fla"))
    assert row.status == "measured", row.reason
    assert row.note == TIMING_ONLY and row.backend == "fla"
    assert seen == [True, True] and module.TRITON_ABOVE_3_7_1 is False


def guarded_module() -> Any:
    """Import the module of fla whose guard is lifted."""
    with suppress_warnings():
        return import_third_party("fla.ops.common.chunk_o")


def test_guard_of_fla_is_the_one_that_its_backward_pass_asks(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    module = guarded_module()
    text = inspect.getsource(inspect.unwrap(module.chunk_bwd_dqkwg))
    assert "not TRITON_ABOVE_3_7_1:\n        raise RuntimeError" in text
    monkeypatch.setattr(module, "TRITON_ABOVE_3_7_1", False)
    with pytest.raises(ZeroDivisionError), fla_gradients_for_timing():
        assert module.TRITON_ABOVE_3_7_1 is True
        raise ZeroDivisionError
    assert module.TRITON_ABOVE_3_7_1 is False
