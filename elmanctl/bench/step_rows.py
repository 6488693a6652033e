"""Training-step benchmark: a row per model and backend, on the worker's training loop."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field, replace
from pathlib import Path as FilePath
from statistics import median
from typing import Any

import torch
from torch import nn

from elmanctl.bench.parts import by_part
from elmanctl.bench.rows import measured_rows, select
from elmanctl.bench.shapes import StepModel, StepShape
from elmanctl.bench.step_clock import StepClock, StepProfile, medians_of_thirds
from elmanctl.bench.third_party import TIMING_ONLY, fla_gradients_for_timing, suppress_warnings
from elmanctl.jobs.data import ByteStream
from elmanctl.jobs.outcome import TrainOutcome
from elmanctl.jobs.train import train
from elmanctl.models.backends import BACKENDS, fla_forward_unavailable, fla_gradient_unavailable
from elmanctl.models.params import count_parameters, flops_per_token
from elmanctl.models.registry import build_model
from elmanctl.run.spec import AttemptSpec, DataSpec
from elmanctl.run.training import Training

WARMUP_STEPS = 5
_TIMED_S = {"cuda": 8.0, "cpu": 1.0}
_PROFILED_FROM, _PROFILED_TO = 2, 4
_MAX_KERNELS = 25

# Recurrences in plain torch launch hundreds of thousands of kernels per step, too many to profile.
_MAX_PROFILED_MS = 1500.0

TORCH_RECURRENCE = "the recurrence runs on torch's kernels and is counted in other parts"


@dataclass(frozen=True, slots=True, kw_only=True)
class StepRow:
    """Results of training one model on one backend.

    `status` and `reason` are those of a KernelRow.  `tokens_per_s` is reported by the trainer, over
    all steps after the warm-up; `step_ms` is the median of these steps, `step_low_ms` and
    `step_high_ms` the extremes of the medians of their thirds.  `parts_ms` is the time per step of
    each part, by kernel names, `idle_ms` the idle time of the GPU.  `model_flops_per_s` excludes
    recomputation; `mfu` is its ratio to the measured rate of matrix products.
    """

    model: str
    level: str
    config: Mapping[str, Any]
    backend: str
    status: str
    reason: str | None = None
    note: str | None = None
    parameters: int | None = None
    precision: str | None = None
    tokens_per_step: int | None = None
    steps: int | None = None
    tokens_per_s: float | None = None
    step_ms: float | None = None
    step_low_ms: float | None = None
    step_high_ms: float | None = None
    peak_bytes: int | None = None
    model_flops_per_s: float | None = None
    mfu: float | None = None
    parts_ms: Mapping[str, float] = field(default_factory=dict)
    idle_ms: float | None = None
    last_loss: float | None = None
    kernels: Sequence[tuple[str, float, float]] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class PlannedSteps:
    """A row of steps to measure."""

    model: StepModel
    backend: str

    @property
    def label(self) -> str:
        """Model and backend."""
        return f"{self.model.name} {self.backend}"

    def unavailable_reason(self, device: torch.device) -> str | None:
        """Return why the backend cannot be measured on the device, or None."""
        if self.backend == "triton" and device.type == "cpu":
            return "in Triton's interpreter a training step takes minutes"
        # Wrong gradients of fla take as long as right ones, so they are timed and labeled.
        is_fla = self.backend == "fla"
        check = fla_forward_unavailable if is_fla else BACKENDS[self.backend].unavailable_reason
        return check(device.type)

    def empty(self, status: str, reason: str | None = None) -> StepRow:
        """Return the row without numbers."""
        return StepRow(
            model=self.model.name,
            level=self.model.level,
            config=self.model.config.encode(),
            backend=self.backend,
            status=status,
            reason=reason,
        )


def plan_steps(shape: StepShape, only: Sequence[str] = ()) -> list[PlannedSteps]:
    """Return the rows to measure: each model on its first backend, then on the others.

    Plain torch comes last, except for the gated delta net, which only torch can train where fla's
    gradients are wrong.
    """
    rows = [PlannedSteps(model=model, backend=b) for model in shape.models for b in model.backends]

    def order(row: PlannedSteps) -> tuple[bool, bool, bool]:
        is_plain = row.backend == "torch"
        is_first = row.backend == row.model.backends[0]
        return not is_first, is_plain and row.model.level != "fla-gdn", is_plain

    rows.sort(key=order)
    return select(rows, only)


def step_rows(
    planned: Sequence[PlannedSteps],
    shape: StepShape,
    corpus: FilePath,
    device: torch.device,
    matrix_flops: float | None,
    is_over: Callable[[], bool],
) -> Iterator[StepRow]:
    """Measure the planned rows as `measured_rows` does; yield a row for each."""

    def measure(row: PlannedSteps) -> StepRow:
        return _measure_row(row, shape, corpus, device, matrix_flops)

    return measured_rows(planned, measure, device, is_over)


def _measure_row(
    row: PlannedSteps,
    shape: StepShape,
    corpus: FilePath,
    device: torch.device,
    matrix_flops: float | None,
) -> StepRow:
    is_timing_only = row.backend == "fla" and fla_gradient_unavailable() is not None
    model = _build(row, device)
    stream = ByteStream(corpus)
    clock = StepClock()
    profile = None
    timing_context: AbstractContextManager[None] = (
        fla_gradients_for_timing() if is_timing_only else nullcontext()
    )
    with suppress_warnings(), timing_context:
        training = Training(
            minutes=_TIMED_S[device.type] / 60,
            batch=shape.batch,
            seq_len=shape.seq_len,
            warmup_steps=WARMUP_STEPS,
            objective="last100",
            holdout=0.0,
            seed=0,
            device=device.type,
            backend=row.backend,
            # Oversubscribed threads make small products on a CPU extremely slow.
            threads=0 if device.type == "cuda" else 1,
        )
        outcome = train(model, stream, _spec(row, corpus, training), clock)
        if outcome.divergence is not None:
            found = outcome.divergence
            raise RuntimeError(f"the {found.quantity} was {found.value} at step {found.step}")
        if median(clock.step_ms()) <= _MAX_PROFILED_MS:
            profile = StepProfile(_PROFILED_FROM, _PROFILED_TO, device)
            profiled = replace(training, minutes=None, steps=_PROFILED_TO)
            train(model, stream, _spec(row, corpus, profiled), profile)
    return _row(row, shape, outcome, clock, profile, matrix_flops, is_timing_only=is_timing_only)


def _build(row: PlannedSteps, device: torch.device) -> nn.Module:
    """Build the model; backend fla is set afterwards, since the registry may refuse it."""
    config = row.model.config
    if row.backend != "fla":
        return build_model(config, seed=0, backend=row.backend, device=device.type)
    model = build_model(config, seed=0, backend="torch", device=device.type)
    for module in model.modules():
        if "backend" in vars(module):
            vars(module)["backend"] = row.backend
    return model


def _spec(row: PlannedSteps, corpus: FilePath, training: Training) -> AttemptSpec:
    config = row.model.config.encode()
    return AttemptSpec(
        run="bench",
        evaluation="bench",
        attempt=1,
        level=row.model.level,
        config=config,
        parameters_expected=count_parameters(row.model.level, config),
        training=training,
        data=DataSpec(path=str(corpus), sha256="", size_bytes=0),
        timeout_min=60.0,
    )


def _row(
    row: PlannedSteps,
    shape: StepShape,
    outcome: TrainOutcome,
    clock: StepClock,
    profile: StepProfile | None,
    matrix_flops: float | None,
    *,
    is_timing_only: bool,
) -> StepRow:
    config = row.model.config.encode()
    step_ms = clock.step_ms()
    thirds = medians_of_thirds(step_ms)
    kernels = profile.kernel_ms() if profile else []
    parts = by_part((name, ms) for name, ms, _ in kernels)
    flops_per_s = None
    if outcome.tokens_per_s:
        level = row.model.level
        flops = flops_per_token(level, config, seq_len=shape.seq_len, training=True)
        flops_per_s = outcome.tokens_per_s * flops
    notes = [TIMING_ONLY] if is_timing_only else []
    if row.backend == "torch" and row.model.level != "transformer":
        notes.append(TORCH_RECURRENCE)
    if outcome.micro_batch < shape.batch:
        notes.append(f"in micro-batches of {outcome.micro_batch}, for want of memory")
    if profile is None:
        notes.append("steps are too long to profile")
    idle_ms = None
    if profile and outcome.device.startswith("cuda"):
        idle_ms = max(0.0, median(step_ms) - sum(parts.values()))
    return replace(
        row.empty("measured"),
        note="; ".join(notes) or None,
        parameters=outcome.parameters,
        precision=outcome.precision,
        tokens_per_step=outcome.tokens_per_step,
        steps=len(step_ms),
        tokens_per_s=outcome.tokens_per_s,
        step_ms=median(step_ms),
        step_low_ms=min(thirds),
        step_high_ms=max(thirds),
        peak_bytes=outcome.peak_memory_bytes,
        model_flops_per_s=flops_per_s,
        mfu=flops_per_s / matrix_flops if flops_per_s and matrix_flops else None,
        parts_ms=parts,
        idle_ms=idle_ms,
        last_loss=outcome.last_loss,
        kernels=kernels[:_MAX_KERNELS],
    )
